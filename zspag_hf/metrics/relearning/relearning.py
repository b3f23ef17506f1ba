"""How fast a forgotten class comes back under fine-tuning, beside the retrained model's own speed."""

from collections.abc import Sequence

import numpy as np
from datasets import Value

from zspag_hf.metrics.rows import Metric, mean


class Relearning(Metric):
    """relearn: mean of acc_ut over the fine-tuning steps 1 .. T, in [0, 1]: the area under the relearning curve; right
    is what a retrained model gets. relearn_steps: first step at which acc_ut reaches 95 % of the original's, T + 1
    where it never does. ain = relearn_steps / the retrained model's (GKT, arXiv 2201.05629): 1 is right, below it the
    class comes back too fast.

    Inputs: predictions (T + 1,): acc_ut of the model after step 0 .. T; references (T + 1,): the retrained model's;
    original (float): acc_ut of the original model, untrained. T must be the same for both.
    """

    columns = {"predictions": Value("float32"), "references": Value("float32")}

    def _compute(self, predictions, references, original, **_):
        steps, ain = None, None
        if original > 0:  # else there is nothing to come back
            steps, least = (steps_to(curve, 0.95 * original) for curve in (predictions, references))
            ain = steps / least
        return {"relearn": mean(predictions[1:]), "relearn_steps": steps, "ain": ain}


def steps_to(curve: Sequence[float], level: float) -> int:
    """The first step at which the curve reaches a level, at least 1; its length where it never does."""
    reached = np.flatnonzero(np.asarray(curve) >= level - 1e-6)
    return max(1, int(reached[0])) if len(reached) else len(curve)
