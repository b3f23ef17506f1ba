"""What a method is: two hooks. Data, loop, report and saving are shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..parallel.batches import KeptProxies
from ..pipeline.classifier import exact_batch_norms, to_unit
from ..pipeline.constraint import HardConstraint, SoftConstraint

PAIRED = ("proxy_pixels", "proxy_targets")


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
        callbacks: for this run only.
        facts: what goes into the report: "proxies", "layers", "choice", "curve".
    """

    pixels: Tensor | None
    targets: Tensor | None
    trainable: list[str] | None
    blocks: Tensor | None = None
    retarget: Callable[[int], Tensor] | None = None
    edit: Callable[[], None] | None = None
    constraint: HardConstraint | SoftConstraint | None = None
    keepers: list = field(default_factory=list)
    proxies: KeptProxies | None = None
    train_mode: bool = False
    callbacks: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)


class Method:
    """Base of every method.

    Attributes:
        description: what it does, for the card of a model, whatever its options: Markdown, with a link to its paper.
        forgets: "classes", "images" (whose classes stay), or both: by whether ``forget_classes`` is given.
        needs_retain: whether the method cannot work without retained data.
        takes_retain: whether it has a form with retained data, which ``with_retain`` asks for. A method that neither
            needs nor takes them, or is not asked to, never sees them.
        trains: False for a method that changes weights at once.
        own_loop: whether it trains in a loop of its own, with optimizers of its own, for ``max_steps``.
        constrainable: whether ``constraint`` may confine it; not where weights begin anew.
        takes_targets: whether ``pseudo_label``, ``prior`` and ``tilt`` may name what the forget images are trained on,
            in place of the method's own.
    """

    description: str
    forgets: tuple[str, ...] = ("classes",)
    needs_retain = False
    takes_retain = False
    constrainable = True
    takes_targets = False
    trains = True
    own_loop = False

    @classmethod
    def settings(cls, num_labels: int) -> dict:
        """Published options by the number of labels, for options that are not given; their source stands in the
        method's docstring."""
        return {"learning_rate": 0.01, "num_train_epochs": 10} if cls.trains else {}

    @classmethod
    def retained_settings(cls, num_labels: int) -> dict:
        """The same for the form with retained data."""
        return cls.settings(num_labels)

    @staticmethod
    def reads_proxies(constrained: bool, retained: bool, by_influence: bool) -> bool:
        """Whether proxies are made: under a constraint, in the form with retained data, for targets by influence."""
        return constrained or by_influence

    def prepare(self, trainer) -> Plan:
        raise NotImplementedError

    def parts(self, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The batch as parts whose losses are added up, each with a backward pass of its own: the images and those
        beside them, which one after the other take half the memory of both at once."""
        if "proxy_pixels" not in inputs:
            return [inputs]
        return [
            {name: value for name, value in inputs.items() if name not in PAIRED},
            {name: inputs[name] for name in (*PAIRED, "weights")},
        ]

    def compute_loss(self, trainer, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Soft cross-entropy between the model's outputs and the targets, weighted by row
        (:class:`zspag_hf.parallel.batches.SharedBatches`)."""
        logits = self.logits(trainer, model, inputs["pixels"])
        return (inputs["weights"] * F.cross_entropy(logits, inputs["targets"], reduction="none")).sum()

    def logits(self, trainer, model: torch.nn.Module, pixels: Tensor) -> Tensor:
        """Through ``model``, the wrapped one that gradients are averaged by; uint8 pixels, or floats in [0, 1]."""
        pixels = to_unit(pixels, trainer.classifier.device)
        with exact_batch_norms(model, len(pixels)):
            return model(pixel_values=trainer.classifier.normalize(pixels)).logits.float()
