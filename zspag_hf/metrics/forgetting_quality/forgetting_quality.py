"""Forgetting quality of the NeurIPS 2023 unlearning challenge (arXiv 2406.09073), from many models of each kind."""

import numpy as np

from zspag_hf.metrics.rows import VECTOR, Metric

DELTA, BIN, CAP = 1e-5, 0.5, 50.0
INTERVAL_ENDS = 20  # candidates, spread evenly over the sorted margins of both populations
COLLAPSED = 0.01  # a range this much narrower than the other's: an interval of no width finds it


class ForgettingQuality(Metric):
    """forgetting_quality: each forget image gets an epsilon, the largest over one- and two-threshold attacks on its
    margins of max(log(1 - d - FPR) - log FNR, log(1 - d - FNR) - log FPR), then 2^-floor(epsilon / .5) points; the mean
    over images, in [0, 1], higher is better. Multiplied by nothing: the challenge's utility factors stand elsewhere.

    A population with less than 1 % of the other's range counts as told from it. The largest of many noisy epsilons is
    not 0: two samples of one population get .1 to .4, not 1. The challenge used 512 models of each kind; with fewer
    than 64 it is indicative only.

    Inputs: unlearned (N, M): margins of N forget images under M unlearned models; retrained (N, M): under as many
    retrained ones. None over no images or below 2 models of each.
    """

    columns = {"unlearned": VECTOR, "retrained": VECTOR}

    def _compute(self, unlearned, retrained, **_):
        if not len(unlearned) or min(len(unlearned[0]), len(retrained[0])) < 2:
            return {"forgetting_quality": None}
        pairs = zip(np.asarray(unlearned, float), np.asarray(retrained, float), strict=True)
        most = np.ceil(np.log(max(len(unlearned[0]) - 1, 2)) / BIN)  # more evidence than so few models can give
        bins = [min(np.floor(epsilon(u, r) / BIN), most) for u, r in pairs]
        return {"forgetting_quality": float(np.mean([2.0**-b for b in bins]))}


def epsilon(u: np.ndarray, r: np.ndarray) -> float:
    """The largest epsilon over thresholds for one image, in [0, 50].

    Args:
        u, r: ``(M,)`` its margins under the unlearned and under the retrained models.
    """
    high, low = (u, r) if np.median(u) >= np.median(r) else (r, u)
    both = np.concatenate([u, r])
    if both.max() == both.min():
        return 0.0
    narrowest, widest = sorted((np.ptp(u), np.ptp(r)))
    if narrowest < COLLAPSED * widest:
        return CAP
    cuts = np.unique(both)  # values, not a grid: one stray model would stretch a grid over the gap
    ends = np.unique(cuts[np.linspace(0, len(cuts) - 1, INTERVAL_ENDS).astype(int)])
    errors = [(np.mean(low >= t), np.mean(high < t)) for t in cuts]
    for narrow, wide in ((high, low), (low, high)):  # inside an interval: the narrower population
        for i, a in enumerate(ends):
            inside = [((wide >= a) & (wide <= b), (narrow >= a) & (narrow <= b)) for b in ends[i:]]
            errors += [(np.mean(w), 1 - np.mean(n)) for w, n in inside]
    return max([epsilon_at(fpr, fnr) for fpr, fnr in errors] + [0.0])


def epsilon_at(fpr: float, fnr: float) -> float:
    """Epsilon of one threshold; 0 where exactly one of its errors is zero, 50 where both are."""
    if fpr == 0 and fnr == 0:
        return CAP
    if fpr == 0 or fnr == 0:
        return 0.0
    pair = [np.log(1 - DELTA - a) - np.log(b) if 1 - DELTA - a > 0 else -np.inf for a, b in ((fpr, fnr), (fnr, fpr))]
    return min(max(*pair, 0.0), CAP)
