"""What the features still know: can a linear probe tell the forgotten class from the retained ones?"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from zspag_hf.metrics.rows import SPLIT, TEST_FORGOTTEN, TEST_RETAINED, VECTOR, Metric, pick

MOST_RETAINED = 2000


class LinearProbe(Metric):
    """probe_auc: area under the ROC of a logistic regression (C = .01 on standardised features) from penultimate
    features to forgotten class or not, out of fold in 5-fold cross-validation on test images. A retrained model's
    features separate unseen classes too, so right is what that model gets.

    Inputs: features (N, D): the input of the classification head; splits (N,) as in zspag_hf.metrics.rows. At most
    2,000 retained test rows are used. None below 10 rows of either kind.
    """

    columns = {"features": VECTOR, "splits": SPLIT}

    def _compute(self, features, splits, **_):
        gone, kept = (np.flatnonzero(pick(splits, s)) for s in (TEST_FORGOTTEN, TEST_RETAINED))
        if min(len(gone), len(kept)) < 10:
            return {"probe_auc": None}
        kept = np.random.default_rng(0).permutation(kept)[:MOST_RETAINED]
        rows, truth = np.concatenate([gone, kept]), np.repeat([1, 0], [len(gone), len(kept)])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        score = cross_val_predict(probe, np.asarray(features)[rows], truth, cv=folds, method="decision_function")
        return {"probe_auc": float(roc_auc_score(truth, score))}
