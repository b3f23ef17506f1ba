"""SalUn (arXiv 2310.12508): random labels, learned by those weights alone that the forget images' loss depends on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from tqdm.auto import tqdm

from ..parallel.processes import my_batches, summed
from ..pipeline.classifier import gradient_batch, to_unit
from ..pipeline.pseudo_labels import retained_mask
from .base import Method, Plan
from .stages import gather_targets

SALIENT_SHARE = 0.5  # of all parameters' entries that may move, the paper's
FORGET, RETAIN = 0, 1  # blocks


def loss_gradient(classifier, pixels: Tensor, labels: Tensor, count: int) -> dict[str, Tensor]:
    """Gradient of (sum of cross-entropies) / count by every parameter, in eval mode; zero where the loss does not
    depend on one.

    Args:
        pixels: ``(N, channels, H, W)``. labels: ``(N,)``.

    Returns:
        parameter name -> tensor of its shape, on its device.
    """
    classifier.model.eval()
    weights = {name: p.detach().requires_grad_() for name, p in classifier.model.named_parameters()}
    replaced = {f"model.{name}": weight for name, weight in weights.items()}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    at_once = gradient_batch(pixels)
    for x, y in zip(pixels.split(at_once), labels.split(at_once), strict=True):
        with torch.enable_grad():
            logits = functional_call(classifier, replaced, (to_unit(x, classifier.device),))
            loss = F.cross_entropy(logits, y.to(logits.device), reduction="sum") / count
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[name] += gradient
    return total


def saliency(classifier, pixels: Tensor, labels: Tensor, disable_progress: bool = True) -> dict[str, Tensor]:
    """|gradient of the mean cross-entropy over all images| by every parameter, on the CPU; processes share the batches.

    The published code adds up means of batches, so that the images of a last, smaller batch count for more.
    """
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in classifier.model.named_parameters()}
    for rows in tqdm(my_batches(len(pixels), gradient_batch(pixels)), desc="Saliency", disable=disable_progress):
        for name, gradient in loss_gradient(classifier, pixels[rows], labels[rows], len(pixels)).items():
            total[name] += gradient
    return {name: summed(part).abs().cpu() for name, part in total.items()}


def salient(magnitudes: dict[str, Tensor], share: float = SALIENT_SHARE) -> dict[str, Tensor]:
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
        self.before = [parameter.detach().clone() for parameter, _mask in self.parts]
        for parameter, mask in self.parts:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def after_step(self, optimizer, *_):
        for (parameter, mask), before in zip(self.parts, self.before, strict=True):
            parameter.copy_(torch.where(mask, parameter, before))
            for state in optimizer.state.get(parameter, {}).values():
                if isinstance(state, Tensor) and state.shape == mask.shape:
                    state.mul_(mask)
        self.before = []


class SalUn(Method):
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
    momentum, without retained images, ruin the model (CIFAR-10: retained accuracy .62 to .25). Where classes are
    forgotten, ``pseudo_label``, ``prior`` and ``tilt`` name other targets than random labels, the same in each epoch.
    """

    description = (
        "SalUn ([arXiv 2310.12508](https://arxiv.org/abs/2310.12508)): random labels for the forget images, learned by"
        " the half of the weights that their loss depends on most."
    )
    forgets = ("classes", "images")
    takes_retain = True
    takes_targets = True

    @staticmethod
    def settings(num_labels: int) -> dict:
        few = num_labels <= 20
        return {"learning_rate": 1e-4 if few else 5e-4, "num_train_epochs": 8 if few else 5}

    @staticmethod
    def retained_settings(num_labels: int) -> dict:
        published = {"learning_rate": 0.013, "num_train_epochs": 10}
        return published | {"optim_args": "momentum=0.9", "weight_decay": 5e-4}

    def prepare(self, trainer) -> Plan:
        forget, retain, classifier = trainer.forget, trainer.retain, trainer.classifier

        def make():
            return salient(saliency(classifier, forget.pixels, forget.labels, trainer.quiet)), {}

        masks, _ = trainer.finished("saliency", "saliency", make)
        keeper = SaliencyMask(dict(trainer.model.named_parameters()), masks)
        allowed = retained_mask(classifier.num_labels, trainer.forget_ids).repeat(len(forget), 1)
        allowed[torch.arange(len(forget)), forget.labels] = False
        facts = {}
        named = None if trainer.args.pseudo_label is None else gather_targets(trainer, facts).targets
        kept = torch.zeros(0, dtype=torch.long) if retain is None else retain.labels
        kept = F.one_hot(kept, classifier.num_labels).float()

        def retarget(epoch: int) -> Tensor:
            if named is not None:
                return torch.cat([named, kept])
            generator = torch.Generator().manual_seed(trainer.args.seed * 1_000_003 + epoch)
            drawn = torch.multinomial(allowed.float(), 1, generator=generator).squeeze(1)
            return torch.cat([F.one_hot(drawn, classifier.num_labels).float(), kept])

        pixels = forget.pixels if retain is None else torch.cat([forget.pixels, retain.pixels])
        blocks = torch.full((len(pixels),), FORGET)
        blocks[len(forget) :] = RETAIN
        return Plan(pixels, retarget(0), None, blocks=blocks, retarget=retarget, keepers=[keeper], facts=facts)
