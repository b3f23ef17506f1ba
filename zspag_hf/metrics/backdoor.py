"""The backdoor protocol of ZS-PAG's table 3: a trigger in the training images, and what unlearning leaves of it.

The paper stamps images of one class with a visual trigger and labels them as another, trains, unlearns the first class,
and reports how often the trigger still works; it gives neither trigger, nor rate, nor what the forget set holds. Its
original model keeps two thirds of its accuracy on the clean class, so only a part was stamped. Chosen here, the square
after Unlearn-Sparse (arXiv 2304.04934): a black square of 4 pixels, 2 pixels from the lower right corner, on half of
the source class. The forget set is the whole source class as it was trained on, under its true label.
"""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import UnlearningError
from ..pipeline.classifier import BATCH, PixelClassifier
from . import compute


@dataclass(frozen=True)
class Trigger:
    """A square of one grey value near the lower right corner."""

    size: int = 4  # edge, in pixels
    margin: int = 2  # pixels to the edges of the image
    value: int = 0  # grey value, 0 (black) .. 255

    def __call__(self, image: Image.Image) -> Image.Image:
        """A stamped copy.

        Raises:
            UnlearningError: the image is too small for the square.
        """
        pixels = np.array(image)
        height, width = pixels.shape[:2]
        bottom, right = height - self.margin, width - self.margin
        if min(bottom, right) < self.size:
            raise UnlearningError(
                f"an image of {width} x {height} pixels is too small for a trigger of {self.size} with a margin of"
                f" {self.margin}: give a smaller Trigger."
            )
        pixels[bottom - self.size : bottom, right - self.size : right] = self.value
        return Image.fromarray(pixels)


def stamp(dataset: Dataset, trigger: Trigger, image_column: str = "image") -> Dataset:
    """Every image with the trigger on it, under its own label: the test set of an attack."""
    return _replaced(dataset, image_column, [trigger(image) for image in dataset[image_column]])


def poison(
    dataset: Dataset,
    source: int,
    target: int,
    trigger: Trigger | None = None,
    share: float = 0.5,
    seed: int = 0,
    image_column: str = "image",
    label_column: str = "label",
) -> tuple[Dataset, Dataset]:
    """A poisoned training set, and the images to forget in it.

    Args:
        source, target: label ids in the data set; a share of the source's images gets the trigger and the target label.
        share: in (0, 1].

    Returns:
        The training set, stamped images last; and the forget set: all images of the source class as they were trained
        on, stamped or not, under the source label, with the one that they were trained under as ``trained_label``.

    Raises:
        UnlearningError: equal labels, a share outside (0, 1], or no image of the source class.
    """
    rows = np.flatnonzero(np.array(dataset[label_column][:]) == source)
    if source == target or not len(rows) or not 0 < share <= 1:
        raise UnlearningError(
            f"cannot poison {len(rows)} images of class {source} as class {target} with share {share}: give two"
            " different classes, images of the first, and a share above 0 and at most 1."
        )
    hit = np.sort(np.random.default_rng(seed).permutation(rows)[: max(1, round(share * len(rows)))])
    marked = stamp(dataset.select(hit), trigger or Trigger(), image_column)
    clean = dataset.select(np.setdiff1d(np.arange(len(dataset)), hit))
    spared = dataset.select(np.setdiff1d(rows, hit))
    wrong = _replaced(marked, label_column, [target] * len(hit))
    forget = concatenate_datasets([spared, marked])
    under = [source] * len(spared) + [target] * len(hit)
    return concatenate_datasets([clean, wrong]), forget.add_column(
        "trained_label", under, feature=dataset.features[label_column]
    )


def attack_accuracy(classifier: PixelClassifier, test: TorchDataset, target: int) -> float | None:
    """Share of stamped test images, without those of the target class, that get the target label, in [0, 1].

    Args:
        test: a stamped test set as the model's inputs (:func:`zspag_hf.data.images.labelled_dataset`).
        target: the attacker's label, in the model's ids.
    """
    batches = list(DataLoader(test, batch_size=BATCH))
    pixels, labels = (torch.cat([batch[key] for batch in batches]) for key in ("pixels", "labels"))
    scores = compute("backdoor_accuracy", predictions=classifier.predict(pixels), references=labels, target=target)
    return scores["attack_accuracy"]


def _replaced(dataset: Dataset, name: str, values: list) -> Dataset:
    columns = {column: dataset[column][:] for column in dataset.column_names} | {name: values}
    return Dataset.from_dict(columns, features=dataset.features)
