"""Fine-tuning on the retained images alone (Unlearn-Sparse, arXiv 2304.04934, and SalUn: "FT"; METHODS C.2)."""

from __future__ import annotations

import torch.nn.functional as F

from .base import Method, Plan


class FineTune(Method):
    """Cross-entropy on the retained images with their own labels; the forget images fade for want of practice.

    Ten epochs of SGD at .01, momentum .9, weight decay 5e-4, as both published codes run it. They train in train mode,
    with augmentation and batches of 256; here batch norm keeps its statistics.
    """

    description = (
        "Fine-tuning ([arXiv 2304.04934](https://arxiv.org/abs/2304.04934)): training goes on with the retained images"
        " alone, and their own labels."
    )
    forgets = ("classes", "images")
    needs_retain = True

    @staticmethod
    def settings(num_labels: int) -> dict:
        return {"learning_rate": 0.01, "num_train_epochs": 10, "optim_args": "momentum=0.9", "weight_decay": 5e-4}

    def prepare(self, trainer) -> Plan:
        retain = trainer.retain
        return Plan(retain.pixels, F.one_hot(retain.labels, trainer.classifier.num_labels).float(), None)
