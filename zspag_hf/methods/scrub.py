"""SCRUB (arXiv 2302.09880; METHODS C.10): away from the original on forget images, near it on retained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import option
from ..pipeline.pseudo_labels import retained_mask
from .options import Confined, Retained, Trained
from .plan import Plan
from .run import Run

GAMMA, KL_WEIGHT = 0.99, 0.001  # of cross-entropy and of divergence on retained images
TEMPERATURE = 4.0
MAX_EPOCHS = 2  # the first ones, in which the divergence on forget images is raised
FORGET, RETAIN = 0, 1  # blocks


class Idle:
    """Leaves weights and the optimizer's state as they are in steps that no batch works for: after ``MAX_EPOCHS``
    batches of forget images still come, and a gradient of zero would keep momentum and decay going."""

    def __init__(self):
        self.working = False  # since the last step

    def before_step(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """No gradient at all where no batch worked."""
        if not self.working:
            optimizer.zero_grad(set_to_none=True)

    def after_step(self, *_) -> None:
        """Until the next batch."""
        self.working = False


@dataclass(kw_only=True)
class SCRUB(Confined, Retained, Trained):
    """Each epoch goes through the forget images first and then through the retained ones:

        max, in the first ``MAX_EPOCHS`` epochs:  -KL(teacher || student)
        min, in every epoch:                      gamma CE + alpha KL(teacher || student)

    KL at temperature T, times T^2; the teacher is the original, whose outputs are computed once. Settings of the
    published large-scale runs: three epochs of SGD at 5e-4, momentum .9, weight decay 5e-4, gamma .99, alpha .001, T 4,
    and two max epochs (their small-scale ones: Adam, ten epochs, a stepped rate). SCRUB+R, which rewinds to the
    checkpoint of a reference error, is left out.

    At the original the divergence has no gradient. The published code trains in train mode, where batch statistics and
    dropout part student and teacher; here weight decay alone does, until the first retained images. The first max epoch
    does little where it has few steps.
    """

    description: ClassVar[str] = (
        "SCRUB ([arXiv 2302.09880](https://arxiv.org/abs/2302.09880)): the model is led away from its own first outputs"
        " on the forget images, and kept near them, and near the labels, on the retained images."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    learning_rate: float | None = option(5e-4, "Of the optimizer.", above=0)
    num_train_epochs: float | None = option(3, "Epochs over the images to train on.", above=0)
    optim_args: str | None = option("momentum=0.9", "Of the optimizer.")
    weight_decay: float = option(5e-4, "Of the optimizer.", least=0)

    def prepare(self, run: Run) -> Plan:
        """Forget images first, then retained ones, with labels and the teacher's outputs."""
        sets = (run.forget, run.kept)
        pixels = torch.cat([one.pixels for one in sets])
        labels = torch.cat([one.labels for one in sets])

        def make():
            return {"logits": run.classifier.predict_shared(pixels)}, {}

        logits = run.stage("teacher", make, under="pseudo_labels")[0]["logits"]
        gone = ~retained_mask(logits.shape[1], run.forget_ids)
        logits[len(run.forget) :, gone] = -torch.inf  # what is kept on retained images is the rest
        teacher = (logits / TEMPERATURE).softmax(1)
        hard = F.one_hot(labels, run.classifier.num_labels).float()
        targets = torch.cat([hard, teacher], 1)  # the loss parts them
        blocks = torch.tensor([FORGET, RETAIN]).repeat_interleave(torch.tensor([len(one) for one in sets]))
        self.idle = Idle()
        return Plan(pixels, targets, None, blocks, keepers=[self.idle])

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Max or min step, by whose images the batch holds."""
        logits, (labels, teacher) = self.logits(run, model, inputs["pixels"]), inputs["targets"].chunk(2, 1)
        away = F.kl_div((logits / TEMPERATURE).log_softmax(1), teacher, reduction="none").sum(1) * TEMPERATURE**2
        if inputs["blocks"][0] == RETAIN:
            self.idle.working = True
            loss = GAMMA * F.cross_entropy(logits, labels, reduction="none") + KL_WEIGHT * away
        elif int(run.state.epoch or 0) < MAX_EPOCHS:
            self.idle.working = True
            loss = -away
        else:
            loss = 0.0 * away
        return (inputs["weights"] * loss).sum()
