"""FastClip (AISTATS 2024, PMLR 238): exact spectral norms of a network's affine layers, and their clipping in training.

A linear layer or convolution is ``A(x) = M x + b``. Its spectral norm, the largest singular value of M for the inputs
that the network gives it, is not that of the reshaped kernel: stride, padding and the input's size matter.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from .errors import UnlearningError, check_choice, check_range
from .parallel.sharding import FSDPModule
from .pipeline.layers import LAYER_TYPES

DIRECTIONS = 8  # iterated at a time: several make the first converge where the leading singular values are close
STILL = 1e-8  # relative change of the norm in one iteration at which it has converged
MOST_ITERATIONS = 2000
WARM_ITERATIONS = 10  # from where the last clipping ended; the published code takes one in each training step
ROUNDS = 100  # of clipping at the end of training
TOLERANCE = 0.01  # relative, above c
BATCH_NORMS = ("leave", "clip")

Triples = tuple[Tensor, Tensor, Tensor]  # singular values, right vectors, left vectors


def spectral_norms(model: nn.Module, inputs: Tensor | Mapping[str, Tensor] | Mapping[str, tuple]) -> dict[str, float]:
    """The spectral norm of every linear and 2-d convolution layer that a forward pass reaches, biases aside.

    Args:
        inputs: a batch to run the model on, a tensor or the model's arguments by name
            (``{"pixel_values": ...}``); or the layers' input shapes by name, where they are known: of a batch
            of any size, ``(N, channels, H, W)`` or ``(N, ..., in_features)``.

    Returns:
        Layer name -> its norm, from converged PowerQR iterations in float64 (float32 on MPS), in the order of
        the forward pass. A layer that is called on several sizes counts with the largest. Layers whose weight is
        computed, or that change their input in a forward pass of their own, are left out.

    Raises:
        UnlearningError: a shape is given for something that is no such layer.
    """
    layers = affine_layers(model)
    if isinstance(inputs, Mapping) and not any(isinstance(value, Tensor) for value in inputs.values()):
        unknown = [name for name in inputs if name not in layers]
        if unknown:
            raise UnlearningError(
                f"{unknown[0]!r} is no linear or 2-d convolution layer of the model: give shapes of"
                f" {', '.join(layers)}."
            )
        shapes = {name: row_shape(layers[name], shape) for name, shape in inputs.items()}
    else:
        shapes = watched(model, layers, inputs)
    return {name: norm(layers[name], name, shape) for name, shape in shapes.items()}


class FastClip(TrainerCallback):
    """Keeps the spectral norm of every linear and 2-d convolution layer at ``c`` at most, in any ``Trainer``.

    Every ``every`` steps the leading singular directions of each layer are followed from where they were (PowerQR), and
    those above c are clipped. Before each evaluation and each checkpoint, and at the end, that is repeated until the
    exact norm is at most ``c (1 + .01)``.

    Clipping is the least change of the weight after which each direction v has a gain ``u . A(v)`` of c: for a
    linear layer ``W - sum (sigma - c) u v^T``, in closed form, for a convolution one step on
    ``||A_w(v) - A((c / sigma) v)||^2`` over the kernel, whose gradient is the same sum seen through the kernel's
    repetition, of the length that fits. Where a convolution does not come down so, its kernel is scaled by c / sigma,
    which minimises the same fit exactly.

    Differences from the published code: norms below c stay (there, in its default, they are raised to c); several
    directions are clipped at once, not the first alone; iterations are run at each clipping instead of one in each
    step; no warm-up, which those needed; and the identity, which the published iteration adds to ``M^T M`` and which
    slows it down for small norms, is left out.

    Attention and normalisation are not affine: the network's Lipschitz constant is bounded by the norms only where
    there are none. In eval mode batch norm is affine, with the norm ``max |gamma| / sqrt(running_var + eps)``.

    Args:
        c: the bound, above 0. every: steps from one clipping to the next, the paper's 50 with batch norm (100 without).
        batch_norm: "leave", as trained, so that it makes up for the gain that clipping takes; or "clip":
            ``|gamma| <= c sqrt(running_var + eps)`` in each channel, after Gouk et al. 2021, at each clipping. That
            costs accuracy, as does training without batch norm: digits on a small network lost two to five points,
            and none with "leave".

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

    def on_train_begin(self, args, state, control, model=None, **_):
        for name in ("fsdp", "deepspeed"):
            if getattr(args, name):
                raise UnlearningError(f"FastClip must see whole weights, which {name} shards: leave {name} out.")
        if isinstance(model, FSDPModule):
            raise UnlearningError(
                "FastClip must see whole weights, which FSDP version 2 shards: launch with"
                " 'accelerate_configs/multi_gpu.yaml'."
            )
        self.layers, self.shapes, self.directions, self.hooks = affine_layers(model), {}, {}, []

    def on_step_begin(self, args, state, control, **_):
        if not self.shapes and not self.hooks:
            self.hooks = watch(self.layers, self.shapes)

    def on_step_end(self, args, state, control, model=None, **_):
        self.unwatch()
        if state.global_step % self.every == 0:
            for name in self.shapes:
                clip(self.layers[name], *self.follow(name), self.c)
            self.clip_batch_norms(model)
        self.before_others(control, model)

    def on_epoch_end(self, args, state, control, model=None, **_):
        self.before_others(control, model)

    def on_train_end(self, args, state, control, model=None, **_):
        self.unwatch()
        self.finish(model)

    def before_others(self, control, model: nn.Module) -> None:
        if control.should_save or control.should_evaluate:
            self.finish(model)
            self.directions.clear()  # a checkpoint does not hold them: a run that goes on from one is the same

    def unwatch(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def follow(self, name: str) -> Triples:
        """A few iterations from where the last ended, the last direction made random again: what outgrows those that
        were followed is found too."""
        layer, shape = self.layers[name], self.shapes[name]
        vectors = start(name, shape)
        followed = self.directions.get(name, vectors)[:-1]
        vectors[: len(followed)] = followed
        found = power_qr(layer, vectors, WARM_ITERATIONS)
        self.directions[name] = found[1]
        return found

    def finish(self, model: nn.Module) -> None:
        """Clip until all is at most ``c (1 + TOLERANCE)``."""
        self.clip_batch_norms(model)
        self.norms = {name: self.bring_down(name) for name in self.shapes}

    def bring_down(self, name: str) -> float:
        """The layer's exact norm, once it is low enough."""
        layer, shape, bound = self.layers[name], self.shapes[name], self.c * (1 + TOLERANCE)
        for _ in range(ROUNDS):
            found = self.follow(name)
            if found[0][0] <= bound:
                found = power_qr(layer, start(name, shape), until=bound)
                if found[0][0] <= bound:
                    return float(found[0][0])
                self.directions[name] = found[1]
            clip(layer, *found, self.c)
        with torch.no_grad():
            layer.weight.mul_(self.c / norm(layer, name, shape))
        return norm(layer, name, shape)

    @torch.no_grad()
    def clip_batch_norms(self, model: nn.Module) -> None:
        if self.batch_norm == "clip":
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats:
                    bound = self.c * (module.running_var + module.eps).sqrt()
                    module.weight.copy_(module.weight.clamp(-bound, bound))


def affine_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that are a product with a weight of their own and nothing else, by name."""
    plain = [kind.forward for kind in LAYER_TYPES]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYER_TYPES) and type(module).forward in plain and isinstance(module.weight, nn.Parameter)
    }


def row_shape(layer: nn.Module, shape: tuple) -> tuple:
    """Of one image, or one row of features, in a batch of the shape."""
    return tuple(shape[1:] if isinstance(layer, nn.Conv2d) else shape[-1:])


def watch(layers: dict[str, nn.Module], shapes: dict[str, tuple]) -> list:
    """Hooks that write the shape of one input row, or image, of each layer, the largest that it is called on."""

    def look(name: str, x: Tensor) -> None:
        shape = row_shape(layers[name], x.shape)
        shapes[name] = max(shapes.get(name, shape), shape, key=math.prod)

    return [
        module.register_forward_pre_hook(lambda _module, args, name=name: look(name, args[0]))
        for name, module in layers.items()
    ]


@torch.no_grad()
def watched(model: nn.Module, layers: dict[str, nn.Module], inputs: Tensor | Mapping[str, Tensor]) -> dict[str, tuple]:
    """Input shapes of the layers that one forward pass in eval mode reaches."""
    shapes: dict[str, tuple] = {}
    hooks, was_training = watch(layers, shapes), model.training
    model.eval()
    try:
        model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return shapes


def linear_part(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """``A(x) - A(0)`` for a batch, with a weight in place of the layer's."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, None)
    return x @ weight if isinstance(layer, Conv1D) else F.linear(x, weight)


def exact(weight: Tensor) -> Tensor:
    """In float64, which neither autocast nor TF32 touches; MPS has float32 alone."""
    return weight.detach().to(torch.float32 if weight.device.type == "mps" else torch.float64)


def start(name: str, shape: tuple) -> Tensor:
    """``(k, *shape)``, as many random directions as are iterated; always the same for one layer."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(min(DIRECTIONS, math.prod(shape)), *shape, generator=generator, dtype=torch.float64)


def power_qr(layer: nn.Module, vectors: Tensor, iterations: int = MOST_ITERATIONS, until: float = math.inf) -> Triples:
    """``V <- QR(grad_V 1/2 ||A(V) - A(0)||^2) = QR(M^T M V)`` until the first singular value stays where it is.

    Args:
        vectors: ``(k, *shape)``, where to start. until: what is found never exceeds the norm, so beyond this it ends.

    Returns:
        Singular values ``(k,)``, descending, right vectors ``(k, *shape)`` and left ones ``(k, *output shape)``: of M
        in the space of the last vectors; fewer where the output has fewer dimensions.
    """
    weight = exact(layer.weight)
    vectors, shape, before = vectors.to(weight), vectors.shape[1:], torch.inf
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


def norm(layer: nn.Module, name: str, shape: tuple) -> float:
    """Exact, from a start of its own."""
    return float(power_qr(layer, start(name, shape))[0][0])


def clip(layer: nn.Module, sigma: Tensor, right: Tensor, left: Tensor, c: float) -> None:
    """The least change of the weight after which ``left . A(right)`` is c for each of the directions that are above."""
    above = sigma > c
    if not above.any():
        return
    excess, right, left = sigma[above] - c, right[above], left[above]
    if isinstance(layer, nn.Conv2d):
        weight = exact(layer.weight).requires_grad_()
        with torch.enable_grad():
            gains = (left * linear_part(layer, right, weight)).flatten(1).sum(1)
            slopes = [torch.autograd.grad(gain, weight, retain_graph=True)[0].flatten() for gain in gains]
        slopes = torch.stack(slopes)
        steps = torch.linalg.pinv(slopes @ slopes.T, hermitian=True) @ excess
        change = (steps @ slopes).view_as(weight)
    else:
        change = (left.T * excess) @ right
        change = change.T if isinstance(layer, Conv1D) else change
    with torch.no_grad():
        layer.weight.sub_(change)
