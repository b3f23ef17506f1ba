"""AMUN (arXiv 2503.00917): images whose classes stay, brought down to the confidence of images never seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..config import option
from ..errors import UnlearningError
from ..parallel.processes import my_batches, summed
from ..pipeline.attacks import PGDL2, Untargeted
from ..pipeline.classifier import GRADIENT_BATCH, to_unit
from .options import Confined, OptionalRetained, Trained
from .plan import Plan
from .run import Run

FIRST_EPS, STEPS = 0.04, 50  # the paper's, in Euclidean norm on [0, 1] pixels
DOUBLINGS = 10  # the published code may double for ever


class LeaveLabel(Untargeted, PGDL2):
    """PGD-L2 away from a label, whatever comes next."""


def nearest_adversaries(
    classifier, pixels: Tensor, labels: Tensor, batch_size: int = GRADIENT_BATCH, disable_progress: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """For each image the adversarial example in the smallest of the balls eps = .04, .08, .16, ... that holds one
    (algorithm 1). An image that the model gets wrong is its own, at eps 0.

    Each radius starts at the image, as in the paper; the published code goes on from where the last one ended.

    Args:
        pixels: ``(N, channels, H, W)`` uint8 or float in [0, 1]. labels: ``(N,)``.

    Returns:
        Pixels ``(M, channels, H, W)`` in [0, 1] and answers ``(M,)`` of those found, and radii ``(N,)``, infinite where
        none was found within ``DOUBLINGS``.
    """
    adversaries, radii = to_unit(pixels, "cpu").clone(), torch.full((len(pixels),), torch.inf)
    answers = classifier.predict_shared(pixels).argmax(1)
    radii[answers != labels] = 0.0
    for eps in tqdm([FIRST_EPS * 2**i for i in range(DOUBLINGS)], desc="Adversaries", disable=disable_progress):
        attack, pending = LeaveLabel(eps, STEPS, eps / 10), radii.isinf().nonzero().squeeze(1)
        if not len(pending):
            break
        moved, answered = torch.zeros_like(adversaries[pending]), torch.zeros_like(pending)
        for part in my_batches(len(pending), batch_size):
            result = attack(classifier, pixels[pending[part]], labels[pending[part]])
            moved[part], answered[part] = result.pixels, result.predicted
        moved, answered = summed(moved), summed(answered)
        crossed = answered != labels[pending]
        rows = pending[crossed]
        adversaries[rows], answers[rows], radii[rows] = moved[crossed], answered[crossed], eps
    there = radii.isfinite()
    return adversaries[there], answers[there], radii


@dataclass(kw_only=True)
class AMUN(Confined, OptionalRetained, Trained):
    """Fine-tuning on the forget images D_u with their own labels and on their nearest adversaries D_A with the labels
    that the model gives those; ``with_retain`` adds the retained images D_r. :class:`AMUNAdvOnly` leaves D_u out.

    As in the paper every parameter trains, all images in one shuffle, and the settings are the published ones: of the
    steps of 1, 5 or 10 epochs at which its code lowers the rate, that of 10, which in ten epochs lowers nothing. Other
    than in the code a batch is 32 and not 128, nothing is augmented (there D_r and D_u are), batch norm keeps its
    statistics, and weight decay spares biases and norms. The soft or hard constraint of ZS-PAG can be added
    (``constraint=``), which the paper does not have.

    All images are held as floats, since rounding to bytes can undo an adversary: retained ones take four times the room
    of their bytes, which ``max_retain_samples`` bounds.
    """

    description: ClassVar[str] = (
        "AMUN ([arXiv 2503.00917](https://arxiv.org/abs/2503.00917)): fine-tuning on the forget images with their own"
        " labels, and on their nearest adversarial examples with the labels that the model gives those."
    )
    forgets: ClassVar[tuple[str, ...]] = ("images",)
    own_labels: ClassVar[bool] = True  # whether D_u is trained on

    optim_args: str | None = option("momentum=0.9", "Of the optimizer.")
    weight_decay: float = option(5e-4, "Of the optimizer.", least=0)

    def prepare(self, run: Run) -> Plan:
        """The adversaries, and what is trained on beside them."""
        forget, classifier = run.forget, run.classifier
        gone = torch.tensor(run.forget_ids, dtype=torch.long)
        if self.own_labels and torch.isin(forget.labels, gone).any():
            raise UnlearningError(
                f"{int(torch.isin(forget.labels, gone).sum())} forget images are of classes that an earlier request"
                " forgot, and could be taught again: take them out of forget_dataset."
            )

        def make():
            names = ("pixels", "labels", "radii")
            made = nearest_adversaries(classifier, forget.pixels, forget.labels, disable_progress=run.quiet)
            return dict(zip(names, made, strict=True)), {}

        tensors, _ = run.stage("adversaries", make, under="proxies")
        adversaries, answers, radii = tensors["pixels"], tensors["labels"], tensors["radii"]
        kept = ~torch.isin(answers, gone)  # no share of a target for what earlier requests forgot
        adversaries, answers = adversaries[kept], answers[kept]
        if not len(adversaries):
            raise UnlearningError(
                f"no forget image has an adversarial example within {FIRST_EPS * 2 ** (DOUBLINGS - 1):.3g}: the model"
                " gives the same answer everywhere. Give a model whose answers depend on the image."
            )
        plan = self.mix(run, adversaries, answers)
        reached = radii[radii.isfinite()]
        plan.facts["proxies"] = {
            "count": len(adversaries),
            "attack_success_rate": len(reached) / len(radii),
            "mean_radius": float(reached.mean()),
        }
        return plan

    def mix(self, run: Run, adversaries: Tensor, answers: Tensor) -> Plan:
        """D_u with its own labels, where it is trained on, D_A with the model's answers, and D_r, where it is given."""
        parts = [(adversaries, answers)]
        if self.own_labels:
            parts.insert(0, (run.forget.pixels, run.forget.labels))
        if run.retained is not None:
            parts.append((run.retained.pixels, run.retained.labels))
        pixels = torch.cat([to_unit(part, "cpu") for part, _ in parts])
        labels = torch.cat([part for _, part in parts])
        return Plan(pixels, F.one_hot(labels, run.classifier.num_labels).float(), None)


@dataclass(kw_only=True)
class AMUNAdvOnly(AMUN):
    """AMUN without the forget images themselves: D_A alone, or D_r and D_A; "advonly" in the published code."""

    description: ClassVar[str] = (
        "AMUN on adversaries only ([arXiv 2503.00917](https://arxiv.org/abs/2503.00917)): fine-tuning on the forget"
        " images' nearest adversarial examples with the labels that the model gives those."
    )
    own_labels: ClassVar[bool] = False
