"""UNSC (arXiv 2404.13588): the runner-up as label, in the null space of what the retained images use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..config import option
from ..data.images import RetainSet
from .options import CONSTRAINTS, PRIORS, Constrained, Retained, Targets, Trained
from .plan import Plan
from .run import Run
from .stages import constrain, gather_subspaces, gather_targets

IMAGES_PER_CLASS = 100  # that the bases are made from; the code takes 24 to 256 of a class, by layer


def drawn_per_class(retain: RetainSet, most: int, seed: int) -> RetainSet:
    """``most`` images of each class at most, drawn at random, in the order of the set."""
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed))
    rows = [order[retain.labels[order] == k][:most] for k in retain.labels.unique()]
    chosen = torch.cat(rows).sort().values
    return RetainSet(retain.pixels[chosen], retain.labels[chosen])


@dataclass(kw_only=True)
class UNSC(Constrained, Targets, Retained, Trained):
    """ZS-PAG's predecessor, with real retained images: each forget image learns the class that the original ranks first
    among those that stay, by steps that leave every layer's outputs on the retained images alone.

    The images serve for the subspaces, never for a step. Plain SGD without momentum or decay; biases, norms and all
    that is no layer's weight are frozen; batch norm keeps its statistics. The energy threshold is .99; the code has
    that for CIFAR-100, and .97 + .003 a class elsewhere, which passes 1 beyond ten classes. The classes' Gram matrices
    are averaged in place of the code's two merges of bases, one class after the other (``subspace_merge="gpm"`` and
    ``"truncated"``); convolutions keep their stride and padding, which the code ignores; the rank is the smallest that
    reaches the threshold, not one less. Labels are those of the images as they are, where the code asks the original
    again for every augmented view. A batch is 32 and not 512.

    ``constraint="soft"`` damps by the same images' use of each direction, and ``constraint="none"`` leaves the labels
    alone; ``targets`` and ``tilt`` name other labels, with the images in the proxies' place.
    """

    description: ClassVar[str] = (
        "UNSC ([arXiv 2404.13588](https://arxiv.org/abs/2404.13588)): each forget image is given the most likely class"
        " among those that stay, by steps in the null space of what retained images use."
    )

    constraint: str = option("hard", "Leave what retained images use alone, damp it, or neither", choices=CONSTRAINTS)
    targets: str = option("second_best", "Targets of the forget images", choices=("paper", *PRIORS))
    learning_rate: float | None = option(0.04, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(None, "Unset: 25 up to 20 labels, 20 above.", above=0)

    def published(self, num_labels: int) -> dict:
        """By whether there are 20 labels or fewer."""
        return {"num_train_epochs": 25 if num_labels <= 20 else 20}

    def described(self) -> list[str]:
        """And how steps were taken, where not in the null space."""
        other = {
            "soft": "Here they were damped by how much these images use a direction.",
            "none": "Here none was confined.",
        }
        return [*super().described(), *([other[self.constraint]] if self.constraint in other else [])]

    def prepare(self, run: Run) -> Plan:
        """Runner-up labels, in the null space of retained images."""
        images = drawn_per_class(run.kept, IMAGES_PER_CLASS, run.seed)
        used = self.constraint != "none" or self.by_influence
        subspaces = gather_subspaces(run, images, self) if used else None
        targets = gather_targets(run, self, None, images, subspaces.grams if subspaces else None).targets
        plan = Plan(run.forget.pixels, targets, list(run.layers))
        if self.constraint != "none" and subspaces is not None:
            constrain(run, plan, subspaces, self.constraint, self.threshold, run.forget.pixels)
        return plan
