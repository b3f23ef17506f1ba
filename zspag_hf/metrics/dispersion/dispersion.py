"""Are forget features of one class still alike? A class that was learned lies close together, an unseen one less so."""

import numpy as np
from numpy.typing import ArrayLike

from zspag_hf.metrics.rows import FORGET, LABEL, SPLIT, VECTOR, Metric, mean, pick, unit


class Dispersion(Metric):
    """dispersion: mean cosine between the penultimate features of two forget images of one class, over all pairs, then
    over classes; in [-1, 1]: 1 all alike, 0 scattered. Right is what a retrained model gets.

    On forget images, not on test images: every request has them, and they are what a method that scatters features is
    given; whether unseen images followed is what recovery says.

    Inputs: features (N, D): the input of the classification head, references and splits as in the common table, with
    split forget. None where no class has two images.
    """

    columns = {"features": VECTOR, "references": LABEL, "splits": SPLIT}

    def _compute(self, features, references, splits, **_):
        asked = pick(splits, FORGET)
        return {"dispersion": dispersion(np.asarray(features)[asked], np.asarray(references)[asked])}


def dispersion(features: ArrayLike, labels: ArrayLike) -> float | None:
    """Mean pairwise cosine within a class, mean over classes, of features ``(N, D)`` with labels ``(N,)``: from the
    length of the sum of unit vectors, whose square is n plus the cosines of the n (n - 1) ordered pairs."""
    rows, labels = unit(features), np.asarray(labels)
    classes = [rows[labels == label] for label in np.unique(labels)]
    pairs = [((u.sum(0) ** 2).sum() - (u**2).sum()) / (len(u) * (len(u) - 1)) for u in classes if len(u) > 1]
    return mean(pairs)
