"""Do two models look at the same places? Similarity of their GradCAM maps (ZS-PAG, figure 3, as a number)."""

import numpy as np

from zspag_hf.metrics.rows import VECTOR, Metric, mean


class HeatmapSimilarity(Metric):
    """gradcam_similarity: mean cosine between the GradCAM maps of the model and of the retrained model, image by
    image, both for the class originally labelled, in [0, 1]. Images on which either map is empty are left out.

    Inputs: predictions (N, h * w): non-negative maps of the model; references (N, h * w): the retrained model's. None
    where no pair of maps is left.
    """

    columns = {"predictions": VECTOR, "references": VECTOR}

    def _compute(self, predictions, references, **_):
        if not len(predictions):
            return {"gradcam_similarity": None}
        a, b = np.asarray(predictions, float), np.asarray(references, float)
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return {"gradcam_similarity": mean((a * b).sum(1)[size > 0] / size[size > 0])}
