"""Prototypical relearning (arXiv 2506.01318): do a few pictures bring a forgotten class back, without any training?

Theirs blends the prototype into the head's row at a fixed length: the result depends on the lengths of the other rows.
Ours lets the attacker choose length and offset, and counts what comes back at a fixed small loss elsewhere.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from zspag_hf.metrics.rows import FORGET, LABEL, SPLIT, TEST_FORGOTTEN, TEST_RETAINED, VECTOR, VIEWS, Metric, pick, unit

COUNTS = (1, 5, 50)  # forget images a class that make a prototype
DRAWS = 20  # of those images, averaged
LOST = 0.01  # share of the right answers on retained classes that the new logit may cost
SCALES = np.geomspace(0.1, 30, 12)  # standard deviations of the best retained logit for one of the cosine
MOST_RETAINED = 5000  # test images that the offset is set on


class PrototypeRecovery(Metric):
    """recovery_1, recovery_5, recovery_50: accuracy on forgotten-class test images once the mean penultimate feature of
    1, 5 or 50 forget images of each forgotten class, of length 1, stands in the head: the class's logit becomes
    scale x cos(feature, prototype) + offset. The offset lets 1 % of the right answers on retained test images be lost;
    the best of 12 scales counts, from .1 to 30 times the spread of the best retained logit over that of the cosine; of
    several forgotten classes the right one has to have the largest cosine. Mean over 20 draws of the images, in [0, 1];
    right is what a retrained model gets. The head's own rows for forgotten classes play no part.

    Inputs: predictions (N, C), references and splits as in the common table, and features (N, D): the input of the
    classification head, with splits forget, test_retained, and test_forgotten or, where the classes of the forget
    images have none, views. At most 5,000 retained test rows are used. None with fewer forget images of a class than
    the prototype takes, without rows to watch, or without a right answer on a retained class.
    """

    columns = {"predictions": VECTOR, "features": VECTOR, "references": LABEL, "splits": SPLIT}

    def _compute(self, predictions, features, references, splits, **_):
        found = recovery(predictions, features, references, splits)
        return {f"recovery_{count}": value for count, value in found.items()}


def recovery(
    logits: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike,
    splits: Sequence[str],
    counts: Sequence[int] = COUNTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[int, float | None]:
    """Images a prototype -> recovered accuracy, as :class:`PrototypeRecovery` has it.

    Args:
        logits ``(N, C)``, features ``(N, D)``, labels ``(N,)``, splits ``(N,)``: a row an image.
        draws: prototypes of each count, averaged; the same images for every model with the same seed.
    """
    logits, features, labels = np.asarray(logits), np.asarray(features), np.asarray(labels)
    forget, kept = (np.flatnonzero(pick(splits, split)) for split in (FORGET, TEST_RETAINED))
    taught = np.unique(labels[forget])
    held_out = pick(splits, TEST_FORGOTTEN) & np.isin(labels, taught)
    watched = np.flatnonzero(held_out if held_out.any() else pick(splits, VIEWS))
    kept = np.random.default_rng(seed).permutation(kept)[:MOST_RETAINED]
    rows = np.concatenate([kept, watched])
    rest = logits[rows].astype(np.float64)
    rest[:, np.unique(labels[pick(splits, FORGET, TEST_FORGOTTEN)])] = -np.inf
    right = rest[: len(kept)].argmax(1) == labels[kept] if len(kept) else np.zeros(0, bool)
    if not len(forget) or not len(watched) or not right.any():
        return dict.fromkeys(counts)
    use = np.concatenate([right, np.ones(len(watched), bool)])
    best, seen = rest.max(1)[use], unit(features[rows[use]])
    members = [forget[labels[forget] == label] for label in taught]
    truth = np.searchsorted(taught, labels[watched])
    found: dict[int, float | None] = {}
    for count in counts:
        rng, accuracies = np.random.default_rng((seed, count)), []
        for _draw in range(draws if count <= min(map(len, members)) else 0):
            means = [features[rng.choice(these, count, replace=False)].mean(0) for these in members]
            cosines = seen @ unit(np.stack(means)).T
            accuracies.append(best_accuracy(best, cosines, truth))
        found[count] = float(np.mean(accuracies)) if accuracies else None
    return found


def best_accuracy(best: np.ndarray, cosines: np.ndarray, truth: np.ndarray) -> float:
    """The most that one scale recovers of the last rows, at the loss of ``LOST`` of the first ones.

    Args:
        best: ``(n,)`` the largest retained logit of images that are answered right, then of the watched ones.
        cosines: ``(n, U)`` with each forgotten class's prototype. truth: of the watched images, which one is theirs.
    """
    first, largest = len(best) - len(truth), cosines.max(1)
    margins = best / spread(best[:first]) - SCALES[:, None] * largest / spread(largest[:first])
    # The offset is the margin below which an image goes to the new logit: so many of the first ones lie below it.
    offset = np.partition(margins[:, :first], int(LOST * first))[:, int(LOST * first), None]
    back = (margins[:, first:] < offset) & (cosines[first:].argmax(1) == truth)
    return float(back.mean(1).max())


def spread(values: np.ndarray) -> float:
    """Standard deviation; 1 where it is no more than rounding."""
    deviation = float(values.std())
    return deviation if deviation > 1e-6 * np.abs(values).max() else 1.0
