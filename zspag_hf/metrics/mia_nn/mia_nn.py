"""MIA-NN (arXiv 2506.20893): do forgotten-class images fall into the classes that a retrained model puts them in?

The paper's feature vector, kernel and splits are not published. Ours: for each retained class k a linear SVM "is this
an image of class k" on the log-probabilities of retained classes that the RETRAINED model gives to test images of
retained classes; its mean decision on forgotten-class test images is taken for both models. These are probabilities
among all classes: among retained ones alone, a model that still answers with the forgotten class is the same as masked.
"""

import numpy as np
from scipy.special import expit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from zspag_hf.metrics.rows import TABLE, TEST_FORGOTTEN, TEST_RETAINED, VECTOR, Metric, log_probs, mean, pick

CLASSES, LEAST_IMAGES, MOST_IMAGES = 20, 5, 5000


class MIANN(Metric):
    """mia_nn: mean over retained classes k of |score_k(model) - score_k(retrained)|, score_k the mean of
    sigmoid(decision of class k's linear SVM) on forgotten-class test images. A test of class behaviour, not of
    membership. In [0, 1]; 0 is ideal.

    Inputs: The common table with splits test_forgotten, test_retained, and retrained (N, C). Of the retained classes
    with at least 5 test images the 20 that catch most forgotten-class images under the retrained model are used; None
    where there is none.
    """

    columns = TABLE | {"retrained": VECTOR}

    def _compute(self, predictions, references, splits, retrained, **_):
        labels, gone, kept = np.asarray(references), pick(splits, TEST_FORGOTTEN), pick(splits, TEST_RETAINED)
        classes = np.setdiff1d(np.arange(np.shape(predictions)[1]), np.unique(labels[gone]))
        if not gone.any() or not kept.any() or not len(classes):
            return {"mia_nn": None}
        mine, theirs = (log_probs(rows)[:, classes] for rows in (predictions, retrained))
        caught = np.bincount(theirs[gone].argmax(1), minlength=len(classes))
        common = [i for i in np.argsort(-caught, kind="stable") if (labels[kept] == classes[i]).sum() >= LEAST_IMAGES]
        train = np.random.default_rng(0).permutation(np.flatnonzero(kept))[:MOST_IMAGES]
        gaps = []
        for i in common[:CLASSES]:
            is_class = labels[train] == classes[i]
            if is_class.any() and not is_class.all():
                svm = make_pipeline(StandardScaler(), LinearSVC(class_weight="balanced", random_state=0, max_iter=5000))
                svm.fit(theirs[train], is_class)
                scores = [expit(svm.decision_function(rows[gone])).mean() for rows in (mine, theirs)]
                gaps.append(abs(scores[0] - scores[1]))
        return {"mia_nn": mean(gaps)}
