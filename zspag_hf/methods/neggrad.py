"""NegGrad, gradient ascent on the forget images, and NegGrad+ beside retained ones (arXiv 2302.09880; METHODS C.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import option
from ..parallel.batches import KeptProxies
from .base import PAIRED
from .options import Confined, OptionalRetained, Trained
from .plan import Plan
from .run import Run

RETAIN_WEIGHT = 0.95  # share of the retained images in the loss of NegGrad+


@dataclass(kw_only=True)
class NegGrad(Confined, OptionalRetained, Trained):
    """Zero-shot: -CE(D_u). With retained images NegGrad+: alpha CE(D_r) - (1 - alpha) CE(D_u), alpha = .95.

    Neither has a lower bound as published, and both run away: on a small ResNet of digits, batch norm at rest, NegGrad+
    was not finite in its seventh epoch. Here a forget image contributes until its cross-entropy is log C, that of an
    even guess; then it has no gradient, until the model learns it again.

    In NegGrad+ each batch of retained images has as many forget images beside it, which are gone through again and
    again, in an order drawn in each epoch. Settings: UNSC's zero-shot runs (arXiv 2404.13588), thirty epochs of SGD at
    8e-5 (CIFAR-100), or 5e-5 where there are 20 labels or fewer (CIFAR-10); for NegGrad+ ten epochs at .01, as
    published. The published code's decay towards the first weights is left out: its settings switch it off.
    """

    description: ClassVar[str] = (
        "NegGrad ([arXiv 2302.09880](https://arxiv.org/abs/2302.09880)): gradient ascent on the forget images' own"
        " labels, beside descent on retained images where they are given."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    learning_rate: float | None = option(None, "Unset: as published.", above=0)
    num_train_epochs: float | None = option(None, "Unset: as published.", above=0)

    def published(self, num_labels: int) -> dict:
        """By the form, and by whether there are 20 labels or fewer."""
        if self.with_retain:
            return {"learning_rate": 0.01, "num_train_epochs": 10}
        return {"learning_rate": 5e-5 if num_labels <= 20 else 8e-5, "num_train_epochs": 30}

    def prepare(self, run: Run) -> Plan:
        """The forget images; in NegGrad+ beside each retained one."""
        forget, retain, count = run.forget, run.retained, run.classifier.num_labels
        targets = F.one_hot(forget.labels, count).float()
        if retain is None:
            return Plan(forget.pixels, targets, None)
        plan = Plan(retain.pixels, F.one_hot(retain.labels, count).float(), None)
        plan.proxies = KeptProxies(forget.pixels, targets, forget.labels)
        return plan

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Ascent on the forget images, bounded; descent on retained ones."""
        if run.retained is None:
            return -self.bounded(run, model, inputs["pixels"], inputs["targets"], inputs["weights"])
        if "proxy_pixels" in inputs:
            pixels, targets = (inputs[name] for name in PAIRED)
            return (RETAIN_WEIGHT - 1) * self.bounded(run, model, pixels, targets, inputs["weights"])
        return RETAIN_WEIGHT * super().compute_loss(run, model, inputs)

    def bounded(self, run: Run, model: torch.nn.Module, pixels: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted cross-entropy, of each image at most log C."""
        logits = self.logits(run, model, pixels)
        loss = F.cross_entropy(logits, targets, reduction="none")
        return (weights * loss.clamp(max=math.log(logits.shape[1]))).sum()
