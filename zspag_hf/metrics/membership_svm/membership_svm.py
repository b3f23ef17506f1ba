"""Attacks trained on retained training images (members) against test images of retained classes (non-members).

Three definitions with opposite directions go by the name of MIA accuracy; each has its own name here. SalUn's headline
counts forget images predicted NON-member (high: forgotten); Bad Teacher, GKT and SSD count those predicted member.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from zspag_hf.metrics.rows import FORGET, RETAIN, TEST_RETAINED, Metric, entropy, modified_entropy, pick, true_log_probs

MOST_MEMBERS = 5_000  # and as many others: the SVM's time grows with their square


class MembershipSVM(Metric):
    """mia_confidence, mia_modified_entropy: share of the forget images that an SVM (C=3, rbf) on one feature, the
    confidence p_y or the modified entropy, calls non-members (SalUn's direction). mia_entropy: share that a
    class-balanced logistic regression on the entropy calls members (SSD's direction). All in [0, 1]; right is what a
    retrained model gets.

    Inputs: The common table with splits forget, retain and test_retained; of the larger population as many rows as the
    smaller has, at most 5,000, are drawn with the seed. All None without retained training images.
    """

    def _compute(self, predictions, references, splits, **_):
        logits, labels = np.asarray(predictions), np.asarray(references)
        members, others, asked = (np.flatnonzero(pick(splits, s)) for s in (RETAIN, TEST_RETAINED, FORGET))
        count = min(len(members), len(others), MOST_MEMBERS)
        if not count or not len(asked):
            return dict.fromkeys(("mia_confidence", "mia_modified_entropy", "mia_entropy"))
        rng = np.random.default_rng(0)
        drawn = np.concatenate([rng.choice(rows, count, replace=False) for rows in (members, others)])
        is_member = np.repeat([1, 0], count)

        def predicted_members(feature, attack):
            attack.fit(feature[drawn, None], is_member)
            return float(attack.predict(feature[asked, None]).mean())

        svm = SVC(C=3, gamma="auto", kernel="rbf")
        regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        return {
            "mia_confidence": 1 - predicted_members(np.exp(true_log_probs(logits, labels)), svm),
            "mia_modified_entropy": 1 - predicted_members(modified_entropy(logits, labels), svm),
            "mia_entropy": predicted_members(entropy(logits), regression),
        }
