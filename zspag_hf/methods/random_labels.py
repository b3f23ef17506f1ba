"""Random relabelling of the forget images, the paper's FT-zs row (Warnecke et al. 2021; METHODS C.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import option
from ..pipeline.pseudo_labels import retained_mask
from .options import PRIORS, Confined, OptionalRetained, Targets, Trained
from .plan import Plan
from .run import Run
from .stages import targets_from_proxies


def random_labels(labels: Tensor, keep: Tensor, seed: int) -> Tensor:
    """For each label ``(N,)`` another one, drawn uniformly from the ids ``keep`` without the label itself."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(keep), labels.shape, generator=generator)
    onward = torch.randint(1, len(keep), labels.shape, generator=generator)  # a label's own id goes on to any other
    return keep[torch.where(keep[drawn] == labels, (drawn + onward) % len(keep), drawn)]


@dataclass(kw_only=True)
class RandomLabels(Confined, Targets, OptionalRetained, Trained):
    """Cross-entropy to a label drawn uniformly for each forget image, once, from the classes that stay, never its own;
    with retained images, cross-entropy to theirs too, all shuffled together. Every layer weight trains.

    The paper gives no settings; .01 and ten epochs are ours, far above the 1e-4 and twenty epochs of batches of 512 of
    UNSC's zero-shot runs (METHODS C.2). Published code redraws the labels each batch, and some of it may draw the true
    one. Drawn once here, so that the run has a target to converge to. ``constraint="hard"`` or
    ``"soft"`` is table 5's "Estimate Subspace + RL". ``targets`` and ``tilt`` name others than random labels.
    """

    description: ClassVar[str] = (
        "Random labels ([arXiv 2108.11577](https://arxiv.org/abs/2108.11577)): fine-tuning on the forget images, each"
        " with another label that stays, drawn at random, beside retained images where they are given."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    targets: str = option("random", "Targets of the forget images", choices=("random", "paper", *PRIORS))

    @property
    def makes_proxies(self) -> bool:
        """For the constraint, or for targets by influence."""
        return super().makes_proxies or self.by_influence

    def prepare(self, run: Run) -> Plan:
        """Forget images beside retained ones."""
        forget, retain, count = run.forget, run.retained, run.classifier.num_labels
        facts: dict = {}
        pixels, targets = forget.pixels, self.labels(run, facts)
        if retain is not None:
            pixels = torch.cat([pixels, retain.pixels])
            targets = torch.cat([targets, F.one_hot(retain.labels, count).float()])
        return Plan(pixels, targets, list(run.layers), facts=facts)

    def labels(self, run: Run, facts: dict) -> Tensor:
        """``(N, C)``, of the forget images."""
        if self.targets != "random":
            return targets_from_proxies(run, self, facts)
        forget, count = run.forget, run.classifier.num_labels
        keep = retained_mask(count, run.forget_ids).nonzero().squeeze(1)
        return F.one_hot(random_labels(forget.labels, keep, run.seed), count).float()
