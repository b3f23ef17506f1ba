"""Forget images -> proxies: adversarial stand-ins for the retained data that is gone (eq. 1-2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from .attacks import Attack
from .classifier import PixelClassifier, gradient_batch, to_unit
from .pseudo_labels import Ids, allowed_mask, retained_mask

POLICIES = ("quota", "second")

Pairs = list[tuple[int, int]]  # (image index, class) that it is attacked towards


@dataclass(frozen=True)
class ProxySet:
    """Adversarial stand-ins for retained images.

    Attributes:
        pixels: ``(P, channels, H, W)`` float in [0, 1], on the CPU.
        labels: ``(P,)`` the original model's answer, always a retained class.
        attempted: attacks made.
        attack_success_rate: share of attacks that ended in any retained class, the paper's definition, in [0, 1].
        per_class: retained class id -> proxies labelled with it.
        shortfall: retained class id -> proxies missing from its quota; classes beyond the total bound have all of it.
        own: ``(P,)`` of the image behind each, as in :func:`make_proxies`; None where that was.
    """

    pixels: Tensor
    labels: Tensor
    attempted: int
    attack_success_rate: float
    per_class: dict[int, int] = field(repr=False)
    shortfall: dict[int, int] = field(repr=False)
    own: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def second_best(logits: Tensor, forget_ids: Ids, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The logits ``(N, C)`` with -inf where an image is not to be attacked towards a class, and each image's target."""
    scores = logits.masked_fill(~allowed_mask(logits.shape[1], forget_ids, own), -torch.inf)
    return scores, scores.argmax(1)  # eq. 2, over all retained classes


def quota_pairs(
    logits: Tensor, forget_ids: Ids, per_class: int, max_proxies: int, own: Tensor | None = None
) -> tuple[Pairs, int]:
    """Which image is attacked towards which class, and the quota per class that was granted.

    Eq. 2 sends each image to its second-best class; of 1,000 cat images that left one class empty and four under 50. So
    every retained class takes the images with the largest logit for it, those whose second-best class it is first. One
    image may serve several classes. Where classes x quota exceeds ``max_proxies`` the quota shrinks, at last to one
    proxy for each of the classes with the largest mean logit. ``own`` ``(N,)`` is a class that an image is not attacked
    towards, -1 for none.
    """
    keep = retained_mask(logits.shape[1], forget_ids)
    scores, second = second_best(logits, forget_ids, own)
    likeliest = logits.masked_fill(~keep, -torch.inf).mean(0).argsort(descending=True)
    classes = likeliest[: min(int(keep.sum()), max_proxies)].tolist()
    quota = min(per_class, max(1, max_proxies // len(classes)), len(logits))
    bonus = 2 * (logits[:, keep].max() - logits[:, keep].min() + 1)
    pairs = []
    for k in classes:
        order = (scores[:, k] + bonus * (second == k)).argsort(descending=True)
        pairs += [(i, k) for i in order[:quota].tolist() if scores[i, k] > -torch.inf]
    return pairs, quota


def attack_pairs(
    classifier: PixelClassifier,
    pixels: Tensor,
    pairs: Pairs,
    attack: Attack,
    accept: Tensor | None = None,
    own: Tensor | None = None,
    disable_progress: bool = True,
) -> tuple[Tensor, Tensor, Pairs, Pairs]:
    """One attack on every pair, processes share the batches: pixels, answers and pairs of what was taken, and the pairs
    that failed. Taken are answers in ``accept`` (``(C,)`` bool) or the class aimed at, none of ``own`` (``(N,)``)."""
    moved = torch.zeros(len(pairs), *pixels.shape[1:], dtype=to_unit(pixels[:0], "cpu").dtype)
    answers = torch.zeros(len(pairs), dtype=torch.long)
    batches = my_batches(len(pairs), gradient_batch(pixels))
    for rows in tqdm(batches, desc=f"Proxies (eps {attack.eps:.3g})", disable=disable_progress):
        index, target = (torch.tensor(column) for column in zip(*pairs[rows], strict=True))
        result = attack(classifier, pixels[index], target)
        moved[rows], answers[rows] = result.pixels, result.predicted
    moved, answers = summed(moved), summed(answers)
    take = answers == torch.tensor([k for _, k in pairs]) if accept is None else accept[answers]
    if own is not None:
        take &= answers != own[[i for i, _ in pairs]]
    taken, failed = ([pairs[i] for i in part.nonzero().squeeze(1).tolist()] for part in (take, ~take))
    return moved[take], answers[take], taken, failed


def make_proxies(
    classifier: PixelClassifier,
    pixels: Tensor,
    forget_ids: Ids,
    attack: Attack,
    *,
    policy: str = "quota",
    per_class: int = 100,
    max_proxies: int = 1000,
    eps_doublings: int = 2,
    disable_progress: bool = True,
    logits: Tensor | None = None,
    own: Tensor | None = None,
) -> ProxySet:
    """Attack forget images into the retained classes.

    Args:
        pixels: ``(N, channels, H, W)`` forget images, uint8 or float in [0, 1].
        forget_ids: every forgotten class; none is ever a target, and a proxy that ends in one is dropped.
        policy: "quota", see :func:`quota_pairs`; "second", the literal eq. 2, one attack an image.
        eps_doublings: images that did not cross are attacked again with twice the radius, this many times (quota only).
        logits: ``(N, C)`` of the images, where they are known.
        own: ``(N,)`` a retained class of which an image may be no proxy, -1 for none: its own class where that stays,
            least of all by itself; or a wrong label that it was trained under.

    Raises:
        UnlearningError: no attack crossed, or no class is retained.
    """
    keep = retained_mask(classifier.num_labels, forget_ids)
    if not keep.any():
        raise UnlearningError(
            f"all {classifier.num_labels} classes are to be forgotten: leave at least one out of forget_ids."
        )
    logits = classifier.predict_shared(pixels) if logits is None else logits
    if policy == "second":
        targets = second_best(logits, forget_ids, own)[1].tolist()
        pairs, quota, eps_doublings = list(enumerate(targets))[:max_proxies], 0, 0
    else:
        pairs, quota = quota_pairs(logits, forget_ids, per_class, max_proxies, own)
    images, answers, pending, stronger = [], [], pairs, attack
    sources = list[int]()
    for doubling in range(eps_doublings + 1):
        if pending:
            stronger = attack.at_eps(attack.eps * 2**doubling) if doubling else attack
            accept = keep if doubling == eps_doublings else None
            part = attack_pairs(classifier, pixels, pending, stronger, accept, own, disable_progress)
            images.append(part[0])
            answers.append(part[1])
            sources += [i for i, _ in part[2]]
            pending = part[3]
    labels = torch.cat(answers)
    if not len(labels):
        raise UnlearningError(
            f"none of {len(pairs)} attacks left the forgotten classes at eps {stronger.eps:.3g}: raise attack_eps or"
            " attack_steps."
        )
    counts = torch.bincount(labels, minlength=classifier.num_labels).tolist()
    retained = keep.nonzero().squeeze(1).tolist()
    return ProxySet(
        torch.cat(images),
        labels,
        len(pairs),
        len(labels) / len(pairs),
        {k: counts[k] for k in retained},
        {k: quota - counts[k] for k in retained if counts[k] < quota},
        None if own is None else own[sources],
    )
