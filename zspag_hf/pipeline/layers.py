"""Which weights are constrained, and one documented shape for all of them: rows ``(groups, n, d_in)``.

All branching over layer types ends in this file. A new layer type is one more entry in ``LAYER_TYPES`` and one row in
tests/cases.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError

LAYER_TYPES = (nn.Linear, nn.Conv2d, Conv1D)


@dataclass(frozen=True)
class Layer:
    """One constrained layer.

    Attributes:
        name: qualified module name; the weight is ``name + ".weight"``.
        module: the layer.
        groups: 1, or the groups of a convolution, each with a subspace of its own.
        d_in: width of an input row, the layer's fan-in in one group.
        sharers: further modules that use the very same weight; their inputs count towards its subspace.
        frame: None, or ``(groups, d_in, k)`` with orthonormal columns: a layer too wide for a ``d_in x d_in`` matrix is
            described by its rows' coordinates in a subspace that holds nearly all of them (:class:`.grams.Frame`).
    """

    name: str
    module: nn.Module
    groups: int
    d_in: int
    sharers: tuple[nn.Module, ...] = ()
    frame: Tensor | None = None

    @property
    def weight(self) -> nn.Parameter:
        """Of the module."""
        return self.module.get_parameter("weight")

    @property
    def width(self) -> int:
        """Of :meth:`rows`: ``d_in``, or the number of columns of the frame."""
        return self.d_in if self.frame is None else self.frame.shape[-1]

    def rows(self, x: Tensor) -> Tensor:
        """:meth:`inputs`, in the frame's coordinates where there is one: ``(groups, n, width)``."""
        inputs = self.inputs(x)
        return inputs if self.frame is None else inputs @ self.frame.to(inputs)

    def inputs(self, x: Tensor) -> Tensor:
        """The layer's input as rows: ``(groups, n, d_in)``, n = images x tokens or images x output positions.

        Rows of one image are contiguous and equal in number. ``matrix(weight)`` times a row is the layer's output.
        """
        conv = self.module
        if not isinstance(conv, nn.Conv2d):
            return x.reshape(1, -1, self.d_in)
        padding: tuple[int, ...] = (0, 0)
        if conv.padding_mode != "zeros":
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        elif isinstance(conv.padding, str):
            x = F.pad(x, conv._reversed_padding_repeated_twice)
        else:
            padding = conv.padding
        patches = F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)  # (N, C_in k k, positions)
        patches = patches.view(len(x), self.groups, self.d_in, -1)
        return patches.permute(1, 0, 3, 2).reshape(self.groups, -1, self.d_in)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, out / groups, d_in)``: a view, so writing to it writes the weight."""
        if isinstance(self.module, Conv1D):
            return weight.t().unsqueeze(0)  # stored [in, out]
        return weight.view(self.groups, -1, self.d_in)

    def row_key(self) -> tuple:
        """Layers with equal keys and the same input have the same inputs, so their Gram matrix is computed once."""
        conv = self.module
        if not isinstance(conv, nn.Conv2d):
            return ("linear", self.d_in)
        return ("conv", conv.kernel_size, conv.stride, conv.padding, conv.dilation, self.groups, conv.padding_mode)


Layers = Mapping[str, Layer]  # by their names
Tensors = Mapping[str, Tensor]  # by their layers' names


def as_layer(name: str, module: nn.Module) -> Layer:
    """The :class:`Layer` of a module of one of ``LAYER_TYPES``."""
    weight = module.get_parameter("weight")
    if isinstance(module, nn.Conv2d):
        return Layer(name, module, module.groups, weight[0].numel())
    return Layer(name, module, 1, weight.shape[0 if isinstance(module, Conv1D) else 1])


def plain_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of ``LAYER_TYPES`` that is a product with a weight of its own and nothing else: BiT standardises
    its weights first, a parametrisation computes them."""
    plain = [kind.forward for kind in LAYER_TYPES]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYER_TYPES) and type(module).forward in plain and isinstance(module.weight, nn.Parameter)
    }


