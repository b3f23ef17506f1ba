"""Is an image of the request told from a held-out image of the same class by its loss?"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

from zspag_hf.metrics.rows import FORGET, TEST_FORGOTTEN, Metric, pick, true_log_probs


class MembershipLoss(Metric):
    """mia_loss_auc: area under the ROC of -loss, forget images (members) against test images of the same classes.
    mia_loss_tpr_at_1fpr: true positive rate at a false positive rate of at most 1 %. mia_loss_cv: accuracy of a
    logistic regression on the loss, equal numbers of both, over 10 stratified splits (SCRUB). Ideal: .5, .01, .5.

    Inputs: The common table with splits forget and test_forgotten, at least 10 rows of each, else all None.
    mia_loss_tpr_at_1fpr is None below 100 held-out rows, where 1 % is less than one image.
    """

    def _compute(self, predictions, references, splits, **_):
        score = true_log_probs(predictions, references)
        members, others = score[pick(splits, FORGET)], score[pick(splits, TEST_FORGOTTEN)]
        count = min(len(members), len(others))
        if count < 10:
            return dict.fromkeys(("mia_loss_auc", "mia_loss_tpr_at_1fpr", "mia_loss_cv"))
        truth, scores = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others])
        fpr, tpr, _thresholds = roc_curve(truth, scores, drop_intermediate=False)  # else ties hide points below 1 %
        rng = np.random.default_rng(0)
        equal = np.concatenate([rng.choice(part, count, replace=False) for part in (members, others)])
        folds = StratifiedShuffleSplit(n_splits=10, test_size=0.3, random_state=0)
        accuracy = cross_val_score(LogisticRegression(), equal[:, None], np.repeat([1, 0], count), cv=folds)
        return {
            "mia_loss_auc": float(roc_auc_score(truth, scores)),
            "mia_loss_tpr_at_1fpr": float(tpr[fpr <= 0.01].max()) if len(others) >= 100 else None,
            "mia_loss_cv": float(accuracy.mean()),
        }
