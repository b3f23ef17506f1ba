"""MixBlock (AutoMix, arXiv 2103.13027): masks for mixing two images, from the original's features of both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnlearningError
from ..pipeline.classifier import PixelClassifier
from ..pipeline.layers import run_watched

MOST_CELLS = 16  # a side: attention is between all cells of two maps
MOST_CHANNELS = 128  # of query and key, as AutoMix has for the 256 features of a ResNet-18
FEWEST_CELLS = 2  # a side, below which a mask has no shape


class MixBlock(nn.Module):
    """Cross-attention from the cells of one image to those of another, to one number a cell: how much of the other.

    AutoMix: ``s = sigmoid(upsample(softmax(q k^T / sqrt(d)) v))``, query, key and value being 1 x 1 convolutions of the
    features with their share of the mix as a further channel, query and key one and the same.

    Args:
        width: D, features of a cell. seed: of the weights, which are drawn with deviation .01 as in AutoMix.
    """

    def __init__(self, width: int, seed: int):
        super().__init__()
        self.query = nn.Linear(width + 1, min(max(width // 2, 1), MOST_CHANNELS))
        self.value = nn.Linear(width + 1, 1)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.query, self.value):
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, one: Tensor, other: Tensor, share: float, size: tuple[int, int]) -> Tensor:
        """Masks ``(N, 2, H, W)`` in (0, 1), of one and of the other, which sum to 1 everywhere.

        Args:
            one, other: features ``(N, D, h, w)``. share: of the first in the mix, in [0, 1]. size: ``(H, W)``.
        """
        with torch.autocast(one.device.type, enabled=False):  # the published code's half precision overflows
            one_cells, other_cells = with_share(one, share), with_share(other, 1 - share)
            query, key = self.query(one_cells), self.query(other_cells)
            attention = (query @ key.transpose(1, 2) / math.sqrt(query.shape[2])).softmax(2)
            mask = (attention @ self.value(other_cells)).transpose(1, 2).unflatten(2, one.shape[2:])
            mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False).sigmoid()
        return torch.cat([1 - mask, mask], 1)


def with_share(features: Tensor, share: float) -> Tensor:
    """``(N, D, h, w)`` -> cells ``(N, h w, D + 1)``, the share being the last number of each."""
    cells = features.float().flatten(2).transpose(1, 2)
    return torch.cat([cells, cells.new_full((*cells.shape[:2], 1), share)], 2)


class Reached(Exception):
    """Ends a forward pass at the layer whose input was wanted."""


class MiddleFeatures:
    """What the layer in the middle of a model reads, as maps: AutoMix's "early/middle" features.

    The constrained layer nearest to the middle of those whose input is one map an image: ``(N, D, h, w)``,
    ``(N, h, w, D)``, or tokens ``(N, T, D)``, of which the last ``h w`` make a grid in the shape of the image (those
    before it, as the class token, are left out).

    Args:
        classifier: the original, frozen. names: of the constrained layers, in the order in which a pass reaches them.
        pixels: a sample ``(n, channels, H, W)`` in [0, 1].

    Raises:
        UnlearningError: no layer reads a map of 2 x 2 cells.
    """

    def __init__(self, classifier: PixelClassifier, names: list[str], pixels: Tensor):
        modules = {name: classifier.model.get_submodule(name) for name in names}
        grids: dict[str, tuple[int, int]] = {}

        def look(name: str, x: Tensor) -> None:
            grid = grid_of(modules[name], x, pixels.shape[2:])
            if len(x) == len(pixels) and grid is not None:  # windows of an image would be rows of their own
                grids.setdefault(name, grid)

        run_watched(classifier.model, modules, lambda: classifier(pixels), look)
        if not grids:
            raise UnlearningError(
                "method='mixunlearn' makes masks from a layer that reads images as maps or tokens, and the model has"
                " none: give method='mixup_unlearn'."
            )
        name = min(grids, key=lambda name: abs(names.index(name) - (len(names) - 1) / 2))
        self.classifier, self.layer, self.grid = classifier, modules[name], grids[name]
        self.width = self(pixels).shape[1]

    def read(self, pixels: Tensor) -> Tensor:
        """The layer's input; the forward pass ends there."""
        kept = []

        def stop(_module, args: tuple) -> None:
            kept.append(args[0])
            raise Reached

        handle = self.layer.register_forward_pre_hook(stop)
        try:
            self.classifier(pixels)
        except Reached:
            pass
        finally:
            handle.remove()
        return kept[0]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """``(N, D, h, w)``, sides of ``MOST_CELLS`` at most; pixels in [0, 1]."""
        features = as_map(self.layer, self.read(pixels), self.grid)
        smaller = (min(self.grid[0], MOST_CELLS), min(self.grid[1], MOST_CELLS))
        return features if smaller == self.grid else F.adaptive_avg_pool2d(features, smaller)


def grid_of(module: nn.Module, x: Tensor, size: torch.Size) -> tuple[int, int] | None:
    """Rows and columns of the cells of a layer's input; None where it is no map."""
    if isinstance(module, nn.Conv2d):
        grid = (x.shape[2], x.shape[3])
    elif x.dim() == 4:
        grid = (x.shape[1], x.shape[2])
    elif x.dim() == 3:
        common = math.gcd(*size)
        rows, columns = size[0] // common, size[1] // common
        times = math.isqrt(x.shape[1] // (rows * columns))
        grid = (rows * times, columns * times)
    else:
        return None
    return grid if min(grid) >= FEWEST_CELLS else None


def as_map(module: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A layer's input as ``(N, D, h, w)``."""
    if isinstance(module, nn.Conv2d):
        return x
    if x.dim() == 4:
        return x.permute(0, 3, 1, 2)
    return x[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
