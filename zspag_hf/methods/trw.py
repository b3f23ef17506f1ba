"""TRW (arXiv 2506.20893): forget images get the distribution that a retrained model would give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..config import option
from .options import TILTS, Confined, OptionalRetained, Targets, Trained
from .plan import Plan
from .run import Run
from .stages import head_weight, targets_from_proxies


@dataclass(kw_only=True)
class TiltedReweighting(Confined, Targets, OptionalRetained, Trained):
    """Soft cross-entropy, which is KL(q || p) but for a constant, to the original's outputs over the retained classes,
    tilted towards those that resemble the forgotten one (:func:`..pipeline.pseudo_labels.tilted_reweighting`); and with
    ``with_retain`` cross-entropy on the retained images, in one shuffle.

    The paper fine-tunes with retained data; the form without them is ours, best with ``constraint="soft"`` or "hard".
    beta = 10 and the tilt's form are public; the similarity's temperature and principal components, rate, epochs and
    the weight of the two terms were not to be read: here 1, all of them, .01, ten, and every image alike. (At .1
    beta = 10 gives every image the same class: distance to a retrained model on CIFAR-10's cats .357 nats, .063 at 1,
    .046 without a tilt.) With
    several classes the similarity is the mean over them.
    """

    description: ClassVar[str] = (
        "TRW ([arXiv 2506.20893](https://arxiv.org/abs/2506.20893)): fine-tuning on the forget images towards the"
        " original outputs without the forgotten classes, tilted to the classes most like them."
    )

    tilt: str = option("similarity", "What tilts the renormalised or uniform targets", choices=TILTS)

    @property
    def makes_proxies(self) -> bool:
        """For the constraint, or for targets by influence."""
        return super().makes_proxies or self.by_influence

    def check_model(self, run: Run) -> None:
        """Refuse a model without a head."""
        if self.tilt == "similarity":
            head_weight(run)

    def prepare(self, run: Run) -> Plan:
        """Tilted targets, and retained images beside them."""
        forget, retain = run.forget, run.retained
        facts: dict = {}
        targets = targets_from_proxies(run, self, facts)
        if retain is None:
            return Plan(forget.pixels, targets, None, facts=facts)
        labels = F.one_hot(retain.labels, run.classifier.num_labels).float()
        pixels = torch.cat([forget.pixels, retain.pixels])
        return Plan(pixels, torch.cat([targets, labels]), None, facts=facts)
