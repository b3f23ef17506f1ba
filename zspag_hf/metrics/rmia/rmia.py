"""RMIA, offline form (arXiv 2312.03262; ml_privacy_meter), as AMUN reports it: forget against test images."""

import numpy as np
from sklearn.metrics import roc_auc_score

from zspag_hf.metrics.rows import FORGET, TABLE, TEST_FORGOTTEN, TEST_RETAINED, VECTOR, Metric, pick, true_log_probs

GAMMA, OFFLINE_A = 2.0, 0.3


class RMIA(Metric):
    """rmia_auc: area under the ROC of the RMIA score, forget images against all test images; right is what a
    retrained model gets: of a whole class far below .5.

    score(x) = share of test images z with [p(x) / prior(x)] / [p(z) / prior(z)] > gamma, p the probability of the true
    label, prior(x) = (1 + a) / 2 * mean over reference models of p + (1 - a) / 2: reference models that trained on none
    of these images.

    Inputs: The common table with splits forget and test_*, and reference_log_probs (N, M): log p_y under M reference
    models. gamma 2 as AMUN runs it, a 0.3. None without images of either kind or without reference models.
    """

    columns = TABLE | {"reference_log_probs": VECTOR}

    def _compute(self, predictions, references, splits, reference_log_probs, **_):
        asked, tests = pick(splits, FORGET), pick(splits, TEST_FORGOTTEN, TEST_RETAINED)
        if not asked.any() or not tests.any() or not len(reference_log_probs[0]):
            return {"rmia_auc": None}
        out = np.exp(np.asarray(reference_log_probs, np.float64)).mean(1)
        prior = (1 + OFFLINE_A) / 2 * out + (1 - OFFLINE_A) / 2
        ratio = np.exp(true_log_probs(predictions, references)) / prior
        # the share of z below ratio / gamma, counted in the sorted ratios of the test images
        population = np.sort(ratio[tests])
        score = np.searchsorted(population, ratio / GAMMA, side="left") / len(population)
        truth = np.repeat([1, 0], [asked.sum(), tests.sum()])
        return {"rmia_auc": float(roc_auc_score(truth, np.concatenate([score[asked], score[tests]])))}
