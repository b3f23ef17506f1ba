"""UNSC (arXiv 2404.13588): the runner-up as label, in the null space of what the retained images use."""

from __future__ import annotations

import torch

from ..data.images import RetainSet
from .base import Method, Plan
from .stages import build_constraint, gather_subspaces, gather_targets, layer_facts

IMAGES_PER_CLASS = 100  # that the bases are made from; the code takes 24 to 256 of a class, by layer


def drawn_per_class(retain: RetainSet, most: int, seed: int) -> RetainSet:
    """``most`` images of each class at most, drawn at random, in the order of the set."""
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed))
    rows = [order[retain.labels[order] == k][:most] for k in retain.labels.unique()]
    chosen = torch.cat(rows).sort().values
    return RetainSet(retain.pixels[chosen], retain.labels[chosen])


class UNSC(Method):
    """ZS-PAG's predecessor, with real retained images: each forget image learns the class that the original ranks first
    among those that stay, by steps that leave every layer's outputs on the retained images alone.

    The images serve for the subspaces, never for a step. Plain SGD without momentum or decay; biases, norms and all
    that is no layer's weight are frozen; batch norm keeps its statistics. The energy threshold is .99; the code has
    that for CIFAR-100, and .97 + .003 a class elsewhere, which passes 1 beyond ten classes. The classes' Gram matrices
    are averaged in place of the code's merging one class after the other (``subspace_merge="literal"`` stacks their
    bases instead); convolutions keep their stride and padding, which the code ignores; the rank is the smallest that
    reaches the threshold, not one less. Labels are those of the images as they are, where the code asks the original
    again for every augmented view. A batch is 32 and not 512.

    ``constraint="soft"`` damps by the same images' use of each direction, and ``constraint="none"`` leaves the labels
    alone; ``pseudo_label``, ``prior`` and ``tilt`` name other labels, with the images in the proxies' place.
    """

    description = (
        "UNSC ([arXiv 2404.13588](https://arxiv.org/abs/2404.13588)): each forget image is given the most likely class"
        " among those that stay, by steps in the null space of what retained images use."
    )
    needs_retain = True
    takes_targets = True

    @staticmethod
    def settings(num_labels: int) -> dict:
        epochs = 25 if num_labels <= 20 else 20
        published = {"learning_rate": 0.04, "num_train_epochs": epochs, "constraint": "hard", "energy_threshold": 0.99}
        return published | {"pseudo_label": "prior", "prior": "second_best", "tilt": "none"}

    @staticmethod
    def reads_proxies(constrained: bool, retained: bool, by_influence: bool) -> bool:
        return False

    def prepare(self, trainer) -> Plan:
        args, forget = trainer.args, trainer.forget
        images = drawn_per_class(trainer.retain, IMAGES_PER_CLASS, args.seed)
        used = args.constraint != "none" or args.by_influence
        subspaces = gather_subspaces(trainer, images) if used else None
        targets = gather_targets(trainer, {}, known=(images, subspaces)).targets
        plan = Plan(forget.pixels, targets, list(trainer.layers))
        if args.constraint == "none":
            return plan
        plan.constraint = build_constraint(trainer, subspaces, args.energy_threshold)
        plan.facts["layers"] = layer_facts(trainer, plan.constraint, subspaces, forget.pixels)
        plan.facts["owner"] = subspaces.grams.owner
        return plan
