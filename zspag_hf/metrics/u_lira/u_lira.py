"""U-LiRA (arXiv 2403.01218): a likelihood ratio for each forget image between two populations of shadow models."""

import numpy as np

from zspag_hf.metrics.rows import FORGET, TABLE, VECTOR, Metric, margin, pick

FEW_MODELS = 8  # below so many models a variance an image is noise
LEAST_DEVIATION = 0.1  # nats: one model alone has none


class ULiRA(Metric):
    """u_lira: share of the forget images whose margin phi = log(p_y / (1 - p_y)) is likelier under the "in" shadow
    models (trained with the image, then unlearned) than under the "out" ones (never saw it); Gaussians per image, below
    8 models with the larger of the two populations' pooled variances. In [0, 1]: 0 as retrained, 1 remembered.

    Inputs: The common table with split forget, in_margins (N, M_in) and out_margins (N, M_out): phi under the shadow
    models. The affordable form gives the original model as "in" and the retrained ones as "out": it tells a model that
    still remembers from one that does not, no more. Publications use 64 and more. None without forget images or models.
    """

    columns = TABLE | {"in_margins": VECTOR, "out_margins": VECTOR}

    def _compute(self, predictions, references, splits, in_margins, out_margins, **_):
        asked = pick(splits, FORGET)
        if not asked.any() or not len(in_margins[0]) or not len(out_margins[0]):
            return {"u_lira": None}
        phi = margin(np.asarray(predictions)[asked], np.asarray(references)[asked])
        inside, outside = (np.asarray(m, np.float64)[asked] for m in (in_margins, out_margins))
        pooled = max(deviation(inside), deviation(outside), LEAST_DEVIATION)
        ratio = log_density(phi, inside, pooled) - log_density(phi, outside, pooled)
        return {"u_lira": float((ratio > 0).mean())}


def deviation(margins: np.ndarray) -> float:
    """Standard deviation of the models around each image's mean, pooled over images; 0 for one model."""
    return float(np.sqrt(margins.var(1, ddof=1).mean())) if margins.shape[1] > 1 else 0.0


def log_density(phi: np.ndarray, margins: np.ndarray, pooled: float) -> np.ndarray:
    """Log of a Gaussian density an image ``(N,)``, up to the constant."""
    sd = margins.std(1, ddof=1) + 1e-3 if margins.shape[1] >= FEW_MODELS else np.full(len(phi), pooled)
    return -((phi - margins.mean(1)) ** 2) / (2 * sd**2) - np.log(sd)
