"""FastClip (AISTATS 2024, PMLR 238): exact spectral norms of a network's affine layers, and their clipping in training.

A linear layer or convolution is ``A(x) = M x + b``. Its spectral norm, the largest singular value of M, is not that of
the reshaped kernel: stride, padding and the size of the inputs that the network gives it matter.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from .errors import UnlearningError, check_choice, check_range
from .pipeline.layers import input_hooks, plain_layers

DIRECTIONS = 8  # iterated at a time: several make the first converge where the leading singular values are close
STILL = 1e-8  # relative change of the norm in one iteration at which it has converged
MOST_ITERATIONS = 2000
WARM_ITERATIONS = 10  # from where the last clipping ended; the published code takes one in each training step
ROUNDS = 100  # of clipping at the end of training
TOLERANCE = 0.01  # relative, above c
BATCH_NORMS = ("leave", "clip")
BATCH_NORM = nn.modules.batchnorm._BatchNorm

Shape = tuple[int, ...]  # of one image, or one row of features
Triples = tuple[Tensor, Tensor, Tensor]  # singular values, right vectors, left vectors


def spectral_norms(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> dict[str, float]:
    """The spectral norm of every linear and 2-d convolution layer that a forward pass reaches, biases aside.

    Args:
        inputs: a batch to run the model on, a tensor or the model's arguments by name (``{"pixel_values": ...}``).

    Returns:
        Layer name -> its norm, from converged PowerQR iterations in float64 (float32 on MPS), in the order of the
        forward pass. A layer that is called on several sizes counts with the largest. Layers whose weight is computed,
        or that change their input in a forward pass of their own, are left out.
    """
    layers = plain_layers(model)
    return {name: norm(layers[name], name, shape) for name, shape in watched(model, layers, inputs).items()}


class FastClip(TrainerCallback):
    """Keeps the spectral norm of every linear and 2-d convolution layer at ``c`` at most, in any ``Trainer``.

    Every ``every`` steps the leading singular directions of each layer are followed from where they were (PowerQR), and
    those above c are clipped. Before each evaluation and each checkpoint, and at the end, that is repeated until the
    exact norm is at most ``c (1 + .01)``.

    Clipping is the least change of the weight after which each direction v has a gain ``u . A(v)`` of c: for a linear
    layer ``W - sum (sigma - c) u v^T``, for a convolution one step on ``||A_w(v) - A((c / sigma) v)||^2`` over the
    kernel, whose gradient is the same sum seen through the kernel's repetition, of the length that fits. Where a
    convolution does not come down so, its kernel is scaled by c / sigma, which minimises the same fit exactly.

    Differences from the published code: norms below c stay (there they are raised to c by default); several directions
    are clipped at once; iterations are run at each clipping instead of one in each step, without a warm-up; and the
    identity, which the published iteration adds to ``M^T M`` and which slows it down for small norms, is left out.

    Attention and normalisation are not affine: the norms bound the network's Lipschitz constant only where there are
    none. In eval mode batch norm is affine, with the norm ``max |gamma| / sqrt(running_var + eps)``.

    Args:
        c: the bound, above 0. every: steps from one clipping to the next, the paper's 50 with batch norm (100 without).
        batch_norm: "leave", as trained, so that it makes up for the gain that clipping takes; or "clip":
            ``|gamma| <= c sqrt(running_var + eps)`` in each channel, after Gouk et al. 2021, at each clipping. That
            cost a small network two to five points on digits, as training without batch norm did; "leave" none.

    Attributes:
        norms: layer name -> exact norm, after the last thorough clipping.

    Raises:
        UnlearningError: an option out of range, or, when training begins, sharded weights.
    """

    def __init__(self, c: float = 1.0, every: int = 50, batch_norm: str = "leave"):
        check_range("c", c, above=0)
        check_range("every", every, whole=True, least=1)
        check_choice("batch_norm", batch_norm, BATCH_NORMS)
        self.c, self.every, self.batch_norm = c, every, batch_norm
        self.norms: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, *_: Any, model: nn.Module, **__: Any) -> None:
        """Begin anew, with whole weights."""
        rows = any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
        for name in ("fsdp", "deepspeed"):
            if getattr(args, name) or (rows and name == "fsdp"):
                raise UnlearningError(f"FastClip must see whole weights, which {name} shards: leave {name} out.")
        self.layers = plain_layers(model)
        self.shapes: dict[str, Shape] = {}
        self.directions: dict[str, Tensor] = {}
        self.watching = contextlib.ExitStack()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """In the first step, see what the layers read."""
        if not self.shapes:
            self.watching.enter_context(watch(self.layers, self.shapes))

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, model: nn.Module, **_: Any) -> None:
        """Clip, where it is due."""
        self.watching.close()
        if state.global_step % self.every == 0:
            for name in self.shapes:
                clip(self.layers[name], *self.follow(name), self.c)
            self.clip_batch_norms(model)
        self.before_others(control, model)

    def on_epoch_end(self, _args: Any, _state: Any, control: TrainerControl, model: nn.Module, **_: Any) -> None:
        """Whoever evaluates or saves next sees clipped weights."""
        self.before_others(control, model)

    def on_train_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Clip for the last time."""
        self.watching.close()
        self.finish(model)

    def before_others(self, control: TrainerControl, model: nn.Module) -> None:
        """Clip thoroughly where the model is about to be evaluated or saved."""
        if control.should_save or control.should_evaluate:
            self.finish(model)
            self.directions.clear()  # a checkpoint does not hold them: a run that goes on from one is the same

    def follow(self, name: str) -> Triples:
        """A few iterations from where the last ended, the last direction made random again: what outgrows those that
        were followed is met too."""
        layer, shape = self.layers[name], self.shapes[name]
        vectors = start(name, shape)
        followed = self.directions.get(name, vectors)[:-1]
        vectors[: len(followed)] = followed
        triples = power_qr(layer, vectors, WARM_ITERATIONS)
        self.directions[name] = triples[1]
        return triples

    def finish(self, model: nn.Module) -> None:
        """Clip until all is at most ``c (1 + TOLERANCE)``."""
        self.clip_batch_norms(model)
        self.norms = {name: self.bring_down(name) for name in self.shapes}

    def bring_down(self, name: str) -> float:
        """The layer's exact norm, once it is low enough."""
        layer, shape, bound = self.layers[name], self.shapes[name], self.c * (1 + TOLERANCE)
        for _ in range(ROUNDS):
            triples = self.follow(name)
            if triples[0][0] <= bound:
                triples = power_qr(layer, start(name, shape), until=bound)
                if triples[0][0] <= bound:
                    return float(triples[0][0])
                self.directions[name] = triples[1]
            clip(layer, *triples, self.c)
        with torch.no_grad():
            layer.get_parameter("weight").mul_(self.c / norm(layer, name, shape))
        return norm(layer, name, shape)

    @torch.no_grad()
    def clip_batch_norms(self, model: nn.Module) -> None:
        """Clamp their gains, where that was asked for."""
        for module in model.modules() if self.batch_norm == "clip" else ():
            if isinstance(module, BATCH_NORM) and module.affine and module.running_var is not None:
                bound = self.c * (module.running_var + module.eps).sqrt()
                module.weight.copy_(module.weight.clamp(-bound, bound))


