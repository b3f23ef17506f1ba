"""Spotter (arXiv 2506.01318, ICML 2026; METHODS C2.2): masked distillation around the forget images, and features that
are scattered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adaptive.head import head_inputs
from ..config import option
from ..errors import UnlearningError
from ..parallel.batches import KeptProxies
from ..parallel.processes import rank_and_size, summed
from ..pipeline.neighbours import neighbours
from .options import Trained
from .plan import Plan
from .run import Run
from .stages import masked_outputs


def likeness(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean cosine of the pairs of features ``(n, D)`` whose labels ``(n, C)``, one-hot, are the same; 0 without a pair.

    Of a batch that processes share all pairs count: the value is the same in each, and its gradient, which is of the
    process's own features, is times their number, as their mean is what the optimizer sees.

    Args:
        weights: ``(n,)``, 0 for a row that is no image of the batch.
    """
    member = labels * (weights > 0)[:, None]
    own = member.T @ F.normalize(features, dim=1)  # (C, D)
    counts, size = summed(member.sum(0)), rank_and_size()[1]
    sums = summed(own.detach()) + size * (own - own.detach())
    pairs = counts * (counts - 1)
    return (sums.square().sum(1) - counts)[pairs > 0].sum() / pairs.sum().clamp_min(1)


@dataclass(kw_only=True)
class Spotter(Trained):
    """``share`` x KL(masked original || model) on the forget images + (1 - ``share``) x the same on their neighbours +
    ``dispersion`` x the mean cosine of the features, inputs of the head, of same-class forget images in a batch.

    Masked: the forgotten classes at probability 0, the rest renormalised. A neighbour is an adversary that untargeted
    PGD of three steps makes of each image on the original, once. So forgetting reaches what lies around the images
    (over-unlearning), and the class cannot be brought back from the mean feature of a few (prototypical relearning).
    Zero-shot by nature. Every parameter trains; batch norm keeps its statistics.

    Settings are the published code's, 1e-4 for 10 epochs with batches of 128; a batch is 32 here unless the run says
    otherwise, and has fewer pairs.
    """

    description: ClassVar[str] = (
        "Spotter ([arXiv 2506.01318](https://arxiv.org/abs/2506.01318)): the original's outputs on the forget images"
        " and on adversaries of theirs, with the forgotten classes masked, are learned, and the forget images' features"
        " are scattered."
    )

    learning_rate: float | None = option(1e-4, "Of the optimizer.", above=0)
    optim_args: str | None = option("momentum=0.9", "Of the optimizer.")
    weight_decay: float = option(5e-4, "Of the optimizer.", least=0)
    share: float = option(0.7, "Share of the forget images beside their neighbours, the paper's l1.", least=0, most=1)
    dispersion: float = option(1.0, "Weight of the features' mean cosine, the paper's l2.", least=0)

    def check_model(self, run: Run) -> None:
        """Refuse a model without a head, whose features are unknown."""
        if run.head is None:
            raise UnlearningError(
                f"no layer of the model has one output for each of its {run.classifier.num_labels} labels, and its"
                " inputs are the features that spotter scatters: give method='delete', which reads none."
            )

    def prepare(self, run: Run) -> Plan:
        """Masked outputs of images and neighbours as the targets; the image's own class stands behind its target."""
        forget, classifier = run.forget, run.classifier

        def make():
            made, crossed = neighbours(classifier, forget.pixels, forget.labels, run.quiet)
            return {"pixels": made}, {"attack_success_rate": float(crossed.float().mean())}

        tensors, facts = run.stage("neighbours", make, under="proxies")
        around = tensors["pixels"]
        start, near = (classifier.predict_shared(x) for x in (forget.pixels, around))
        own, theirs = masked_outputs(run, start), masked_outputs(run, near, start)
        targets = torch.cat([own, F.one_hot(forget.labels, classifier.num_labels).float()], 1)
        plan = Plan(forget.pixels, targets, proxies=KeptProxies(around, theirs, forget.labels))
        plan.facts["proxies"] = facts  # adversaries are made, none is kept
        return plan

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Of forget images, or of neighbours."""
        weights = inputs["weights"]
        if "proxy_pixels" in inputs:
            logits = self.logits(run, model, inputs["proxy_pixels"])
            return (1 - self.share) * (
                weights * F.cross_entropy(logits, inputs["proxy_targets"], reduction="none")
            ).sum()
        targets, labels = inputs["targets"].chunk(2, 1)
        with head_inputs(run.layers[run.head or ""]) as features:
            logits = self.logits(run, model, inputs["pixels"])
        learned = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
        return self.share * learned + self.dispersion * likeness(features[0], labels, weights)
