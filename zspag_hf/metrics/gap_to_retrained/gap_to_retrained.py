"""One number over several: the average gap (SalUn) and the tug-of-war score (RUM)."""

import numpy as np
from datasets import Value

from zspag_hf.metrics.rows import Metric


class GapToRetrained(Metric):
    """avg_gap: mean of |score - the retrained model's| over the scores given, lower is better (SalUn: UA, RA, TA,
    MIA). tow: product of 1 - |score - the retrained model's|, higher is better (RUM, arXiv 2406.01257: accuracy on
    forget, retained and test images). Both in [0, 1].

    Inputs: predictions (K,): scores of the model, in [0, 1]; references (K,): the retrained model's. None over no
    scores.
    """

    columns = {"predictions": Value("float64"), "references": Value("float64")}

    def _compute(self, predictions, references, **_):
        if not len(predictions):
            return {"avg_gap": None, "tow": None}
        gaps = np.abs(np.subtract(predictions, references))
        return {"avg_gap": float(gaps.mean()), "tow": float(np.prod(1 - gaps))}
