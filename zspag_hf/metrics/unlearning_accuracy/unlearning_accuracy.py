"""Accuracy on retained and on forgotten classes, and on the images of the request (ZS-PAG 4.1; SalUn)."""

import numpy as np

from zspag_hf.metrics.rows import FORGET, RETAIN, TEST_FORGOTTEN, TEST_RETAINED, VIEWS, Metric, mean, pick


class UnlearningAccuracy(Metric):
    """acc_rt, acc_ut: mean over classes of the test accuracy on retained and on forgotten classes, as the paper
    reports them; acc_rt_micro, acc_ut_micro: mean over images. ua = 1 - accuracy on the forget images, ra = accuracy on
    retained training images, ta = accuracy on test images of retained classes, acc_views = accuracy on unseen random
    crops of the forget images. All in [0, 1].

    Inputs: The common table (zspag_hf.metrics.rows). A score over no images is None. per_class: label id -> test
    accuracy.
    """

    def _compute(self, predictions, references, splits, **_):
        references = np.asarray(references)
        right = np.argmax(np.asarray(predictions), 1) == references
        gone, kept = pick(splits, TEST_FORGOTTEN), pick(splits, TEST_RETAINED)
        forgotten, retained = (
            {int(k): float(right[rows & (references == k)].mean()) for k in np.unique(references[rows])}
            for rows in (gone, kept)
        )
        asked = mean(right[pick(splits, FORGET)])
        return {
            "acc_rt": mean(list(retained.values())),
            "acc_ut": mean(list(forgotten.values())),
            "acc_rt_micro": mean(right[kept]),
            "acc_ut_micro": mean(right[gone]),
            "acc_views": mean(right[pick(splits, VIEWS)]),
            "ua": None if asked is None else 1 - asked,
            "ra": mean(right[pick(splits, RETAIN)]),
            "ta": mean(right[kept]),
            "per_class": dict(sorted((forgotten | retained).items())),
        }
