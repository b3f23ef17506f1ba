"""How much retrained models differ among themselves, and what that says of every other model's score."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from ..metrics import AS_RETRAINED, BLIND, DIFFERS, HIGHER, LEAST_TOLERANCE, LOWER, METRICS, NOT_FORGOTTEN
from ..metrics.rows import FORGET, TEST_FORGOTTEN, TEST_RETAINED
from .table import Table

CONFIDENCE = 0.95  # of the interval that one more retrained model would fall into
LEAST_RETRAINED = 3  # below, the spread is not known well enough for a verdict
COMPARING = ("divergence", "mia_nn", "rmia", "u_lira", "heatmap_similarity", "gap_to_retrained")  # metric modules
# Scores that compare with the other retrained models: a retrained model's own is taken against the rest.
PAIRWISE = {score for score, known in METRICS.items() if known.module in COMPARING} | {"ain"}


def least_tolerances(table: Table) -> dict[str, float]:
    """The difference of each score that is never evidence: one image, one step, at least ``LEAST_TOLERANCE``."""
    few = [len(table.rows(split)) for split in (FORGET, TEST_FORGOTTEN) if len(table.rows(split))]
    of_forgotten, of_retained = 1 / min(few), 1 / max(1, len(table.rows(TEST_RETAINED)))
    least = {s: max(LEAST_TOLERANCE, of_forgotten if m.detects else of_retained) for s, m in METRICS.items()}
    return least | {"relearn_steps": 1.0}


def floor(
    values: Sequence[float | None], pairwise: bool = False, least: float = LEAST_TOLERANCE
) -> dict[str, Any] | None:
    """What retrained models get: mean, spread, and the half-width of the 95 % prediction interval for one more.

    Half-width = t(.975, K - 1) x sd x sqrt(1 + 1/K), at least ``least``; None below three models. The values of a
    pairwise score share their pairs, which hides a part (K - 2) / (K - 1) of the spread: the half-width is divided by
    it (coverage .96 at K = 3 in simulation, .84 without).

    Args:
        values: the score of each retrained model; of a pairwise score, against the other retrained models.

    Returns:
        mean, sd, models (how many have a value) and tolerance (the half-width); None below two models.
    """
    numbers = [v for v in values if v is not None]
    if len(numbers) < 2:
        return None
    count, sd = len(numbers), float(np.std(numbers, ddof=1))
    known = {"mean": float(np.mean(numbers)), "sd": sd, "models": count, "tolerance": None}
    if count >= LEAST_RETRAINED:
        half = student.ppf((1 + CONFIDENCE) / 2, count - 1) * sd * math.sqrt(1 + 1 / count)
        known["tolerance"] = max(float(half) * ((count - 1) / (count - 2) if pairwise else 1.0), least)
    return known


def verdict(score: str, value: float | None, original: float | None, known: dict[str, Any] | None) -> str | None:
    """AS_RETRAINED within the floor, or nearer to the retrained models than they are to each other; else NOT_FORGOTTEN
    where the score is meant to detect that and is nearer to the original's than to the retrained models'; else DIFFERS.
    BLIND where the original itself passes. None without a floor."""
    if value is None or original is None or known is None or known["tolerance"] is None:
        return None
    if passes(score, original, known):
        return BLIND
    if passes(score, value, known):
        return AS_RETRAINED
    nearer = abs(value - original) < abs(value - known["mean"])
    return NOT_FORGOTTEN if nearer and METRICS[score].detects else DIFFERS


def passes(score: str, value: float, known: dict[str, Any]) -> bool:
    """Within the tolerance, or for a distance from retrained models on its good side."""
    excess = value - known["mean"]
    if score in PAIRWISE and METRICS[score].direction in (LOWER, HIGHER):
        return (excess if METRICS[score].direction == LOWER else -excess) <= known["tolerance"]
    return abs(excess) <= known["tolerance"]
