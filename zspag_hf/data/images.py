"""Forget, retain and eval data: images checked and turned into pixels."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import UnlearningError, first_line
from ..pipeline.classifier import mode, to_pixels
from .labels import check_dataset, class_names, label_ids, reconcile_labels
from .sources import Pictures, columns_of, row_of

READ_AT_ONCE = 256  # images
UNSEEN_VIEWS = 200  # random crops kept aside to test on, about
ONE_SIZE = "a processing_class that brings all to one size (do_resize=True)."


@dataclass(frozen=True)
class RetainSet:
    """Retained images to train on: pixels uint8 ``(N, channels, H, W)``, labels ``(N,)`` in the model's ids."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ForgetSet:
    """The images to forget, pixels uint8 ``(N, channels, H, W)`` and labels ``(N,)`` in the model's ids.

    Attributes:
        pixels, labels: what is trained on: the images, or with ``forget_views`` random crops of them.
        images, image_labels: the images themselves.
        unseen, unseen_labels: with ``forget_views`` further crops, that nothing is trained on; else None.
        trained_labels: ``(N,)`` the retained class, in the model's ids, that the original was trained to give each, -1
            for none; None where no column tells.
    """

    pixels: Tensor
    labels: Tensor
    images: Tensor
    image_labels: Tensor
    unseen: Tensor | None = None
    unseen_labels: Tensor | None = None
    trained_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


class EvalDataset(torch.utils.data.Dataset):
    """A labelled data set as the model's inputs, decoded batch by batch: pixels uint8 and labels in the model's ids."""

    def __init__(self, dataset: Dataset, processor, labels: Tensor, image_column: str = "image"):
        self.dataset, self.processor, self.labels, self.image_column = dataset, processor, labels, image_column
        self.pictures = Pictures(dataset, image_column)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        images = [_decode(self.pictures, i, mode(self.processor)) for i in indices]
        pixels = _batch_pixels(images, self.processor, self.image_column)
        return [{"pixels": p, "labels": self.labels[i]} for p, i in zip(pixels, indices, strict=True)]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def only(self, kept: Tensor) -> "EvalDataset":
        """The images of a mask ``(N,)`` bool; itself where it is all of them."""
        if kept.all():
            return self
        rows = kept.nonzero().squeeze(1).tolist()
        return EvalDataset(self.dataset.select(rows), self.processor, self.labels[kept], self.image_column)


def labelled_dataset(
    dataset: Dataset,
    processor,
    names: Sequence[str],
    *,
    image_column: str = "image",
    label_column: str = "label",
    offset: int | None = None,
    mapping: dict | None = None,
    what: str = "the data to evaluate on",
) -> EvalDataset:
    """A data set with image and label columns as the model's inputs. Refuses anything but one data set, an empty one, a
    missing column, and a label that is none of ``names``, the model's.

    Args:
        offset, mapping: as in :func:`zspag_hf.data.labels.reconcile_labels`.
        what: the data set is called in a message.
    """
    check_dataset(dataset, what)
    if not len(dataset):
        raise UnlearningError(f"{what} is empty: give labelled images.")
    _check_column(dataset, image_column)
    ids = reconcile_labels(class_names(dataset, label_column), names, offset=offset, mapping=mapping)
    read = EvalDataset(dataset, processor, label_ids(dataset, label_column, ids, len(names)), image_column)
    _check_sources(read.pictures)
    return read


def read_forget_set(
    dataset: Dataset,
    processor,
    forget_ids: Sequence[int],
    mapping: Sequence[int],
    num_labels: int,
    *,
    image_column: str = "image",
    label_column: str = "label",
    trained_labels: Tensor | None = None,
    views: int = 0,
    seed: int = 0,
    disable_progress: bool = True,
) -> ForgetSet:
    """Check and load the images to forget.

    Args:
        forget_ids: the classes that the images may have, others are refused; empty for any.
        mapping: from :func:`zspag_hf.data.labels.reconcile_labels`.
        trained_labels: ``(N,)``, one an image, as in :class:`ForgetSet`.
        views: random crops to take of each image in place of the image itself; 0 takes each image once as it is.
    """
    if not len(dataset):
        raise UnlearningError("the forget set is empty: give at least one image in forget_dataset.")
    _check_column(dataset, image_column)
    labels = label_ids(dataset, label_column, mapping, num_labels)
    retained = ~torch.isin(labels, torch.tensor(list(forget_ids)))
    if forget_ids and retained.any():
        first = int(retained.nonzero()[0])
        raise UnlearningError(
            f"the forget set holds {int(retained.sum())} images of retained classes, first image"
            f" {row_of(dataset, first)} of class"
            f" {int(labels[first])}: keep only images of the classes {list(forget_ids)} to forget."
        )
    pictures = Pictures(dataset, image_column)
    _check_sources(pictures)
    rng = random.Random(seed)
    whole, trained, unseen = list[Tensor](), list[Tensor](), list[Tensor]()
    for index in tqdm(range(len(dataset)), desc="Forget set", disable=disable_progress):
        image = _decode(pictures, index, mode(processor))
        whole.append(_batch_pixels([image], processor, image_column))
        if whole[-1].shape != whole[0].shape:
            raise UnlearningError(
                f"image {row_of(dataset, index)} of column {image_column!r} becomes {_size(whole[-1])} pixels and image"
                f" {row_of(dataset, 0)} {_size(whole[0])}: give {ONE_SIZE}"
            )
        if views:
            trained.append(to_pixels(random_views(image, views, rng), processor))
        if views and len(unseen) * views < UNSEEN_VIEWS:
            unseen.append(to_pixels(random_views(image, views, rng), processor))
    images = torch.cat(whole)
    if not views:
        return ForgetSet(images, labels, images, labels, trained_labels=trained_labels)
    repeated = labels.repeat_interleave(views)
    under = None if trained_labels is None else trained_labels.repeat_interleave(views)
    aside = torch.cat(unseen), repeated[: len(unseen) * views]
    return ForgetSet(torch.cat(trained), repeated, images, labels, *aside, under)


