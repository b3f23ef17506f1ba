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


@dataclass(frozen=True)
class Layer:
    """One constrained layer.

    Attributes:
        name: qualified module name; the weight is ``name + ".weight"``.
        module: the layer.
        sharers: further modules that use the very same weight; their inputs count towards its subspace.
        groups: 1, or the groups of a convolution, each with a subspace of its own.
        d_in: width of a row, the layer's fan-in in one group.
    """

    name: str
    module: nn.Module
    groups: int
    d_in: int
    sharers: tuple[nn.Module, ...] = ()

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight

    def rows(self, x: Tensor) -> Tensor:
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
        """Layers with equal keys and the same input have the same rows, so their Gram matrix is computed once."""
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
    """The layers that unlearning may change: every linear or convolution layer whose forward fires.

    Everything else is frozen: biases, norms, tokens, position tables, embeddings, and modules that never fire, such as
    the ``out_proj`` inside ``nn.MultiheadAttention``, whose weight is used without calling the module (DESIGN 4.2).
    So are layers that are no plain product with their weight (BiT standardises it first), and layers that read
    something
    else than the images (the position-bias MLP of Swin V2). A weight that two modules share is listed once, under the
    first name.

    Args:
        model: the classifier.
        run_forward: a function that runs one forward pass of it, on two images at least: a layer that reads no image is
            told by having fewer rows than images.

    Returns:
        Layers in the order in which the forward pass reaches them.
    """
    fired: dict[str, int] = {}  # name -> leading dimension of its input
    plain = [kind.forward for kind in LAYER_TYPES]
    named = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYER_TYPES) and type(module).forward in plain
    }
    hooks = [
        module.register_forward_pre_hook(lambda _m, x, name=name: fired.setdefault(name, len(x[0])) and None)
        for name, module in named.items()
    ]
    try:
        with torch.no_grad():
            run_forward()
    finally:
        for hook in hooks:
            hook.remove()
    images = next(iter(fired.values()), 1)  # the first layer reads the images themselves
    layers, owner = {}, {}
    for name in (name for name, count in fired.items() if count % images == 0):
        first = owner.setdefault(id(named[name].weight), name)
        if first == name:
            layers[name] = as_layer(name, named[name])
        else:
            layers[first] = replace(layers[first], sharers=(*layers[first].sharers, named[name]))
    return layers


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
