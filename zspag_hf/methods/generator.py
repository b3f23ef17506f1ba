"""The generator of gated knowledge transfer: noise -> images, at the size that the classifier reads."""

from __future__ import annotations

import math

from torch import Tensor, nn

NOISE = 128  # numbers that an image is made from
SMALLEST = 8  # side at most of the map that the noise becomes
WIDE, NARROW = 128, 64  # channels


class Generator(nn.Module):
    """The published one (METHODS C.8), which doubles 8 x 8 twice to 32 x 32, with as many doublings as the size needs:
    5 for 224 pixels, from 7 x 7. Where the size is no multiple, the last rows and columns are cut off.

    Its output is squashed into [0, 1], in place of going to the classifier as it is: every image is one that a file
    could hold, and the classifier's own normalisation follows. Batch norm makes it right only in train mode.

    Args:
        channels, height, width: of the images.

    Shape:
        noise ``(n, NOISE)`` -> pixels ``(n, channels, height, width)`` in [0, 1].
    """

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.size = height, width
        doublings = max(0, math.ceil(math.log2(max(height, width) / SMALLEST)))
        first = tuple(math.ceil(side / 2**doublings) for side in self.size)
        layers = [nn.Linear(NOISE, WIDE * first[0] * first[1]), nn.Unflatten(1, (WIDE, *first)), nn.BatchNorm2d(WIDE)]
        for left in reversed(range(max(1, doublings))):
            if doublings:
                layers.append(nn.Upsample(scale_factor=2))
            made = WIDE if left else NARROW
            layers += [nn.Conv2d(WIDE, made, 3, padding=1), nn.BatchNorm2d(made), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(NARROW, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        """Noise -> images."""
        height, width = self.size
        return self.layers(noise)[:, :, :height, :width]
