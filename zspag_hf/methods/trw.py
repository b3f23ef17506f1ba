"""TRW (arXiv 2506.20893): forget images get the distribution that a retrained model would give them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .base import Method, Plan
from .stages import gather_targets


class TiltedReweighting(Method):
    """Soft cross-entropy, which is KL(q || p) but for a constant, to the original's outputs over the retained classes,
    tilted towards those that resemble the forgotten one (:func:`..pipeline.pseudo_labels.tilted_reweighting`); and with
    ``with_retain`` cross-entropy on the retained images, in one shuffle.

    The paper fine-tunes with retained data; the form without them is ours, best with ``constraint="soft"`` or "hard".
    beta = 10 and the tilt's form are public; the similarity's temperature and principal components, rate, epochs and
    the weight of the two terms were not to be read: here .1, all of them, .01, ten, and every image alike. With
    several classes the similarity is the mean over them.
    """

    description = (
        "TRW ([arXiv 2506.20893](https://arxiv.org/abs/2506.20893)): fine-tuning on the forget images towards the"
        " original outputs without the forgotten classes, tilted to the classes most like them."
    )
    takes_retain = True
    takes_targets = True

    @staticmethod
    def settings(num_labels: int) -> dict:
        return {
            "learning_rate": 0.01,
            "num_train_epochs": 10,
            "pseudo_label": "prior",
            "prior": "renormalised",
            "tilt": "similarity",
        }

    def prepare(self, trainer) -> Plan:
        forget, retain = trainer.forget, trainer.retain
        facts = {}
        targets = gather_targets(trainer, facts).targets
        if retain is None:
            return Plan(forget.pixels, targets, None, facts=facts)
        labels = F.one_hot(retain.labels, trainer.classifier.num_labels).float()
        pixels = torch.cat([forget.pixels, retain.pixels])
        return Plan(pixels, torch.cat([targets, labels]), None, facts=facts)
