"""Forget images -> the target distribution that each is trained on (section 3.4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGNS = ("eq10", "upweight")
PENALTY, PAPER_STEPS = 1.0, 100  # of the literal form: weight of the penalty on similarity, steps of Adam
TAU = 5.0  # of the tilt, in standard deviations of the influence: large means the prior alone
BETA = 10.0  # of TRW, as its reviewers quote it
SIMILARITY_TEMPERATURE = 0.1  # "low" by the same source; the number is ours

Ids = Sequence[int]  # of classes


@dataclass(frozen=True)
class PseudoLabels:
    """targets ``(N, C)``, rows on the simplex; influence ``(N, C)`` or None, see
    :func:`zspag_hf.pipeline.influence.label_influence`."""

    targets: Tensor
    influence: Tensor | None


def pseudo_labels(
    logits: Tensor,
    forget_ids: Ids,
    influence: Tensor | None,
    prior: str = "renormalised",
    temperature: float = TAU,
    sign: str = "eq10",
) -> PseudoLabels:
    """Target = prior x exp(+-influence / tau), forgotten classes at exactly 0.

    The prior "renormalised" is the original softmax without the forgotten classes, computed from masked logits rather
    than by division, which fails for an over-confident model; "second_best" is its top class alone (UNSC, arXiv
    2404.13588), which no tilt changes; "uniform" knows no image. The influence is divided by its own standard deviation
    over retained labels, which makes ``temperature`` a pure number.

    Args:
        logits: ``(N, C)`` of the original model on the forget images.
        influence: ``(N, C)``, or None for the prior alone.
        sign: "eq10", as the paper prints it: removing (x, y) inserts epsilon = -1/N and labels of small influence gain;
            "upweight": training on (x, y) upweights it, and labels of large influence gain. With the renormalised prior
            neither differs from no tilt in acc_rt or in distance to a retrained model (CIFAR-10, ViT, class cat, three
            seeds: .0473 nats with eq10, .0471 without); the printed sign is the default.
    """
    keep = retained_mask(logits.shape[1], forget_ids)
    scores = prior_scores(logits, keep, prior)
    if influence is not None:
        scale = influence.double()[:, keep].std(correction=0).clamp_min(1e-300) * temperature
        scores = scores + (1 if sign == "upweight" else -1) * influence.double() / scale
    targets = scores.masked_fill(~keep, -torch.inf).softmax(1)
    return PseudoLabels(targets.float(), influence)


def prior_scores(logits: Tensor, keep: Tensor, prior: str) -> Tensor:
    """Logits ``(N, C)`` float64 of a prior, -inf where its probability is 0; see :func:`pseudo_labels`."""
    masked = logits.double().masked_fill(~keep, -torch.inf)
    if prior == "second_best":
        return torch.full_like(masked, -torch.inf).scatter(1, masked.argmax(1, keepdim=True), 0.0)
    return masked if prior == "renormalised" else torch.zeros_like(masked).masked_fill(~keep, -torch.inf)


def tilted_reweighting(
    logits: Tensor, forget_ids: Ids, head_weight: Tensor, class_ids: Ids | None = None, prior: str = "renormalised"
) -> PseudoLabels:
    """Target = prior x exp(BETA s_k), forgotten classes at exactly 0 (TRW, arXiv 2506.20893).

    s_k is the similarity of the forgotten class to class k (:func:`class_similarity`), the same for every image. Of all
    distributions with that mean similarity the target is the nearest to the prior in KL. All in log space: for an
    over-confident model 1 - p_u is 0 in float32 and cannot be divided by.

    Args:
        logits, prior: as in :func:`pseudo_labels`; TRW's prior is "renormalised". head_weight, class_ids: as in
            :func:`class_similarity`.
    """
    scores = prior_scores(logits, retained_mask(logits.shape[1], forget_ids), prior)
    similarity = class_similarity(head_weight, forget_ids, class_ids).to(scores)
    return PseudoLabels((scores + BETA * similarity).softmax(1).float(), None)


def class_similarity(head_weight: Tensor, forget_ids: Ids, class_ids: Ids | None = None) -> Tensor:
    """How near each retained class is to the forgotten ones: s ``(C,)`` float64, non-negative, with sum 1; 0 on
    forgotten classes.

    Cosines between rows of the head ``(C, d)``, sharpened by a softmax over the retained classes, the mean over the
    classes of this request (the paper forgets one; unset: all). The rows are centred first: a vector added to all of
    them changes no probability. Rows of classes that earlier requests forgot say nothing any more, and are left out.
    """
    rows, keep = head_weight.detach().double().cpu(), retained_mask(len(head_weight), forget_ids)
    asked = list(forget_ids if class_ids is None else class_ids)
    meant = keep.clone()
    meant[asked] = True
    rows = torch.nn.functional.normalize(rows - rows[meant].mean(0), dim=1)
    cosines = rows[asked] @ rows.T
    return (cosines / SIMILARITY_TEMPERATURE).masked_fill(~keep, -torch.inf).softmax(1).mean(0)


def paper_pseudo_labels(
    influence: Tensor, labels: Tensor, forget_ids: Ids, seed: int = 0, sign: str = "eq10"
) -> PseudoLabels:
    """Eq. 7-10 as written: y = softmax(z), z random, descends Delta L (eq. 10) plus a penalty on similarity to y_i.

    The paper gives no optimiser, no number of steps, no weight and no form for the penalty. Chosen here: Adam at .1,
    and -KL(y || q_i) with q_i the true label smoothed by .1, since KL to a hard label is infinite. Forgotten classes
    are masked, without which their accuracy could not reach 0.

    Args:
        influence: ``(N, C)`` a_ik; eq. 10 asks to lower sum_k y_k a_ik, "upweight" to raise it. labels: ``(N,)``.
    """
    n, c = influence.shape
    keep = retained_mask(c, forget_ids)
    a = influence / influence[:, keep].std(correction=0).clamp_min(1e-30)
    a = -a if sign == "upweight" else a
    q = torch.full((n, c), 0.1 / c).scatter(1, labels[:, None], 0.9 + 0.1 / c)
    z = torch.randn(n, c, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    with torch.enable_grad():
        for _ in range(PAPER_STEPS):
            log_y = z.masked_fill(~keep, -torch.inf).log_softmax(1).masked_fill(~keep, -1e9)
            y = log_y.exp()
            change = (y * a).sum(1)  # eq. 10, up to the factor 1/N
            similarity = -(y * (log_y.clamp_min(-1e4) - q.log())).sum(1)
            optimizer.zero_grad()
            (change + PENALTY * similarity).sum().backward()
            optimizer.step()
    return PseudoLabels(z.detach().masked_fill(~keep, -torch.inf).softmax(1), influence)


def retained_mask(num_labels: int, forget_ids: Ids) -> Tensor:
    """``(C,)`` bool: True for the classes that stay."""
    keep = torch.ones(num_labels, dtype=torch.bool)
    keep[list(forget_ids)] = False
    return keep
