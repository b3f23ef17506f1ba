"""SalUn (arXiv 2310.12508): random labels, learned by those weights alone that the forget images' loss depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..config import option
from ..parallel.processes import my_batches, summed
from ..pipeline.classifier import gradient_batch
from ..pipeline.gradients import loss_gradient
from ..pipeline.pseudo_labels import retained_mask
from .options import PRIORS, Confined, OptionalRetained, Targets, Trained
from .plan import Plan
from .run import Run
from .stages import targets_from_proxies

FORGET, RETAIN = 0, 1  # blocks


def saliency(classifier, pixels: Tensor, labels: Tensor, disable_progress: bool = True) -> dict[str, Tensor]:
    """|gradient of the mean cross-entropy over all images| by every parameter, on the CPU; processes share the batches.

    The published code adds up means of batches, so that the images of a last, smaller batch count for more.
    """
    parameters = dict(classifier.model.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for rows in tqdm(my_batches(len(pixels), gradient_batch(pixels)), desc="Saliency", disable=disable_progress):
        for name, gradient in loss_gradient(classifier, pixels[rows], labels[rows], parameters, len(pixels)).items():
            total[name] += gradient
    return {name: summed(part).abs().cpu() for name, part in total.items()}


def salient(magnitudes: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """True for the largest entries of all tensors together, exactly ``int(share * entries)`` of them; of equal ones (a
    dead unit's zeros) the first."""
    flat = torch.cat([part.flatten() for part in magnitudes.values()])
    count = int(share * len(flat))
    threshold = flat.kthvalue(len(flat) - count + 1).values
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    parts = chosen.split([part.numel() for part in magnitudes.values()])
    return {name: part.view_as(magnitudes[name]) for name, part in zip(magnitudes, parts, strict=True)}


class SaliencyMask:
    """Around every optimizer step: entries off the mask stay as they were bit by bit, and gather no momentum.

    A masked gradient alone does not keep them: weight decay, and momentum of it, would move them. Under a constraint,
    which has the last word, entries off the mask move with those that share their inputs.

    Args:
        parameters: by name. masks: the same names -> bool of the same shapes, True for what may move.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], masks: dict[str, Tensor]):
        self.parts = [(parameter, masks[name].to(parameter.device)) for name, parameter in parameters.items()]
        self.before: list[Tensor] = []

    @torch.no_grad()
    def before_step(self, *_):
        """Remember the weights; masked gradients."""
        self.before = [parameter.detach().clone() for parameter, _mask in self.parts]
        for parameter, mask in self.parts:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def after_step(self, optimizer, *_):
        """Entries off the mask as they were, without momentum."""
        for (parameter, mask), before in zip(self.parts, self.before, strict=True):
            parameter.copy_(torch.where(mask, parameter, before))
            for state in optimizer.state.get(parameter, {}).values():
                if isinstance(state, Tensor) and state.shape == mask.shape:
                    state.mul_(mask)
        self.before = []


@dataclass(kw_only=True)
class SalUn(Confined, Targets, OptionalRetained, Trained):
    """Cross-entropy of the forget images to random labels, on the half of all parameters' entries with the largest
    |gradient| of the forget images' loss at the original weights (eq. 3, 4 and 6). ``with_retain`` adds the retained
    images: each epoch all forget batches, then all retain batches, as the published code does for CIFAR-10 and SVHN
    (for larger sets it mixes them).

    A label is drawn anew for each image in each epoch, from the classes that are not forgotten, without the image's own
    (y' != y in eq. 6; the code draws from all). Entries off the mask keep their weight and get no momentum, as in the
    code since 2026; published numbers are older. Batch norm keeps its statistics, nothing is augmented, and a batch is
    32 and not 256.

    Settings with retained images: the published code's example (CIFAR-10, ResNet-18). Without them, for which SalUn
    has none: UNSC's runs of it, plain SGD (UNSC's mask holds .8; the paper's .5 is used here). SalUn's own rate and
    momentum, without retained images, ruin the model (CIFAR-10: retained accuracy .62 to .25). ``targets``
    and ``tilt`` name other targets than random labels, the same in each epoch.
    """

    description: ClassVar[str] = (
        "SalUn ([arXiv 2310.12508](https://arxiv.org/abs/2310.12508)): random labels for the forget images, learned by"
        " those weights alone that their loss depends on most."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")

    sparsity: float = option(0.5, "Share of all parameters' entries that stay as they are.", least=0, below=1)
    targets: str = option("random", "Targets of the forget images", choices=("random", "paper", *PRIORS))
    learning_rate: float | None = option(None, "Unset: as published.", above=0)
    num_train_epochs: float | None = option(None, "Unset: as published.", above=0)
    optim_args: str | None = option(None, "Unset: as published.")
    weight_decay: float | None = option(None, "Unset: as published.", least=0)  # type: ignore[assignment]

    @property
    def makes_proxies(self) -> bool:
        """For the constraint, or for targets by influence."""
        return super().makes_proxies or self.by_influence

    def published(self, num_labels: int) -> dict:
        """By the form, and without retained data by whether there are 20 labels or fewer."""
        if self.with_retain:
            return {"learning_rate": 0.013, "num_train_epochs": 10, "optim_args": "momentum=0.9", "weight_decay": 5e-4}
        few = num_labels <= 20
        return {"learning_rate": 1e-4 if few else 5e-4, "num_train_epochs": 8 if few else 5, "weight_decay": 0.0}

    def prepare(self, run: Run) -> Plan:
        """The forget images, with labels drawn anew in each epoch, then the retained ones."""
        forget, retain, classifier = run.forget, run.retained, run.classifier

        def make():
            return salient(saliency(classifier, forget.pixels, forget.labels, run.quiet), 1 - self.sparsity), {}

        masks, _ = run.stage("saliency", make)
        keeper = SaliencyMask(dict(run.model.named_parameters()), masks)
        allowed = retained_mask(classifier.num_labels, run.forget_ids).repeat(len(forget), 1)
        allowed[torch.arange(len(forget)), forget.labels] = False
        facts: dict = {}
        named = None if self.targets == "random" else targets_from_proxies(run, self, facts)
        kept = torch.zeros(0, dtype=torch.long) if retain is None else retain.labels
        kept = F.one_hot(kept, classifier.num_labels).float()

        def retarget(epoch: int) -> Tensor:
            if named is not None:
                return torch.cat([named, kept])
            generator = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
            drawn = torch.multinomial(allowed.float(), 1, generator=generator).squeeze(1)
            return torch.cat([F.one_hot(drawn, classifier.num_labels).float(), kept])

        pixels = forget.pixels if retain is None else torch.cat([forget.pixels, retain.pixels])
        blocks = torch.full((len(pixels),), FORGET)
        blocks[len(forget) :] = RETAIN
        return Plan(pixels, retarget(0), None, blocks=blocks, retarget=retarget, keepers=[keeper], facts=facts)
