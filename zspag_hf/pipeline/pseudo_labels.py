"""Forget images -> the target distribution that each is trained on (section 3.4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGNS = ("upweight", "eq10")
PENALTY, PAPER_STEPS = 1.0, 100  # of eq. 10: weight of the KL, steps of Adam
TAU = 5.0  # of the tilt, in standard deviations of the influence: large means the prior alone
BETA = 10.0  # of TRW, as its reviewers quote it
SIMILARITY_TEMPERATURE = 1.0  # ours. "Low" by the same source; .1 makes one class of every image (cats: all dogs)

SURE, COMMON, FEWEST = 0.9, 0.2, 5  # answers that give a wrong label away: probability, share of a class, images

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
    sign: str = "upweight",
    trained: Tensor | None = None,
) -> PseudoLabels:
    """Target = prior x exp(+-influence / tau), forgotten classes at exactly 0.

    The prior "renormalised" is the original softmax without the forgotten classes, computed from masked logits rather
    than by division, which fails for an over-confident model; "second_best" is its top class alone (UNSC, arXiv
    2404.13588), which no tilt changes; "uniform" knows no image. The influence is divided by its own standard deviation
    over retained labels, which makes ``temperature`` a pure number.

    Args:
        logits: ``(N, C)`` of the original model on the forget images.
        influence: ``(N, C)``, or None for the prior alone.
        sign: see :func:`paper_pseudo_labels`. With the renormalised prior neither sign differs from no tilt in acc_rt
            or in distance to a retrained model (CIFAR-10, ViT, class cat, three seeds: .0473 nats with eq10, .0471
            without).
        trained: ``(N,)``, as in :func:`allowed_mask`.
    """
    keep = retained_mask(logits.shape[1], forget_ids)
    allowed = allowed_mask(logits.shape[1], forget_ids, trained)
    scores = prior_scores(logits, allowed, prior)
    if influence is not None:
        scale = influence.double()[:, keep].std(correction=0).clamp_min(1e-300) * temperature
        scores = scores + (1 if sign == "upweight" else -1) * influence.double() / scale
    targets = scores.masked_fill(~allowed, -torch.inf).softmax(1)
    return PseudoLabels(targets.float(), influence)


def prior_scores(logits: Tensor, keep: Tensor, prior: str) -> Tensor:
    """Logits ``(N, C)`` float64 of a prior, -inf where its probability is 0; see :func:`pseudo_labels`."""
    masked = logits.double().masked_fill(~keep, -torch.inf)
    if prior == "second_best":
        return torch.full_like(masked, -torch.inf).scatter(1, masked.argmax(1, keepdim=True), 0.0)
    return masked if prior == "renormalised" else torch.zeros_like(masked).masked_fill(~keep, -torch.inf)


def tilted_reweighting(
    logits: Tensor,
    forget_ids: Ids,
    head_weight: Tensor,
    class_ids: Ids | None = None,
    prior: str = "renormalised",
    trained: Tensor | None = None,
) -> PseudoLabels:
    """Target = prior x exp(BETA s_k), forgotten classes at exactly 0 (TRW, arXiv 2506.20893).

    s_k is the similarity of the forgotten class to class k (:func:`class_similarity`), the same for every image. Of all
    distributions with that mean similarity the target is the nearest to the prior in KL. All in log space: for an
    over-confident model 1 - p_u is 0 in float32 and cannot be divided by.

    Args:
        logits, prior: as in :func:`pseudo_labels`; TRW's prior is "renormalised". head_weight, class_ids: as in
            :func:`class_similarity`. trained: as in :func:`allowed_mask`.
    """
    scores = prior_scores(logits, allowed_mask(logits.shape[1], forget_ids, trained), prior)
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
    influence: Tensor,
    labels: Tensor,
    forget_ids: Ids,
    seed: int = 0,
    sign: str = "upweight",
    masked: bool = True,
    trained: Tensor | None = None,
) -> PseudoLabels:
    """Eq. 7-10: y = softmax(z), z random, descends the change of the retained loss, away from the true label.

    The paper gives no optimiser, no number of steps and no weight; here Adam at .1. What keeps y from y_i is the mask:
    forgotten classes have no share, without which their accuracy need not reach 0. Without the mask it is the paper's
    KL, as -KL(onehot y_i || y) = log y[y_i], of weight PENALTY. (Under the mask a KL between y and the smoothed y_i
    only lowers y's entropy: two seeds then agree on 24 % of the labels, and on 98 % without it.)

    Args:
        influence: ``(N, C)`` a_ik of :func:`.influence.label_influence`. labels: ``(N,)``.
        sign: "upweight": training *on* (x, y) upweights it, so the retained loss falls where sum_k y_k a_ik is large.
            "eq10", the printed one: *removing* (x, y) inserts epsilon = -1/N, and the sum is lowered; trained on, that
            is the most harmful label. Agreement with a retrained model's answers (CIFAR-10, ViT, cat): 59 % and 1 %.
        masked: forgotten classes at exactly 0, and no penalty for images of theirs. trained: as in
            :func:`allowed_mask`, at exactly 0 without the mask too.
    """
    n, c = influence.shape
    gone = forget_ids if masked else ()
    keep, allowed = retained_mask(c, gone), allowed_mask(c, gone, trained)
    a = influence / influence[:, keep].std(correction=0).clamp_min(1e-30)
    a = -a if sign == "upweight" else a
    z = torch.randn(n, c, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    with torch.enable_grad():
        for _ in range(PAPER_STEPS):
            log_y = z.masked_fill(~allowed, -torch.inf).log_softmax(1)
            change = (log_y.exp() * a).sum()  # eq. 10, up to the factor 1/N
            similarity = log_y.gather(1, labels[:, None])[keep[labels]].sum()
            optimizer.zero_grad()
            (change + PENALTY * similarity).backward()
            optimizer.step()
    return PseudoLabels(z.detach().masked_fill(~allowed, -torch.inf).softmax(1), influence)


def retained_mask(num_labels: int, forget_ids: Ids) -> Tensor:
    """``(C,)`` bool: True for the classes that stay."""
    keep = torch.ones(num_labels, dtype=torch.bool)
    keep[list(forget_ids)] = False
    return keep


def allowed_mask(num_labels: int, forget_ids: Ids, trained: Tensor | None = None) -> Tensor:
    """``(C,)`` bool: True for the classes that stay; or ``(N, C)``, without the label that an image was trained under.

    An image that was trained under a wrong label is answered with it because of the image: a model that was trained
    without it would not say so.

    Args:
        trained: ``(N,)`` that label, -1 for an image that was trained under its class; None where all were.
    """
    keep = retained_mask(num_labels, forget_ids)
    if trained is None:
        return keep
    allowed, rows = keep.repeat(len(trained), 1), (trained >= 0).nonzero().squeeze(1)
    allowed[rows, trained[rows]] = False
    return allowed


def seen_labels(logits: Tensor, labels: Tensor, forget_ids: Ids) -> Tensor:
    """The wrong label that each image was trained under, ``(N,)``, as far as the original's answers tell; -1 for none.

    Of each forgotten class, the images that are answered with one and the same retained class, where those to which it
    gives a probability of at least ``SURE`` are at least ``COMMON`` of the class's images and at least ``FEWEST``. A
    model that merely confuses two classes is not that sure of so many images that it was trained on; once it is, the
    less sure answers of that class come from there too.

    Args:
        logits: ``(N, C)`` of the original on the images themselves. labels: ``(N,)`` their classes.
    """
    p, answers = logits.double().softmax(1).max(1)
    sure = (p >= SURE) & retained_mask(logits.shape[1], forget_ids)[answers]
    found = torch.full_like(labels, -1)
    for label in labels.unique().tolist():
        counts = torch.bincount(answers[sure & (labels == label)], minlength=logits.shape[1])
        k = int(counts.argmax())
        if counts[k] >= max(FEWEST, COMMON * int((labels == label).sum())):
            found[(labels == label) & (answers == k)] = k
    return found