def read_retain_set(
    dataset: EvalDataset,
    forget_ids: Sequence[int],
    forget: Tensor,
    *,
    most: int | None = None,
    seed: int = 0,
    disable_progress: bool = True,
) -> RetainSet:
    """Decode the retained images that a method trains on, ``most`` of them drawn at random. Refuses images of classes
    that are or were forgotten, images of ``forget`` ``(F, channels, H, W)``, and images of another size than those."""
    gone = torch.isin(dataset.labels, torch.tensor(list(forget_ids), dtype=torch.long))
    if gone.any():
        raise UnlearningError(
            f"retain_dataset holds {int(gone.sum())} images of forgotten classes, among {sorted(forget_ids)}: it would"
            " teach them again. Leave them out."
        )
    rows = torch.arange(len(dataset))
    if most is not None and most < len(rows):
        rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    pixels = list[Tensor]()
    for part in tqdm(rows.split(READ_AT_ONCE), desc="Retain set", disable=disable_progress):
        pixels += [item["pixels"] for item in dataset.__getitems__(part.tolist())]
        _check_size(pixels[-1], forget, "retain_dataset")
    _check_apart(pixels, forget, "retain_dataset")
    return RetainSet(torch.stack(pixels), dataset.labels[rows])


def read_public_images(
    dataset: Dataset, processor, forget: Tensor, *, image_column: str = "image", disable_progress: bool = True
) -> Tensor:
    """Decode unlabelled images, uint8 ``(N, channels, H, W)``; no other column is read. Refuses anything but one data
    set, an empty one, images of ``forget`` ``(F, channels, H, W)``, and images of another size than those."""
    check_dataset(dataset, "public_dataset")
    if not len(dataset):
        raise UnlearningError("public_dataset is empty: give images of the same kind, or leave it out.")
    _check_column(dataset, image_column)
    pictures, pixels = Pictures(dataset, image_column), list[Tensor]()
    _check_sources(pictures)
    for part in tqdm(torch.arange(len(pictures)).split(READ_AT_ONCE), desc="Public images", disable=disable_progress):
        images = [_decode(pictures, i, mode(processor)) for i in part.tolist()]
        pixels += _batch_pixels(images, processor, image_column)
        _check_size(pixels[-1], forget, "public_dataset")
    _check_apart(pixels, forget, "public_dataset")
    return torch.stack(pixels)


def random_views(image: Image.Image, count: int, rng: random.Random) -> list[Image.Image]:
    """``count`` random crops of 60 to 100 % of the area, mirrored half of the time, at the image's own size: enough
    variety for a forget set of a few images to have a training and a held-out part."""
    width, height = image.size
    views = []
    for _ in range(count):
        side = rng.uniform(0.6, 1.0) ** 0.5
        w, h = max(1, int(width * side)), max(1, int(height * side))
        left, top = rng.randint(0, width - w), rng.randint(0, height - h)
        view = image.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BILINEAR)
        views.append(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view)
    return views


def _decode(pictures: Pictures, index: int, kind: str) -> Image.Image:
    """One image of a data set, as "RGB" or "L"; refuses one that cannot be decoded or has over 8 bits a channel."""
    try:
        image = pictures[index]
        if image.mode.startswith(("I", "F")):  # PIL would cut off all above 255
            raise ValueError(f"its mode {image.mode!r} has over 8 bits a channel, to be scaled to 'L' or 'RGB' first")
        return image.convert(kind)
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # without the path
        why = "it is of no known image format" if isinstance(error, UnidentifiedImageError) else why
        raise _unread(pictures, index, why) from error


def _check_sources(pictures: Pictures) -> None:
    """Refuse, before any is decoded, images that are only an address."""
    for index, why in pictures.refused():
        raise _unread(pictures, index, why)


def _unread(pictures: Pictures, index: int, why: str) -> UnlearningError:
    what = f"image {row_of(pictures.dataset, index)} of column {pictures.column!r} cannot be read"
    return UnlearningError(f"{what} ({why}): remove or replace it.")


def _check_column(dataset: Dataset, image_column: str) -> None:
    if image_column not in dataset.column_names:
        columns = columns_of(dataset)
        raise UnlearningError(f"there is no image column {image_column!r} among {columns}: give image_column_name.")


def _batch_pixels(images: Sequence[Image.Image], processor, image_column: str) -> Tensor:
    try:
        return to_pixels(images, processor)
    except (TypeError, ValueError) as error:
        sizes = ", ".join(sorted({f"{image.width} x {image.height}" for image in images})[:5])
        what = f"images of column {image_column!r}, of {sizes} pixels, make no batch"
        raise UnlearningError(f"{what}: {first_line(error)} Give {ONE_SIZE}") from error


def _check_size(pixels: Tensor, forget: Tensor, name: str) -> None:
    if pixels.shape != forget.shape[1:]:
        raise UnlearningError(
            f"images of {name} become {_size(pixels)} pixels, and not {_size(forget)} like those to forget: give"
            f" {ONE_SIZE}"
        )


def _check_apart(pixels: Sequence[Tensor], forget: Tensor, name: str) -> None:
    forgotten = {image.numpy().tobytes() for image in forget}
    if both := sum(image.numpy().tobytes() in forgotten for image in pixels):
        raise UnlearningError(
            f"{name} holds {both} of the images to forget, and would work against the request: leave them out."
        )


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]} x {pixels.shape[-2]}"
