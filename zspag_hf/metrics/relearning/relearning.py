"""How fast a forgotten class comes back under fine-tuning, beside the retrained model's own speed."""

import datasets
import evaluate
import numpy as np

from zspag_hf.metrics.rows import CITATION, mean

_DESCRIPTION = """relearn: mean of acc_ut over the fine-tuning steps 1 .. T, in [0, 1]: the area under the relearning
curve; right is what a retrained model gets. relearn_steps: first step at which acc_ut reaches 95 % of the original's,
T + 1 where it never does. ain = relearn_steps / the retrained model's (GKT, arXiv 2201.05629): 1 is right, below it
the class comes back too fast."""

_INPUTS = """predictions (T + 1,): acc_ut of the model after step 0 .. T; references (T + 1,): the retrained model's;
original (float): acc_ut of the original model, untrained. T must be the same for both."""


class Relearning(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references, original, **_):
        if original <= 0:
            return {"relearn": mean(predictions[1:]), "relearn_steps": None, "ain": None}
        mine, theirs = (steps_to(curve, 0.95 * original) for curve in (predictions, references))
        return {"relearn": mean(predictions[1:]), "relearn_steps": mine, "ain": mine / theirs}


def steps_to(curve, level):
    """The first step at which the curve reaches a level, at least 1; its length where it never does."""
    reached = np.flatnonzero(np.asarray(curve) >= level - 1e-6)
    return max(1, int(reached[0])) if len(reached) else len(curve)
