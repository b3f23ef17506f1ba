"""Fine-tuning on the retained images alone (Unlearn-Sparse, arXiv 2304.04934, and SalUn: "FT"; METHODS C.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from ..config import option
from .options import Confined, Retained, Trained
from .plan import Plan
from .run import Run


@dataclass(kw_only=True)
class FineTune(Confined, Retained, Trained):
    """Cross-entropy on the retained images with their own labels; the forget images fade for want of practice.

    Ten epochs of SGD at .01, momentum .9, weight decay 5e-4, as both published codes run it. They train in train mode,
    with augmentation and batches of 256; here batch norm keeps its statistics.
    """

    description: ClassVar[str] = (
        "Fine-tuning ([arXiv 2304.04934](https://arxiv.org/abs/2304.04934)): training goes on with the retained images"
        " alone, and their own labels."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    optim_args: str | None = option("momentum=0.9", "Of the optimizer.")
    weight_decay: float = option(5e-4, "Of the optimizer.", least=0)

    def prepare(self, run: Run) -> Plan:
        """The retained images."""
        retain = run.kept
        return Plan(retain.pixels, F.one_hot(retain.labels, run.classifier.num_labels).float(), None)
