"""What a method is: two hooks. Data, loop, report and saving are shared."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batches import KeptProxies
from ..classifier import exact_batch_norms, to_unit
from ..constraint import HardConstraint, SoftConstraint


@dataclass
class Plan:
    """What ``prepare`` decides before the first step.

    Attributes:
        pixels: ``(N, channels, H, W)``, the images to train on, uint8 or float in [0, 1].
        targets: ``(N, C)`` their target distributions.
        trainable: names of the layers whose weights move; everything else is frozen.
        constraint: confines the steps, or None.
        proxies: to be kept alongside, or None.
        callbacks: for this run only.
        facts: what goes into the report: "proxies", "layers", "choice", "curve".
    """

    pixels: Tensor
    targets: Tensor
    trainable: list[str]
    constraint: HardConstraint | SoftConstraint | None = None
    proxies: KeptProxies | None = None
    callbacks: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)


class Method:
    """Base of every method.

    Attributes:
        needs_retain: whether the method reads retained data; one that does not never sees it.
        forgets_images: whether it forgets images whose classes stay, in place of classes.
    """

    needs_retain = False
    forgets_images = False

    def prepare(self, trainer) -> Plan:
        raise NotImplementedError

    def parts(self, inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The batch as parts whose losses are added up, each with a backward pass of its own."""
        return [inputs]

    def compute_loss(self, trainer, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Soft cross-entropy between the model's outputs and the targets, weighted by row
        (:class:`zspag_hf.batches.SharedBatches`)."""
        logits = self.logits(trainer, model, inputs["pixels"])
        return (inputs["weights"] * F.cross_entropy(logits, inputs["targets"], reduction="none")).sum()

    def logits(self, trainer, model: torch.nn.Module, pixels: Tensor) -> Tensor:
        """Through ``model``, the wrapped one that gradients are averaged by; uint8 pixels, or floats in [0, 1]."""
        pixels = to_unit(pixels, trainer.classifier.device)
        with exact_batch_norms(model, len(pixels)):
            return model(pixel_values=trainer.classifier.normalize(pixels)).logits.float()
