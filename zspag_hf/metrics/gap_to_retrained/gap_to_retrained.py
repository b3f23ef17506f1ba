"""One number over several: the average gap (SalUn) and the tug-of-war score (RUM)."""

import datasets
import evaluate
import numpy as np

from zspag_hf.metrics.rows import CITATION

_DESCRIPTION = """avg_gap: mean of |score - the retrained model's| over the scores given, lower is better (SalUn: UA,
RA, TA, MIA). tow: product of 1 - |score - the retrained model's|, higher is better (RUM, arXiv 2406.01257: accuracy on
forget, retained and test images). Both in [0, 1]."""

_INPUTS = """predictions (K,): scores of the model, in [0, 1]; references (K,): the retrained model's. None over no
scores."""


class GapToRetrained(evaluate.Metric):
    def _info(self):
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references, **_):
        if not len(predictions):
            return {"avg_gap": None, "tow": None}
        gaps = np.abs(np.subtract(predictions, references))
        return {"avg_gap": float(gaps.mean()), "tow": float(np.prod(1 - gaps))}
