"""How much retrained models differ among themselves, and what that says of every other model's score."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95  # of the interval that one more retrained model would fall into
LEAST_TOLERANCE = 0.005  # half a percentage point, or five thousandths of a nat, is never evidence
LEAST_RETRAINED = 3  # below, the spread is not known well enough for a verdict
AS_RETRAINED, NOT_FORGOTTEN, DIFFERS, BLIND = "as retrained", "not forgotten", "differs", "cannot tell"


def floor(values: list[float | None]) -> dict | None:
    """What retrained models get: mean, spread, and the half-width of the 95 % prediction interval for one more.

    Half-width = t(.975, K - 1) x sd x sqrt(1 + 1/K), at least ``LEAST_TOLERANCE``; None below three models.

    Args:
        values: the score of each retrained model; of a distance, its mean distance from the others.
    """
    numbers = [v for v in values if v is not None]
    if len(numbers) < 2:
        return None
    count, sd = len(numbers), float(np.std(numbers, ddof=1))
    half = student.ppf((1 + CONFIDENCE) / 2, count - 1) * sd * math.sqrt(1 + 1 / count)
    tolerance = max(half, LEAST_TOLERANCE) if count >= LEAST_RETRAINED else None
    return {"mean": float(np.mean(numbers)), "sd": sd, "models": count, "tolerance": tolerance}


def verdict(value: float | None, original: float | None, known: dict | None) -> str | None:
    """AS_RETRAINED within the floor, else NOT_FORGOTTEN where nearer to the original than to the retrained models, else
    DIFFERS; BLIND where the original itself lies within the floor. None without a floor."""
    if value is None or original is None or known is None or known["tolerance"] is None:
        return None
    if abs(original - known["mean"]) <= known["tolerance"]:
        return BLIND
    distance = abs(value - known["mean"])
    if distance <= known["tolerance"]:
        return AS_RETRAINED
    return NOT_FORGOTTEN if abs(value - original) < distance else DIFFERS