def constrained_layers(model: nn.Module, run_forward: Callable[[], object]) -> dict[str, Layer]:
    """The layers that unlearning may change, in the order of the forward pass: every linear or convolution layer whose
    rows are the images'.

    Everything else is frozen: biases, norms, tokens, position tables, embeddings; modules that never fire (the
    ``out_proj`` inside ``nn.MultiheadAttention``, whose weight is used without calling the module); layers that are no
    plain product (:func:`plain_layers`); layers that read something else than the images (the position-bias MLP of
    Swin V2, the queries of Perceiver's cross attention); and layers whose input does not begin with the images (a
    transformer with ``batch_first=False``). A weight that several modules share is listed once, under the first name,
    if all of them may be listed.

    Args:
        run_forward: calls the model on two images at least; twice, the second time with the last image changed: a layer
            reads images where its input changes then, in the last image's part alone.

    Raises:
        UnlearningError: no layer is left.
    """
    named = plain_layers(model)
    before: dict[str, list[Tensor]] = {}
    reads: dict[str, bool] = {}

    def keep(name: str, x: Tensor) -> None:
        before.setdefault(name, []).append(x.clone())

    def compare(name: str, x: Tensor) -> None:
        reads[name] = reads_images(before[name].pop(0), x, len(images)) and reads.get(name, True)

    images = run_watched(model, named, run_forward, keep)
    noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images)
    run_watched(model, named, run_forward, compare, torch.cat([images[:-1], images[-1:] + noise]))
    frozen = {id(named[name].weight) for name in reads if not reads[name]}
    layers: dict[str, Layer] = {}
    owner: dict[int, str] = {}
    for name in (name for name in reads if id(named[name].weight) not in frozen):
        first = owner.setdefault(id(named[name].weight), name)
        if first == name:
            layers[name] = as_layer(name, named[name])
        else:
            layers[first] = replace(layers[first], sharers=(*layers[first].sharers, named[name]))
    if not layers:
        raise UnlearningError(
            "the model has no linear layer or 2-d convolution that reads the images, so nothing of it can be"
            " constrained: give a model built from nn.Linear and nn.Conv2d."
        )
    return layers


@contextlib.contextmanager
def input_hooks(modules: Iterable[tuple[str, nn.Module]], look: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Call ``look(name, input)`` on every input of every named module during the forward passes of the block."""

    def hook(name: str) -> Callable[[nn.Module, tuple], None]:
        def run(_module: nn.Module, args: tuple) -> None:
            look(name, args[0])

        return run

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_watched(
    model: nn.Module,
    named: Mapping[str, nn.Module],
    run_forward: Callable[[], object],
    visit: Callable[[str, Tensor], object],
    images: Tensor | None = None,
) -> Tensor:
    """One forward pass, with ``visit(name, input)`` for each call of a named module; returns what the model read. It is
    to read ``images`` in place of what ``run_forward`` gives it, where there are any."""
    read: list[Tensor] = []

    def look(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        read.append(args[0] if args else kwargs["pixel_values"])
        if images is None:
            return None
        return ((images, *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": images})

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad(), input_hooks(named.items(), visit):
            run_forward()
    finally:
        handle.remove()
    return read[0]


def reads_images(before: Tensor, after: Tensor, images: int) -> bool:
    """Whether a layer's input has one equal part an image, in order: only the last part changes with the last image."""
    if len(before) % images:
        return False
    change = (after - before).abs().unflatten(0, (images, -1)).flatten(1).amax(1)
    if not change.any():
        return not before.any()  # what a ReLU left of these images may be nothing at all
    return not (change[:-1] > 1e-3 * change[-1]).any()  # not 0: sums may be ordered otherwise


def head_name(layers: Layers, num_labels: int) -> str | None:
    """The classification head: the last layer reached whose output has one value a label; None where none has. Of the
    two heads of distilled models (DeiT, LeViT) the first one reached counts as deep."""
    heads = [name for name, layer in layers.items() if layer.weight.numel() == num_labels * layer.d_in]
    return heads[-1] if heads else None
