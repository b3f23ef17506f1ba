"""Attack accuracy of a backdoor (ZS-PAG, table 3): how often the trigger still brings the attacker's label."""

import numpy as np

from zspag_hf.metrics.rows import LABEL, VECTOR, Metric, mean


class BackdoorAccuracy(Metric):
    """attack_accuracy: share of triggered test images that get the attacker's label, in [0, 1], lower is better.
    Images whose true class is that label are left out: they would count without any trigger.

    Inputs: predictions (N, C): logits on triggered test images; references (N,): their true labels; target (int): the
    attacker's label. None over no images.
    """

    columns = {"predictions": VECTOR, "references": LABEL}

    def _compute(self, predictions, references, target, **_):
        counted = np.asarray(references) != target
        if not counted.any():
            return {"attack_accuracy": None}
        return {"attack_accuracy": mean(np.argmax(np.asarray(predictions), 1)[counted] == target)}
