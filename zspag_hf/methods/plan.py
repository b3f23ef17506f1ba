"""What a method decides before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..parallel.batches import KeptProxies
from ..pipeline.constraint import HardConstraint, SoftConstraint


@dataclass
class Plan:
    """What ``prepare`` decides before the first step.

    Attributes:
        pixels: ``(N, channels, H, W)``, the images to train on, uint8 or float in [0, 1]; None where there is nothing
            to train, and ``edit`` is all.
        targets: ``(N, C)`` their target distributions.
        trainable: names of the layers whose weights move, everything else is frozen; None: every parameter moves.
        blocks: ``(N,)`` int, a number for each image, which comes to the loss as ``inputs["blocks"]``; images of one
            number make batches of their own, and numbers come in order in each epoch. None: all are mixed.
        retarget: epoch -> ``(N, C)``, targets that are drawn anew in each epoch, or None.
        edit: changes the weights at once, before the first step, or None.
        constraint: confines the steps, or None.
        keepers: further objects with ``before_step`` and ``after_step``, called with the optimizer around every step;
            without one around ``edit``.
        proxies: images beside those to train on, one for each; or None.
        train_mode: the model trains in train mode (batch norm follows the data, dropout is on) and not, as unlearning
            does, in eval mode.
        callbacks: of transformers, for this run only.
        facts: what goes into the report: "proxies", "layers", "choice", "curve".
        projected: proxies' "features" ``(P, D)``, unit rows, and "labels" ``(P,)``, for the picture of an evaluation;
            or None.
    """

    pixels: Tensor | None
    targets: Tensor | None
    trainable: list[str] | None = None
    blocks: Tensor | None = None
    retarget: Callable[[int], Tensor] | None = None
    edit: Callable[[], None] | None = None
    constraint: HardConstraint | SoftConstraint | None = None
    keepers: list = field(default_factory=list)
    proxies: KeptProxies | None = None
    train_mode: bool = False
    callbacks: list = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    projected: Mapping[str, Tensor] | None = None

    def apply_edit(self) -> None:
        """Change the weights at once, kept and confined as a step would be."""
        assert self.edit is not None
        around = [*self.keepers, *([self.constraint] if self.constraint else [])]
        for keeper in around:
            keeper.before_step()
        self.edit()
        for keeper in around:
            keeper.after_step()
