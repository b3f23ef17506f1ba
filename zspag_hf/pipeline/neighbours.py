"""Neighbours of forget images: adversaries close by, where an unlearning may do damage that no test image shows
(arXiv 2506.01318)."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..parallel.processes import my_batches, summed
from .attacks import PGDLinf, Untargeted
from .classifier import PixelClassifier, gradient_batch

EPS, STEP, STEPS = 0.03, 0.01, 3  # in [0, 1] pixels: the published code's


class AwayFromLabel(Untargeted, PGDLinf):
    """Untargeted PGD in the maximum norm, from the image itself, all its steps whatever the model answers."""

    def __init__(self):
        super().__init__(EPS, STEPS, STEP, leave_early=False)


def neighbours(
    classifier: PixelClassifier, pixels: Tensor, labels: Tensor, disable_progress: bool = True
) -> tuple[Tensor, Tensor]:
    """An adversary of each image ``(N, channels, H, W)``, within ``EPS`` and away from its label ``(N,)``; processes
    share the batches.

    Returns:
        Pixels ``(N, channels, H, W)`` float32 in [0, 1], and ``(N,)`` bool: whether the model answers with another
        class there.
    """
    attack = AwayFromLabel()
    made, crossed = torch.zeros(pixels.shape), torch.zeros(len(pixels))
    for rows in tqdm(my_batches(len(pixels), gradient_batch(pixels)), desc="Neighbours", disable=disable_progress):
        result = attack(classifier, pixels[rows], labels[rows])
        made[rows], crossed[rows] = result.pixels.float(), result.crossed.float()
    return summed(made), summed(crossed).bool()
