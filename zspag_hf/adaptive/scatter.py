"""Forget features -> features as retained classes have: the term that forgets in depth, and where it stops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel.processes import rank_and_size, summed

WIDTHS = (0.05, 0.2, 0.8)  # of the kernels, in squared distances between unit vectors, which are 0 to 4
HALFWAY = (
    0.5  # between the original's scatter and the proxies': retained models end at .15 to .97 of the way, .5 in the mean
)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """``(n, m)`` sum of Gaussian kernels of unit vectors ``(n, D)`` and ``(m, D)``."""
    distance = (2 - 2 * x @ y.T).clamp_min(0)
    return torch.stack([torch.exp(-distance / width) for width in WIDTHS]).sum(0)


def off_diagonal_mean(matrix: Tensor) -> Tensor:
    """Mean over pairs of two different rows; 0 of a single one."""
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / max(n * (n - 1), 1)


def joint_discrepancy(features: Tensor, targets: Tensor, others: Tensor, their_targets: Tensor) -> Tensor:
    """Squared maximum mean discrepancy (Gretton et al. 2012, unbiased) between two samples of pairs (unit feature,
    distribution over classes): the kernel of a pair is that of the features times the chance that both draw one class.

    So forget images that look like a class are compared with proxies of that class, and not with any.

    Args:
        features ``(n, D)``, targets ``(n, C)``: of forget images. others ``(m, D)``, their_targets ``(m, C)``: of
            proxies drawn like them.
    """
    same = targets @ targets.T
    here = off_diagonal_mean(kernel(features, features) * same)
    there = off_diagonal_mean(kernel(others, others) * (their_targets @ their_targets.T))
    across = (kernel(features, others) * (targets @ their_targets.T)).mean()
    return (here + there - 2 * across) / same.mean().clamp_min(1e-3)  # of any number of classes one scale


def scatter(features: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine of two unit features ``(n, D)`` whose labels ``(n,)`` are the same, over classes; 1: one direction.
    nan where no class has two."""
    sums = []
    for label in labels.unique():
        mine = features[labels == label]
        if len(mine) > 1:
            sums.append((mine.sum(0).square().sum() - len(mine)) / (len(mine) * (len(mine) - 1)))
    return torch.stack(sums).mean() if sums else features.new_tensor(torch.nan)


def drawn_scatter(features: Tensor, weights: Tensor) -> float:
    """Mean cosine of two unit features ``(P, D)`` drawn by weights ``(P,)``, which sum to 1, and not the same one."""
    alone = float(weights.square().sum())
    return (float((weights @ features).square().sum()) - alone) / max(1 - alone, 1e-12)


def scatter_goal(forget: Tensor, labels: Tensor, proxies: Tensor, proxy_labels: Tensor, targets: Tensor) -> float:
    """The scatter at which the term rests: halfway from the original's, of forget features ``(N, D)``, to that of
    proxies drawn by the classes in the forget images' targets ``(N, C)``, which is the least that answers allow.

    Measured: of the confident proxies of six networks it is that of real retained images so drawn, to .02 on five of
    them; retrained models end between (digits .59 of .85 and .06, .72 of 1.00 and .57, .66 of .99 and .60; faces .83 of
    .96 and .45; CIFAR-10 .48 of .48 and .31).
    """
    forget, proxies = F.normalize(forget, dim=1), F.normalize(proxies, dim=1)
    counts = torch.bincount(proxy_labels, minlength=targets.shape[1])
    least = []
    for label in labels.unique():
        share = targets[labels == label].mean(0) * (counts > 0)
        weights = (share / counts.clamp_min(1))[proxy_labels]
        least.append(drawn_scatter(proxies, weights / weights.sum()))
    original = float(scatter(forget, labels))
    goal = sum(least) / len(least)
    return goal + HALFWAY * (original - goal)


def gathered(rows: Tensor, most: int) -> Tensor:
    """The rows of all processes, ``(processes x most, ...)``, zeros where one has fewer than ``most``.

    The value is the same in each; its gradient is of the process's own rows, times the number of processes, as the
    optimizer sees the mean over them.
    """
    rank, size = rank_and_size()
    if size == 1:
        return rows
    mine = rows.new_zeros(size * most, *rows.shape[1:])
    mine[rank * most : rank * most + len(rows)] = rows.detach()
    mine = summed(mine)
    mine[rank * most : rank * most + len(rows)] += size * (rows - rows.detach())
    return mine
