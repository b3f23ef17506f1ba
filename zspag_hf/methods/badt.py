"""Bad teacher (arXiv 2205.08096; METHODS C.4): outputs of an untrained network where to forget, of the model's own
where to stay."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pipeline.classifier import PixelClassifier
from ..pipeline.pseudo_labels import retained_mask
from .base import Method, Plan
from .retrain import renewed

RETAIN_SHARE = 0.3  # of the retained images, drawn at random


def bad_teacher(trainer) -> PixelClassifier:
    """A network of the model's architecture with first weights, drawn by the run's seed; in eval mode.

    Raises:
        UnlearningError: from :func:`zspag_hf.methods.retrain.check_renewable`.
    """
    model = renewed(trainer.model, trainer.args.seed).eval()
    return PixelClassifier(model.to(trainer.classifier.device), trainer.processing_class)


class BadTeacher(Method):
    """KL(teacher || student) at temperature 1, the teacher an untrained network on forget images and the original on
    retained ones; the zero-shot form is on the forget images alone.

    The teachers do not change, so their outputs are the targets, and cross-entropy to them has KL's gradient. One epoch
    of Adam at 1e-4, as the published notebook runs it; its function's defaults (.01, 10 epochs) are not what is run.
    The published loss divides by the number of classes too, which Adam makes up for; its student is in train mode.
    """

    description = (
        "Bad teacher ([arXiv 2205.08096](https://arxiv.org/abs/2205.08096)): the outputs of an untrained network on the"
        " forget images are learned, and the model's own on retained images where they are given."
    )
    forgets = ("classes", "images")
    takes_retain = True

    @staticmethod
    def settings(num_labels: int) -> dict:
        return {"learning_rate": 1e-4, "num_train_epochs": 1, "optim": "adamw_torch"}

    def prepare(self, trainer) -> Plan:
        forget, retain = trainer.forget, trainer.retain
        kept = forget.pixels[:0] if retain is None else retain.pixels[drawn(len(retain), trainer.args.seed)]

        def make():
            earlier = sorted(set(trainer.forget_ids) - set(trainer.request.class_ids))
            taught = [without(bad_teacher(trainer).predict_shared(forget.pixels), earlier)]
            if len(kept):
                taught.append(without(trainer.classifier.predict_shared(kept), trainer.forget_ids))
            return {"targets": torch.cat(taught)}, {}

        tensors, _ = trainer.finished("teachers", "pseudo_labels", make)
        return Plan(torch.cat([forget.pixels, kept]), tensors["targets"], None)


def without(logits: Tensor, ids: list[int]) -> Tensor:
    """Probabilities ``(N, C)`` over the other classes."""
    return logits.masked_fill(~retained_mask(logits.shape[1], ids), -torch.inf).softmax(1)


def drawn(count: int, seed: int) -> Tensor:
    """The rows of ``RETAIN_SHARE`` of the retained images, one at least."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: max(1, round(RETAIN_SHARE * count))].sort().values
