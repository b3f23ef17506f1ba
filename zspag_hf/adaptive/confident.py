"""Proxies as confident as images that a model was trained on: in feature space they stand where retained images do.

An attack that stops at the boundary yields an image between two classes. Measured on digits by a ViT, a VGG and an
AlexNet: the class means of its penultimate features have a cosine of .78 to .98 with those of real retained images, and
their cosine with the mean forget feature is .39 to .49, where that of real ones is -.07 to .37. Attacked on, until they
are as confident as the forget images are of their own class, the class means agree to .97 to 1.00 and so does the
other cosine, to .03.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..parallel.processes import my_batches, summed
from ..pipeline.attacks import PGDLinf
from ..pipeline.classifier import PixelClassifier, gradient_batch

EPS, STEPS = 0.125, 10  # radius around the proxy, in [0, 1] pixels, and steps at most: few images need more than five


class Confident(PGDLinf):
    """PGD until each image's target has at least the probability of its goal, ``(N,)`` of the batch in [0, 1]."""

    def __init__(self, goals: Tensor):
        super().__init__(EPS, STEPS)
        self.goals = goals

    def arrived(self, logits, target, rows):
        """As probable as the goal."""
        mine = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
        return mine >= self.goals.to(mine)[rows]


def confident_proxies(
    classifier: PixelClassifier, proxies: Tensor, labels: Tensor, own: Tensor, seed: int, disable_progress: bool = True
) -> Tensor:
    """The proxies ``(P, channels, H, W)`` in [0, 1], attacked on towards their labels ``(P,)``; processes share them.

    Args:
        own: ``(N,)``, the probability of its own class of each forget image; each proxy's goal is drawn from them.
    """
    drawn = torch.randint(len(own), (len(proxies),), generator=torch.Generator().manual_seed(seed))
    moved = torch.zeros_like(proxies)
    for rows in tqdm(my_batches(len(proxies), gradient_batch(proxies)), desc="Confident", disable=disable_progress):
        moved[rows] = Confident(own[drawn[rows]])(classifier, proxies[rows], labels[rows]).pixels
    return summed(moved)
