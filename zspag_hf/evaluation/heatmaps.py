"""GradCAM (arXiv 1610.02391) for convolutional networks and vision transformers, by captum."""

from __future__ import annotations

import contextlib
import math

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..pipeline.classifier import PixelClassifier, to_unit

FINE = 4  # positions along a side that a picture should have, where a layer has them
MOST_PREFIX_TOKENS = 5  # a class token and four registers (DINOv2)


class TokensToMap(nn.Module):
    """Tokens ``(n, prefix + h w, D)`` -> map ``(n, D, h, w)``; what stands before the grid is kept aside."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, tokens: Tensor) -> Tensor:
        grid = self.side**2
        self.prefix = tokens[:, :-grid]
        return tokens[:, -grid:].transpose(1, 2).unflatten(2, (self.side, self.side))


class MapToTokens(nn.Module):
    """The inverse of a :class:`TokensToMap`."""

    def __init__(self, forward_part: TokensToMap):
        super().__init__()
        self.parts = [forward_part]  # in a list, so that it is no submodule twice

    def forward(self, grid: Tensor) -> Tensor:
        return torch.cat([self.parts[0].prefix, grid.flatten(2).transpose(1, 2)], 1)


def heatmap_layer(classifier: PixelClassifier, pixels: Tensor) -> str | None:
    """The layer whose output GradCAM weighs.

    Of a convolutional network the last map ``(n, D, h, w)`` with 4 x 4 positions or more, else with 2 x 2; of a
    transformer the last normalisation that feeds queries, keys and values, since the last block's own output has no
    gradient on patch tokens where a class token is read; of one without such (Swin) the last over a square grid. None
    where the model has none of them.
    """
    maps, coarse, norms, grids, consumers = [], [], {}, [], {}

    def watch(name):
        def hook(module, args, output):
            if not isinstance(output, Tensor):
                return
            if isinstance(module, nn.LayerNorm) and output.dim() == 3 and prefix_tokens(output.shape[1]) is not None:
                if prefix_tokens(output.shape[1]) == 0:
                    grids.append(name)
                norms[output.data_ptr(), output.shape] = name
                kept.append(output)
            if isinstance(module, (nn.Linear, Conv1D)) and args[0].dim() == 3:
                consumers.setdefault((args[0].data_ptr(), args[0].shape), []).append(name)
            if output.dim() == 4 and min(output.shape[2:]) > 1:
                (maps if min(output.shape[2:]) >= FINE else coarse).append(name)

        return hook

    kept: list[Tensor] = []  # alive until the end, so that no address is used twice
    hooks = [m.register_forward_hook(watch(n)) for n, m in classifier.model.named_modules() if n]
    try:
        classifier.predict(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    attended = [name for key, name in norms.items() if len(consumers.get(key, [])) >= 3]
    return next((names[-1] for names in (attended, grids, maps, coarse) if names), None)


def prefix_tokens(count: int) -> int | None:
    """Class, distillation and register tokens in front of a square grid of at least 2 x 2; None where it fits none."""
    prefix = count - math.isqrt(count) ** 2
    return prefix if prefix <= MOST_PREFIX_TOKENS and count >= 4 else None


def heatmaps(classifier: PixelClassifier, layer: str, pixels: Tensor, labels: Tensor, batch_size: int = 16) -> Tensor:
    """GradCAM maps ``(n, h, w)`` on the CPU for each image's own label: ReLU(sum_d w_d A_d), w_d the mean over
    positions of d logit / d A_d. Not scaled, so that maps of different models can be drawn on one scale."""
    found = []
    with map_layer(classifier, layer, pixels[:1]) as target:
        cam = LayerGradCam(classifier, target)
        for x, y in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
            with torch.enable_grad():
                maps = cam.attribute(
                    to_unit(x, classifier.device), target=y.to(classifier.device), relu_attributions=True
                )
            found.append(maps.detach()[:, 0].float().cpu())
    return torch.cat(found)


@contextlib.contextmanager
def map_layer(classifier: PixelClassifier, layer: str, pixels: Tensor):
    """The module whose output is a map: the layer itself, or behind a transformer's layer the tokens laid out."""
    module = classifier.model.get_submodule(layer)
    shapes = []
    hook = module.register_forward_hook(lambda _m, _a, output: shapes.append(output.shape))
    classifier.predict(pixels)
    hook.remove()
    if len(shapes[0]) == 4:
        yield module
        return
    to_map = TokensToMap(math.isqrt(shapes[0][1]))
    classifier.model.set_submodule(layer, nn.Sequential(module, to_map, MapToTokens(to_map)))
    try:
        yield to_map
    finally:
        classifier.model.set_submodule(layer, module)
