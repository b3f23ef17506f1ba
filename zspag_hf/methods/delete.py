"""DELETE (arXiv 2503.23751, CVPR 2025; METHODS C2.1): the original's outputs with the forgotten classes masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import option
from .options import Trained
from .plan import Plan
from .run import Run
from .stages import masked_outputs


@dataclass(kw_only=True)
class Delete(Trained):
    """KL(masked original || model) on the forget images: what the original says of them, with the forgotten classes at
    probability 0 and the rest renormalised. Zero-shot by nature. Every parameter trains, in train mode, as the
    published code does (batch norm follows the forget images, dropout is on).

    The published masks an image's own class alone; of several classes to forget none is another's target here.
    Settings are the code's for a ResNet-18 on CIFAR, 1e-4 for 20 epochs with batches of 128; it has 5e-5 for a ViT-S.
    A batch is 32 here unless the run says otherwise.
    """

    description: ClassVar[str] = (
        "DELETE ([arXiv 2503.23751](https://arxiv.org/abs/2503.23751)): the original's outputs on the forget images,"
        " with the forgotten classes masked, are learned."
    )

    learning_rate: float | None = option(1e-4, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(20, "Epochs over the forget images.", above=0)
    optim_args: str | None = option("momentum=0.9", "Of the optimizer.")

    def prepare(self, run: Run) -> Plan:
        """Masked outputs as the targets."""
        logits = run.classifier.predict_shared(run.forget.pixels)
        return Plan(run.forget.pixels, masked_outputs(run, logits), train_mode=True)
