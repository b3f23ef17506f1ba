"""Which weights are constrained, and one documented shape for all of them: rows ``(groups, n, d_in)``.

All branching over layer types ends in this file. A new layer type is one more entry in ``LAYER_TYPES`` and one row in
tests/cases.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UnlearningError


@dataclass(frozen=True)
class Layer:
    """One constrained layer.

    Attributes:
        name: qualified module name; the weight is ``name + ".weight"``.
        module: the layer.
        sharers: further modules that use the very same weight; their inputs count towards its subspace.
        groups: 1, or the groups of a convolution, each with a subspace of its own.
        d_in: width of an input row, the layer's fan-in in one group.
        frame: None, or ``(groups, d_in, k)`` with orthonormal columns: a layer too wide for a ``d_in x d_in`` matrix is
            described by its rows' coordinates in a subspace that holds nearly all of them
            (:func:`zspag_hf.pipeline.grams.find_frames`).
    """

    name: str
    module: nn.Module
    groups: int
    d_in: int
    sharers: tuple[nn.Module, ...] = ()
    frame: Tensor | None = None

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight

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
        if not isinstance(self.module, nn.Conv2d):
            return x.reshape(1, -1, self.d_in)
        conv = self.module
        if conv.padding_mode != "zeros":
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
        elif isinstance(conv.padding, str):
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice), 0
        else:
            padding = conv.padding
        patches = F.unfold(x, conv.kernel_size, conv.dilation, padding, conv.stride)  # (N, C_in k k, positions)
        n, _, positions = patches.shape
        patches = patches.view(n, self.groups, self.d_in, positions)
        return patches.permute(1, 0, 3, 2).reshape(self.groups, n * positions, self.d_in)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, out / groups, d_in)``: a view, so writing to it writes the weight."""
        if isinstance(self.module, Conv1D):
            return weight.t().unsqueeze(0)  # stored [in, out]
        return weight.view(self.groups, -1, self.d_in)

    def row_key(self) -> tuple:
        """Layers with equal keys and the same input have the same inputs, so their Gram matrix is computed once."""
        if not isinstance(self.module, nn.Conv2d):
            return ("linear", self.d_in)
        conv = self.module
        return ("conv", conv.kernel_size, conv.stride, conv.padding, conv.dilation, self.groups, conv.padding_mode)


LAYER_TYPES = (nn.Linear, nn.Conv2d, Conv1D)


def as_layer(name: str, module: nn.Module) -> Layer:
    """The :class:`Layer` of a module of one of ``LAYER_TYPES``."""
    if isinstance(module, nn.Conv2d):
        return Layer(name, module, module.groups, module.weight[0].numel())
    if isinstance(module, Conv1D):
        return Layer(name, module, 1, module.weight.shape[0])
    return Layer(name, module, 1, module.in_features)


def constrained_layers(model: nn.Module, run_forward) -> dict[str, Layer]:
    """The layers that unlearning may change: every linear or convolution layer whose rows are the images'.

    Everything else is frozen: biases, norms, tokens, position tables, embeddings; modules that never fire, such as the
    ``out_proj`` inside ``nn.MultiheadAttention``, whose weight is used without calling the module (DESIGN 4.2); layers
    that are no plain product with a weight of their own (BiT standardises it first, a parametrisation computes it);
    layers that read something else than the images (the position-bias MLP of Swin V2, the queries of Perceiver's cross
    attention); and layers whose input does not begin with the images (a transformer with ``batch_first=False``), whose
    rows belong to no image. A weight that several modules share is listed once, under the first name, if all of them
    may be listed.

    Args:
        model: the classifier.
        run_forward: a function that calls the model once, on two images at least. It is run twice, the second time with
            the last image changed: a layer reads images where its input changes then, in the last image's part alone.

    Returns:
        Layers in the order in which the forward pass reaches them.

    Raises:
        UnlearningError: no layer is left.
    """
    plain = [kind.forward for kind in LAYER_TYPES]
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYER_TYPES) and type(module).forward in plain and isinstance(module.weight, nn.Parameter)
    }
    before: dict[str, list[Tensor]] = {}
    reads: dict[str, bool] = {}

    def keep(name: str, x: Tensor) -> None:
        before.setdefault(name, []).append(x.clone())

    def compare(name: str, x: Tensor) -> None:
        reads[name] = reads_images(before[name].pop(0), x, len(images)) and reads.get(name, True)

    images = run_watched(model, named, run_forward, keep)
    run_watched(model, named, run_forward, compare, with_another_last_image(images))
    frozen = {id(named[name].weight) for name in reads if not reads[name]}
    layers, owner = {}, {}
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


def run_watched(model: nn.Module, named: dict[str, nn.Module], run_forward, visit, images: Tensor | None = None):
    """One forward pass, with ``visit(name, input)`` for each call of a named module; returns what the model read.

    Args:
        images: what the model is to read in place of what ``run_forward`` gives it.
    """
    read: list[Tensor] = []

    def look(_module, args: tuple, kwargs: dict):
        read.append(args[0] if args else kwargs["pixel_values"])
        if images is None:
            return None
        return ((images, *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": images})

    hooks = [model.register_forward_pre_hook(look, with_kwargs=True)]
    hooks += [
        module.register_forward_pre_hook(lambda _m, x, name=name: visit(name, x[0])) for name, module in named.items()
    ]
    try:
        with torch.no_grad():
            run_forward()
    finally:
        for hook in hooks:
            hook.remove()
    return read[0]


def with_another_last_image(images: Tensor) -> Tensor:
    noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(0))
    return torch.cat([images[:-1], images[-1:] + noise.to(images)])


def reads_images(before: Tensor, after: Tensor, images: int) -> bool:
    """Whether a layer's input has one equal part an image, in order: only the last part changes with the last image."""
    if len(before) % images:
        return False
    change = (after - before).abs().unflatten(0, (images, -1)).flatten(1).amax(1)
    if not change.any():
        return not before.any()  # what a ReLU left of these images may be nothing at all
    return not (change[:-1] > 1e-3 * change[-1]).any()  # not 0: sums may be ordered otherwise


def head_name(layers: dict[str, Layer], num_labels: int) -> str | None:
    """The classification head: the last layer reached whose output has one value a label.

    Distilled models (DeiT, LeViT) have two heads; the last one reached is returned and the other counts as deep. None
    where no layer has that many outputs.
    """
    widths = {
        name: layer.matrix(layer.weight).shape[0] * layer.matrix(layer.weight).shape[1]
        for name, layer in layers.items()
    }
    heads = [name for name, width in widths.items() if width == num_labels]
    return heads[-1] if heads else None
