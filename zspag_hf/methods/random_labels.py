"""Random relabelling of the forget images, the paper's FT-zs row (Warnecke et al. 2021; METHODS C.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pipeline.pseudo_labels import retained_mask
from .base import Method, Plan
from .stages import gather_targets


def random_labels(labels: Tensor, keep: Tensor, seed: int) -> Tensor:
    """For each label ``(N,)`` another one, drawn uniformly from the ids ``keep`` without the label itself."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(keep), labels.shape, generator=generator)
    onward = torch.randint(1, len(keep), labels.shape, generator=generator)  # a label's own id goes on to any other
    return keep[torch.where(keep[drawn] == labels, (drawn + onward) % len(keep), drawn)]


class RandomLabels(Method):
    """Cross-entropy to a label drawn uniformly for each forget image, once, from the classes that stay, never its own;
    with retained images, cross-entropy to theirs too, all shuffled together. Every layer weight trains.

    The paper gives no settings; .01 and ten epochs are ours, far above the 1e-4 and twenty epochs of batches of 512 of
    UNSC's zero-shot runs (METHODS C.2). Published code redraws the labels each batch, and some of it may draw the true
    one. Drawn once here, so that the run has a target to converge to. Combine with ``constraint="hard"`` or
    ``"soft"`` for table 5's "Estimate Subspace + RL". Where classes are forgotten, ``pseudo_label``, ``prior`` and
    ``tilt`` name other targets than random labels.
    """

    description = (
        "Random labels ([arXiv 2108.11577](https://arxiv.org/abs/2108.11577)): fine-tuning on the forget images, each"
        " with another label that stays, drawn at random, beside retained images where they are given."
    )
    forgets = ("classes", "images")
    takes_retain = True
    takes_targets = True

    def prepare(self, trainer) -> Plan:
        forget, retain, count = trainer.forget, trainer.retain, trainer.classifier.num_labels
        facts = {}
        pixels, targets = forget.pixels, self.targets(trainer, facts)
        if retain is not None:
            pixels = torch.cat([pixels, retain.pixels])
            targets = torch.cat([targets, F.one_hot(retain.labels, count).float()])
        return Plan(pixels, targets, list(trainer.layers), facts=facts)

    def targets(self, trainer, facts: dict) -> Tensor:
        """``(N, C)``, of the forget images."""
        if trainer.args.pseudo_label is not None:
            return gather_targets(trainer, facts).targets
        forget, count = trainer.forget, trainer.classifier.num_labels
        keep = retained_mask(count, trainer.forget_ids).nonzero().squeeze(1)
        return F.one_hot(random_labels(forget.labels, keep, trainer.args.seed), count).float()
