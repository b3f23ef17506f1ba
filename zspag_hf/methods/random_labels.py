"""Random relabelling of the forget images, the paper's FT-zs row (Warnecke et al. 2021; METHODS C.2)."""

from __future__ import annotations

import torch

from ..pseudo_labels import retained_mask
from .base import Method, Plan


class RandomLabels(Method):
    """Cross-entropy to a retained label drawn uniformly for each forget image, once; every layer weight trains.

    The paper gives no settings; published code redraws the labels each batch. Drawn once here, so that the run has a
    target to converge to. Combine with ``constraint="hard"`` or ``"soft"`` for table 5's "Estimate Subspace + RL".
    """

    description = "Random labels: fine-tuning on the forget images, each with a retained label drawn at random."

    def prepare(self, trainer) -> Plan:
        forget = trainer.forget
        keep = retained_mask(trainer.classifier.num_labels, trainer.forget_ids).nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(trainer.args.seed)
        drawn = keep[torch.randint(len(keep), (len(forget),), generator=generator)]
        targets = torch.nn.functional.one_hot(drawn, trainer.classifier.num_labels).float()
        return Plan(forget.pixels, targets, list(trainer.layers))
