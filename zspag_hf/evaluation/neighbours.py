"""Neighbours of forget images: where an unlearning may do damage that no test image shows (arXiv 2506.01318)."""

import torch

from ..pipeline.attacks import PGDLinf
from ..pipeline.classifier import PixelClassifier
from .table import PixelDataset

EPS, STEPS, STEP = 0.03, 3, 0.01  # of pixels in [0, 1]
AT_ONCE = 64  # images


class Away(PGDLinf):
    """Untargeted PGD: up the cross-entropy of the images' own labels, every step, whatever the model answers."""

    def __init__(self):
        super().__init__(EPS, STEPS, STEP, leave_early=False)

    def loss(self, logits, target, x, clean):
        """What is minimised: minus the cross-entropy."""
        return -super().loss(logits, target, x, clean)


def neighbours(classifier: PixelClassifier, images: PixelDataset) -> PixelDataset:
    """The images moved by at most ``EPS`` a pixel, float32 in [0, 1], with the labels that they had.

    Args:
        classifier: the model that is attacked; its mode is left as it was found.
    """
    was, attack = classifier.model.training, Away()
    pairs = zip(images.pixels.split(AT_ONCE), images.labels.split(AT_ONCE), strict=True)
    moved = torch.cat([attack(classifier, pixels, labels).pixels for pixels, labels in pairs])
    classifier.model.train(was)
    return PixelDataset(moved, images.labels)