def watch(layers: Mapping[str, nn.Module], shapes: dict[str, Shape]) -> contextlib.AbstractContextManager[None]:
    """Inside the block the shape of one input row, or image, of each layer is written, the largest that comes."""

    def look(name: str, x: Tensor) -> None:
        shape = tuple(x.shape[1:] if isinstance(layers[name], nn.Conv2d) else x.shape[-1:])
        shapes[name] = max(shapes.get(name, shape), shape, key=math.prod)

    return input_hooks(layers.items(), look)


@torch.no_grad()
def watched(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor | Mapping[str, Tensor]
) -> dict[str, Shape]:
    """Input shapes of the layers that one forward pass in eval mode reaches."""
    shapes: dict[str, Shape] = {}
    was_training = model.training
    model.eval()
    try:
        with watch(layers, shapes):
            model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    finally:
        model.train(was_training)
    return shapes


def linear_part(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """``A(x) - A(0)`` for a batch, with a weight in place of the layer's."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, None)
    return x @ weight if isinstance(layer, Conv1D) else F.linear(x, weight)


def exact(layer: nn.Module) -> Tensor:
    """The weight in float64, which neither autocast nor TF32 touches; MPS has float32 alone."""
    weight = layer.get_parameter("weight").detach()
    return weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)


def start(name: str, shape: Shape) -> Tensor:
    """``(k, *shape)``, as many random directions as are iterated; always the same for one layer."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(min(DIRECTIONS, math.prod(shape)), *shape, generator=generator, dtype=torch.float64)


def power_qr(layer: nn.Module, vectors: Tensor, iterations: int = MOST_ITERATIONS, until: float = math.inf) -> Triples:
    """``V <- QR(grad_V 1/2 ||A(V) - A(0)||^2) = QR(M^T M V)`` from vectors ``(k, *shape)`` until the first singular
    value stays where it is, or exceeds ``until`` (no value exceeds the norm).

    Returns:
        Singular values ``(k,)``, descending, right vectors ``(k, *shape)`` and left ones ``(k, *output shape)``: of M
        in the space of the last vectors; fewer where the output has fewer dimensions.
    """
    weight = exact(layer)
    vectors, shape, before = vectors.to(weight), vectors.shape[1:], math.inf
    with torch.enable_grad():
        for _ in range(iterations):
            vectors = torch.linalg.qr(vectors.flatten(1).T).Q.T.reshape(-1, *shape).requires_grad_()
            image = linear_part(layer, vectors, weight)
            mixing, sigma, left = torch.linalg.svd(image.detach().flatten(1), full_matrices=False)
            now = float(sigma[0])
            if now > until or abs(now - before) <= STILL * now:
                break
            before = now
            (following,) = torch.autograd.grad(image.square().sum() / 2, vectors)
            vectors, last = following, vectors.detach()
        else:
            vectors = last
    right = (mixing.T @ vectors.detach().flatten(1)).reshape(-1, *shape)
    return sigma, right, left.reshape(-1, *image.shape[1:])


def norm(layer: nn.Module, name: str, shape: Shape) -> float:
    """Exact, from a start of its own."""
    return float(power_qr(layer, start(name, shape))[0][0])


def clip(layer: nn.Module, sigma: Tensor, right: Tensor, left: Tensor, c: float) -> None:
    """The least change of the weight after which ``left . A(right)`` is c for each of the directions that are above."""
    above = sigma > c
    if not above.any():
        return
    excess, right, left = sigma[above] - c, right[above], left[above]
    if isinstance(layer, nn.Conv2d):
        weight = exact(layer).requires_grad_()
        with torch.enable_grad():
            gains = (left * linear_part(layer, right, weight)).flatten(1).sum(1)
            rows = [torch.autograd.grad(gain, weight, retain_graph=True)[0].flatten() for gain in gains]
        slopes = torch.stack(rows)
        change = (torch.linalg.pinv(slopes @ slopes.T, hermitian=True) @ excess @ slopes).view_as(weight)
    else:
        change = (left.T * excess) @ right
        change = change.T if isinstance(layer, Conv1D) else change
    with torch.no_grad():
        layer.get_parameter("weight").sub_(change)
