"""Real images beside adversarial proxies: retained ones, and unlabelled ones under the label that the original gives.

A proxy stands where the attack left it; a real image stands where retained images do. A few of them count as much as
the many proxies beside them: each class's real images are repeated until they are as many as a class has proxies in the
mean, each further time turned, scaled and shifted a little. They count among the confident proxies: no attack touches
them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..adaptive.views import moved
from ..errors import UnlearningError
from ..pipeline.classifier import to_unit
from ..pipeline.proxies import ProxySet
from .run import Run, Stage

STRENGTH = 0.5  # of the moves: half of what targets are averaged over at most
GONE = -1  # in place of a label: the original gives the image a forgotten class


@dataclass(frozen=True)
class RealImages:
    """Images of retained classes: pixels ``(R, channels, H, W)`` in [0, 1], labels ``(R,)``; R may be 0."""

    pixels: Tensor
    labels: Tensor

    def beside(self, proxies: ProxySet, seed: int) -> ProxySet:
        """The proxies, and behind them these images, which were attacked by nobody and have no wrong label; their moved
        copies are drawn from the seed."""
        if not len(self.labels):
            return proxies
        rows = evened(self.labels, len(proxies) / len(proxies.labels.unique()))
        labels = self.labels[rows]
        own = None if proxies.own is None else torch.cat([proxies.own, torch.full_like(labels, -1)])
        real, again = self.pixels[rows], torch.zeros(len(rows), dtype=torch.bool)
        again[1:] = rows[1:] == rows[:-1]
        if again.any():
            real[again] = moved(real[again], STRENGTH, torch.Generator().manual_seed(seed))
        pixels = torch.cat([proxies.pixels, real])
        return replace(proxies, pixels=pixels, labels=torch.cat([proxies.labels, labels]), own=own)


@dataclass(frozen=True)
class RealParts:
    """What trains and what judges, no image in both; and for the report, where there were public images, "used" and
    "left_out"."""

    training: RealImages
    judging: RealImages
    facts: dict[str, dict[str, int]] = field(default_factory=dict)


def gather_real(run: Run, held_out_share: float) -> RealParts:
    """The run's retained and public images, split; two empty parts where it has neither."""
    pixels, labels, facts = [run.forget.pixels[:0]], [run.forget.labels[:0]], {}
    if run.retained is not None:
        pixels.append(run.retained.pixels)
        labels.append(run.retained.labels)
    if run.public is not None:
        answers = public_labels(run)
        there = answers != GONE
        pixels.append(run.public[there])
        labels.append(answers[there])
        facts["public"] = {"used": int(there.sum()), "left_out": int((~there).sum())}
    images, known = torch.cat(pixels), torch.cat(labels)
    rows = first_of_each(images)
    images, known = to_unit(images[rows], "cpu"), known[rows]
    training, judging = (RealImages(images[part], known[part]) for part in split(known, held_out_share, run.seed))
    return RealParts(training, judging, facts)


def public_labels(run: Run) -> Tensor:
    """The stage "public_labels": ``(N,)`` the original's answers on the public images, ``GONE`` for a forgotten one."""

    def make() -> Stage:
        return {"labels": retained_answers(run)}, {}

    return run.stage("public_labels", make, under="proxies")[0]["labels"]


def retained_answers(run: Run) -> Tensor:
    """The same, as the model is now.

    Raises:
        UnlearningError: it gives every one a forgotten class.
    """
    assert run.public is not None, "asked for where there are some"
    answers = run.classifier.predict_shared(run.public).argmax(1)
    answers = answers.masked_fill(torch.isin(answers, torch.tensor(list(run.forget_ids), dtype=torch.long)), GONE)
    if (answers == GONE).all():
        raise UnlearningError(
            f"the model gives all {len(answers)} images of public_dataset a forgotten class, so none can stand for what"
            " stays: give images of other classes, or leave it out."
        )
    return answers


def first_of_each(images: Tensor) -> Tensor:
    """Rows of ``(N, ...)`` without those that repeat an earlier one, which could else train and judge."""
    seen: dict[bytes, int] = {}
    for row, image in enumerate(images):
        seen.setdefault(image.contiguous().numpy().tobytes(), row)
    return torch.tensor(list(seen.values()), dtype=torch.long)


def split(labels: Tensor, held_out_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that train and rows that judge, of each class by the share, one at least in both; a single image trains."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    judging = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = order[labels[order] == label]
        most = len(mine) - 1
        judging[mine[: min(max(1, round(len(mine) * held_out_share)), most)]] = True
    return (~judging).nonzero().squeeze(1), judging.nonzero().squeeze(1)


def evened(labels: Tensor, each: float) -> Tensor:
    """Rows of ``(R,)``, those of a class repeated until they are about ``each``, all of them once at least."""
    counts = torch.bincount(labels)
    times = (each / counts.clamp_min(1)).round().clamp_min(1).long()
    return torch.arange(len(labels)).repeat_interleave(times[labels])


def joined(first: ProxySet, second: ProxySet) -> ProxySet:
    """One set of both, whose facts are the first's."""
    own = None if first.own is None or second.own is None else torch.cat([first.own, second.own])
    pixels, labels = (torch.cat([getattr(one, name) for one in (first, second)]) for name in ("pixels", "labels"))
    return replace(first, pixels=pixels, labels=labels, own=own)
