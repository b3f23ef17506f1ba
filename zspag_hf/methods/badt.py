"""Bad teacher (arXiv 2205.08096; METHODS C.4): outputs of an untrained network where to forget, of the model's own
where to stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import option
from ..pipeline.classifier import PixelClassifier
from ..pipeline.pseudo_labels import retained_mask
from .options import Confined, OptionalRetained, Trained
from .plan import Plan
from .retrain import check_renewable, renewed
from .run import Run

RETAIN_SHARE = 0.3  # of the retained images, drawn at random


def bad_teacher(run: Run) -> PixelClassifier:
    """A network of the model's architecture with first weights, drawn by the run's seed; in eval mode.

    Raises:
        UnlearningError: from :func:`zspag_hf.methods.retrain.check_renewable`.
    """
    model = renewed(run.model, run.seed).eval()
    return PixelClassifier(model.to(run.device), run.classifier.processor)


@dataclass(kw_only=True)
class BadTeacher(Confined, OptionalRetained, Trained):
    """KL(teacher || student) at temperature 1, the teacher an untrained network on forget images and the original on
    retained ones; the zero-shot form is on the forget images alone.

    The teachers do not change, so their outputs are the targets, and cross-entropy to them has KL's gradient. One epoch
    of Adam at 1e-4, as the published notebook runs it; its function's defaults (.01, 10 epochs) are not what is run.
    The published loss divides by the number of classes too, which Adam makes up for; its student is in train mode.
    """

    description: ClassVar[str] = (
        "Bad teacher ([arXiv 2205.08096](https://arxiv.org/abs/2205.08096)): the outputs of an untrained network on the"
        " forget images are learned, and the model's own on retained images where they are given."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    learning_rate: float | None = option(1e-4, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(1, "Epochs over the images to train on.", above=0)
    optim: str = option("adamw_torch", "Optimizer, as transformers names it.")

    def check_model(self, run: Run) -> None:
        """Refuse a model whose first weights cannot be drawn."""
        check_renewable(run.model)

    def prepare(self, run: Run) -> Plan:
        """The teachers' outputs as targets."""
        forget, retain = run.forget, run.retained
        kept = forget.pixels[:0] if retain is None else retain.pixels[drawn(len(retain), run.seed)]

        def make():
            earlier = sorted(set(run.forget_ids) - set(run.class_ids))
            taught = [without(bad_teacher(run).predict_shared(forget.pixels), earlier)]
            if len(kept):
                taught.append(without(run.classifier.predict_shared(kept), run.forget_ids))
            return {"targets": torch.cat(taught)}, {}

        tensors, _ = run.stage("teachers", make, under="pseudo_labels")
        return Plan(torch.cat([forget.pixels, kept]), tensors["targets"], None)


def without(logits: Tensor, ids: list[int]) -> Tensor:
    """Probabilities ``(N, C)`` over the other classes."""
    return logits.masked_fill(~retained_mask(logits.shape[1], ids), -torch.inf).softmax(1)


def drawn(count: int, seed: int) -> Tensor:
    """The rows of ``RETAIN_SHARE`` of the retained images, one at least."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: max(1, round(RETAIN_SHARE * count))].sort().values
