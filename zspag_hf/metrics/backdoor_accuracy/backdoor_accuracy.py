"""Attack accuracy of a backdoor (ZS-PAG, table 3): how often the trigger still brings the attacker's label."""

import datasets
import evaluate
import numpy as np

from zspag_hf.metrics.rows import CITATION, LOGITS, mean

_DESCRIPTION = """attack_accuracy: share of triggered test images that get the attacker's label, in [0, 1], lower is
better. Images whose true class is that label are left out: they would count without any trigger."""

_INPUTS = """predictions (N, C): logits on triggered test images; references (N,): their true labels; target (int): the
attacker's label. None over no images."""


class BackdoorAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": LOGITS, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, target, **_):
        counted = np.asarray(references) != target
        if not counted.any():
            return {"attack_accuracy": None}
        return {"attack_accuracy": mean(np.argmax(np.asarray(predictions), 1)[counted] == target)}
