"""MixUnlearn (arXiv 2502.10288): unlearning on mixtures of forget and retained images that a generator makes hard."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from ..config import option
from ..errors import UnlearningError
from ..parallel.batches import KeptProxies
from ..parallel.processes import rank_and_size, summed
from ..pipeline.classifier import to_unit
from ..pipeline.pseudo_labels import retained_mask
from .mixblock import MiddleFeatures, MixBlock
from .options import Confined, Retained, Trained
from .plan import Plan
from .run import Run

MIX_ALPHA = 0.75  # of Beta(alpha, alpha), which the forget image's share in a mixture is drawn from
SHARPNESS = 0.3  # T of Sharpen(p) = p^(1/T) / sum
TAU_MIX, TAU_REAL, TAU_GEN = 4.0, 4.0, 4.0  # ours: the paper's appendix, which has them, could not be read
OMEGA = 1.0  # of L_real; likewise
INTERVAL = 4  # iterations from one of the generator's steps to the next; 2 in the published file
MOMENTUM = 0.999  # of the average that the generator's loss is taken through
GENERATOR_RATE = 0.1  # plain SGD, as in AutoMix's own runs, from which MixBlock is; MixUnlearn's is not known


@dataclass(kw_only=True)
class MixUnlearn(Confined, Retained, Trained):
    """An image to forget x_i and a retained image x_j make ``x_mix = M x_i + (1 - M) x_j``, M from a MixBlock over the
    original's features of both; share lambda ~ Beta(.75, .75). With d(a, b) = 1 - cos(a, b) on softmax outputs and
    targets p(x) = Sharpen(original's output), tau in the denominator only:

        L_mix  = sum_j log[ exp((1 - lambda) d(f(x_mix), p(x_j))) / sum_i exp(lambda d(f(x_mix), p(x_i)) / tau_mix) ]
        L_real = sum_j log[ exp(d(f(x_j), p(x_j))) / sum_i exp(d(f(x_i), p(x_i)) / tau_real) ]
        L_gen  = -L_mix with tau_gen, through an average of the model's weights over its steps

    The model minimises L_mix + omega L_real in every step, the generator L_gen in every fourth. One epoch goes through
    the retained images, each beside an image to forget.

    Where this departs: the outer sums are means (at a batch of 32, a learning rate for the sums is 1/32 of ours), and
    logarithm and sums are taken together, in float32. The published file's model branch pairs retained images anew
    without doing so to their targets; here targets go with their images, and it is the generator's branch that draws
    its images to forget anew. Targets of retained images have no share of forgotten classes.

    tau, omega, optimizer, learning rate and epochs stand in an appendix that could not be read and are ours: plain SGD
    at 1e-3 for ten epochs. The pull away from images to forget has a weight of 1 / tau. On digits and a small ViT, with
    plain mixtures, a class is gone at any tau from 1 to 4; of 130 random images, tau 1 left 47 % right and took the
    test accuracy from 95 to 67 %, tau 4 left 89 % right and 94 %. Two images of one class, which random images to
    forget may meet, pull a mixture both ways, as in the paper.
    """

    description: ClassVar[str] = (
        "MixUnlearn ([arXiv 2502.10288](https://arxiv.org/abs/2502.10288)): contrastive losses that lead away from the"
        " original's outputs on the images to forget and keep them on retained images, on both and on mixtures of the"
        " two, whose masks an adversarial generator makes."
    )
    forgets: ClassVar[tuple[str, ...]] = ("classes", "images")
    generates: ClassVar[bool] = True  # masks; else all of a mixture has one share, as in mixup

    learning_rate: float | None = option(1e-3, "Of the optimizer.", above=0)

    def prepare(self, run: Run) -> Plan:
        """Retained images, each beside an image to forget, and the generator."""
        forget, retain, classifier = run.forget, run.kept, run.classifier
        keep = retained_mask(classifier.num_labels, run.forget_ids)
        kept = sharpened(classifier.predict_shared(retain.pixels).masked_fill(~keep, -torch.inf))
        gone = sharpened(classifier.predict_shared(forget.pixels))
        plan = Plan(retain.pixels, kept, None, proxies=KeptProxies(forget.pixels, gone, forget.labels))
        self.step, self.within = -1, 0
        if self.generates:
            self.generator = Generator(run, forget.pixels, gone)
            plan.callbacks.append(self.generator)
        return plan

    def parts(self, inputs):
        """Mixtures, retained images, and images to forget: the memory of one forward pass and not of three."""
        kept, gone = ("pixels", "targets"), ("proxy_pixels", "proxy_targets")
        return [inputs, *({name: inputs[name] for name in (*names, "weights")} for names in (kept, gone))]

    def place(self, run: Run) -> int:
        """Of a batch among those that are accumulated into one step, from 0."""
        step = run.state.global_step
        self.within = self.within + 1 if step == self.step else 0
        self.step = step
        return self.within

    def compute_loss(self, run: Run, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """One of the three parts, by which images the batch holds."""
        weights = inputs["weights"]
        if "proxy_pixels" not in inputs:  # L_real, its numerator
            away = distance(self.logits(run, model, inputs["pixels"]), inputs["targets"])
            return OMEGA * (weights * away).sum()
        if "pixels" not in inputs:  # L_real, its denominator
            away = distance(self.logits(run, model, inputs["proxy_pixels"]), inputs["proxy_targets"])
            return -OMEGA * log_sum(away / TAU_REAL, weights)
        draws = Draws(run, len(run.forget), self.place(run))
        kept, gone = (to_unit(inputs[name], weights.device) for name in ("pixels", "proxy_pixels"))
        masks = draws.share
        if self.generates:
            if torch.is_grad_enabled() and run.state.global_step % INTERVAL == 0 and not self.within:
                self.generator.step(kept, inputs["targets"], weights, draws)
            with torch.no_grad():
                masks = self.generator.masks(gone, kept, draws.share)
        logits = self.logits(run, model, mixed(gone, kept, masks))
        return mix_loss(logits, inputs["targets"], inputs["proxy_targets"], weights, draws.share, TAU_MIX)


@dataclass(kw_only=True)
class MixupUnlearn(MixUnlearn):
    """MixUnlearn without its generator: a mixture is ``lambda x_i + (1 - lambda) x_j``, as in mixup. By the paper's own
    ablation within a point of the whole method."""

    description: ClassVar[str] = (
        "Mixup unlearning, MixUnlearn ([arXiv 2502.10288](https://arxiv.org/abs/2502.10288)) without its generator:"
        " contrastive losses that lead away from the original's outputs on the images to forget and keep them on"
        " retained images, on both and on plain mixtures of the two."
    )
    generates: ClassVar[bool] = False


class Draws:
    """What is drawn for one iteration, from seed and step alone: so it depends on neither the number of processes nor
    on where a run was cut off.

    Attributes:
        share, generator_share: lambda of the model's mixtures and of the generator's, in [0, 1].
        rows: ``(B,)`` indices of the images to forget in the generator's mixtures, B the global batch.
    """

    def __init__(self, run: Run, count: int, within: int = 0):
        args = run.args
        rng = np.random.default_rng([args.seed, run.state.global_step, within])
        self.share, self.generator_share = rng.beta(MIX_ALPHA, MIX_ALPHA, 2).tolist()
        self.rows = torch.from_numpy(rng.integers(count, size=args.per_device_train_batch_size * args.world_size))


class Generator(TrainerCallback):
    """The MixBlock, the original whose features it reads, and the average of the model that it works against.

    What a checkpoint does not hold, its weights and the average, is written beside the stages before each checkpoint.

    Args:
        pixels, targets: of the images to forget, ``(N, channels, H, W)`` and ``(N, C)``.

    Raises:
        UnlearningError: no layer of the model yields features to make masks from.
    """

    def __init__(self, run: Run, pixels: Tensor, targets: Tensor):
        self.model, self.cache, self.pixels, self.targets = run.model, run.stages, pixels, targets
        original, self.average = (copy.deepcopy(run.classifier).eval().requires_grad_(False) for _ in range(2))
        self.features = MiddleFeatures(original, list(run.layers), to_unit(pixels[[0, -1]], original.device))
        self.mix_block = MixBlock(self.features.width, run.seed).to(original.device)

    def masks(self, gone: Tensor, kept: Tensor, share: float) -> Tensor:
        """``(n, 2, H, W)``, of images to forget and of retained ones, both in [0, 1]."""
        return self.mix_block(self.features(gone), self.features(kept), share, tuple(kept.shape[2:]))

    def step(self, kept: Tensor, targets: Tensor, weights: Tensor, draws: Draws) -> None:
        """One step of plain SGD on L_gen; nothing but the MixBlock gets a gradient.

        Args:
            kept, targets, weights: this process's retained images, ``(n, channels, H, W)`` in [0, 1], and their own.
        """
        rank, size = rank_and_size()
        rows = draws.rows[rank::size][: len(kept)]
        gone, share = to_unit(self.pixels[rows], kept.device), draws.generator_share
        with torch.autocast(kept.device.type, enabled=False):
            logits = self.average(mixed(gone, kept, self.masks(gone, kept, share))).float()
            loss = -mix_loss(logits, targets, self.targets[rows].to(kept.device), weights, share, TAU_GEN)
        parameters = list(self.mix_block.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= GENERATOR_RATE / size * summed(gradient)

    @torch.no_grad()
    def on_step_end(self, args, state, control, **_):
        """The average follows the model."""
        for mean, parameter in zip(self.average.model.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(parameter, 1 - MOMENTUM)
        self.keep(state, control)

    def on_epoch_end(self, args, state, control, **_):
        """Where checkpoints are written at the end of an epoch."""
        self.keep(state, control)

    def keep(self, state, control) -> None:
        """Before the checkpoint: one that is there never lacks what belongs to it."""
        if control.should_save:
            self.cache.store(kept_name(state.global_step), self.tensors(), {})

    def on_save(self, args, state, control, **_):
        """Delete what belongs to checkpoints that are gone."""
        if self.cache.first:  # those whose checkpoints have been deleted
            there = {kept_name(int(path.name.split("-")[1])) for path in self.cache.root.parent.glob("checkpoint-*")}
            for path in self.cache.folder.glob(f"{kept_name('*')}.safetensors"):
                if path.stem not in there:
                    path.unlink()

    @torch.no_grad()
    def on_train_begin(self, args, state, control, **_):
        """On resuming, what belongs to the checkpoint."""
        if not state.global_step:
            return
        kept = self.cache.load(kept_name(state.global_step))
        if kept is None:
            raise UnlearningError(
                f"the checkpoint of step {state.global_step} cannot be gone on from: what belongs to it and was kept in"
                f" {str(self.cache.folder)!r} is gone or damaged. Leave resume_from_checkpoint out to begin anew."
            )
        for name, tensor in self.tensors().items():
            tensor.copy_(kept[0][name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint does not hold, by name."""
        parts = {"average": self.average.model, "mix_block": self.mix_block}
        return {f"{part}/{name}": p.data for part, module in parts.items() for name, p in module.named_parameters()}

    def on_train_end(self, args, state, control, **_):
        """Give two models' memory back."""
        del self.features, self.average, self.pixels, self.targets  # two models' memory


def kept_name(step: int | str) -> str:
    """In the stage cache."""
    return f"generator-{step}"


def sharpened(logits: Tensor) -> Tensor:
    """``(N, C)``: softmax to the power 1/T, divided by its sum."""
    return (logits / SHARPNESS).softmax(1)


def mixed(gone: Tensor, kept: Tensor, masks: Tensor | float) -> Tensor:
    """Images to forget and retained ones by their masks ``(N, 2, H, W)``, or by the share of the former."""
    if isinstance(masks, float):
        return masks * gone + (1 - masks) * kept
    return masks[:, :1] * gone + masks[:, 1:] * kept


def distance(logits: Tensor, targets: Tensor) -> Tensor:
    """``(N,)`` in [0, 1]: d of the paper, between outputs and targets."""
    return 1 - F.cosine_similarity(logits.softmax(1), targets, dim=1)


def mix_loss(logits: Tensor, kept: Tensor, gone: Tensor, weights: Tensor, share: float, tau: float) -> Tensor:
    """L_mix, its outer sum as a mean.

    Args:
        logits: ``(N, C)`` on mixtures. kept, gone: ``(N, C)`` targets of the retained image and of the one to forget
            in each. weights: ``(N,)``, of rows. share: lambda.
    """
    near = (weights * (1 - share) * distance(logits, kept)).sum()
    return near - log_sum(share * distance(logits, gone) / tau, weights)


def log_sum(terms: Tensor, weights: Tensor) -> Tensor:
    """log sum_i exp(terms_i) over the rows of the global batch, those of weight 0 left out: a process's share of the
    gradient is such that the mean over processes is the whole one's.

    Without gradients (a loss that is looked at again, by one process) over its own rows.
    """
    rank, size = rank_and_size() if torch.is_grad_enabled() else (0, 1)
    known = terms.detach().masked_fill(weights <= 0, -torch.inf)
    parts = torch.zeros(size, dtype=known.dtype, device=known.device)
    parts[rank] = known.logsumexp(0)
    total = (summed(parts) if torch.is_grad_enabled() else parts).logsumexp(0)
    return total + size * ((known - total).exp() * (terms - terms.detach())).sum()
