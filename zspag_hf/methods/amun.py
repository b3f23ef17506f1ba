"""AMUN (arXiv 2503.00917): images whose classes stay, brought down to the confidence of images never seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..attacks import PGDL2
from ..classifier import GRADIENT_BATCH, to_unit
from ..errors import UnlearningError
from ..processes import my_batches, summed
from .base import Method, Plan

FIRST_EPS, STEPS = 0.04, 50  # the paper's, in Euclidean norm on [0, 1] pixels
DOUBLINGS = 10  # the published code may double for ever


class LeaveLabel(PGDL2):
    """PGD-L2 away from a label, whatever comes next."""

    def loss(self, logits, target, x, clean):
        return -F.cross_entropy(logits, target, reduction="none")

    def arrived(self, answer, target):
        return answer != target


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
    found, radii = to_unit(pixels, "cpu").clone(), torch.full((len(pixels),), torch.inf)
    answers = classifier.predict_shared(pixels).argmax(1)
    radii[answers != labels] = 0.0
    for eps in tqdm([FIRST_EPS * 2**i for i in range(DOUBLINGS)], desc="Adversaries", disable=disable_progress):
        attack, pending = LeaveLabel(eps, STEPS, eps / 10), radii.isinf().nonzero().squeeze(1)
        if not len(pending):
            break
        moved, answered = torch.zeros_like(found[pending]), torch.zeros_like(pending)
        for part in my_batches(len(pending), batch_size):
            result = attack(classifier, pixels[pending[part]], labels[pending[part]])
            moved[part], answered[part] = result.pixels, result.predicted
        moved, answered = summed(moved), summed(answered)
        crossed = answered != labels[pending]
        rows = pending[crossed]
        found[rows], answers[rows], radii[rows] = moved[crossed], answered[crossed], eps
    there = radii.isfinite()
    return found[there], answers[there], radii


class AMUN(Method):
    """Fine-tuning on the forget images with their own labels and on their nearest adversaries with the labels that the
    model gives those: the form of the paper that sees no retained data.

    Ten epochs of SGD at .01 as in the paper, which adds momentum .9, weight decay 5e-4, a stepped rate and
    augmentation; batch norm keeps its statistics here. The soft or hard constraint of ZS-PAG can be added
    (``constraint=``), which the paper does not have.
    """

    description = (
        "AMUN ([arXiv 2503.00917](https://arxiv.org/abs/2503.00917)): fine-tuning on the forget images with their own"
        " labels, and on their nearest adversarial examples with the labels that the model gives those."
    )
    forgets = ("images",)

    def prepare(self, trainer) -> Plan:
        forget, classifier = trainer.forget, trainer.classifier
        gone = torch.tensor(trainer.forget_ids, dtype=torch.long)
        if torch.isin(forget.labels, gone).any():
            raise UnlearningError(
                f"{int(torch.isin(forget.labels, gone).sum())} forget images are of classes that an earlier request"
                " forgot, and would be taught again: take them out of forget_dataset."
            )

        def make():
            names = ("pixels", "labels", "radii")
            made = nearest_adversaries(classifier, forget.pixels, forget.labels, disable_progress=trainer.quiet)
            return dict(zip(names, made, strict=True)), {}

        tensors, _ = trainer.finished("adversaries", "proxies", make)
        found, answers, radii = tensors["pixels"], tensors["labels"], tensors["radii"]
        kept = ~torch.isin(answers, gone)  # no share of a target for what earlier requests forgot
        found, answers = found[kept], answers[kept]
        if not len(found):
            raise UnlearningError(
                f"no forget image has an adversarial example within {FIRST_EPS * 2 ** (DOUBLINGS - 1):.3g}: the model"
                " gives the same answer everywhere. Give a model whose answers depend on the image."
            )
        pixels = torch.cat([to_unit(forget.pixels, "cpu"), found])
        labels = torch.cat([forget.labels, answers])
        plan = Plan(pixels, F.one_hot(labels, classifier.num_labels).float(), list(trainer.layers))
        reached = radii[radii.isfinite()]
        plan.facts["proxies"] = {
            "count": len(found),
            "attack_success_rate": len(reached) / len(radii),
            "mean_radius": float(reached.mean()),
        }
        return plan
