"""Forget, retain and eval images: what is read, and what is refused."""

import random

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from tiny import NAMES, images, tiny_processor

from zspag_hf.data.images import EvalDataset, labelled_dataset, random_views, read_forget_set, read_retain_set
from zspag_hf.errors import UnlearningError


def read(data, ids=(2,), **options):
    return read_forget_set(data, tiny_processor(), list(ids), list(range(5)), 5, **options)


def test_the_forget_set_is_read_as_pixels():
    forget = read(images([2, 3, 2]), ids=(2, 3))
    assert forget.pixels.shape == (3, 3, 8, 8) and forget.pixels.dtype == torch.uint8
    assert forget.labels.tolist() == [2, 3, 2] and forget.unseen is None


def test_an_empty_forget_set_is_refused():
    with pytest.raises(UnlearningError, match="empty"):
        read(images([2]).select([]))


def test_a_retained_label_among_the_forget_images_is_refused():
    with pytest.raises(UnlearningError, match="1 images of retained classes, first image 1 of class 3"):
        read(images([2, 3]))


def test_a_missing_column_is_named():
    with pytest.raises(UnlearningError, match=r"no image column 'img' among \['image', 'label'\]"):
        read(images([2]), image_column="img")


def test_a_corrupt_image_is_named_by_its_position():
    good = images([2])[0]["image"]
    features = Features({"image": Image(), "label": Value("int64")})
    rows = {"image": [good, {"bytes": b"\x89PNG not an image", "path": None}], "label": [2, 2]}
    data = Dataset.from_dict(rows, features=features)
    with pytest.raises(UnlearningError, match="image 1 of column 'image' cannot be read"):
        read(data)


def test_views_multiply_the_images_and_keep_unseen_ones_aside():
    forget = read(images([2, 2], size=96), views=5, seed=3)
    again = read(images([2, 2], size=96), views=5, seed=3)
    assert len(forget) == 10 and torch.equal(forget.pixels, again.pixels)
    assert forget.unseen.shape[0] == 10
    seen = {tuple(view.flatten().tolist()) for view in forget.pixels}
    assert not any(tuple(view.flatten().tolist()) in seen for view in forget.unseen)


def test_a_view_keeps_the_size():
    picture = images([0], size=16)[0]["image"]
    assert {view.size for view in random_views(picture, 10, random.Random(0))} == {(16, 16)}


def test_eval_items_hold_model_labels():
    data = images([0, 1])
    items = EvalDataset(data, tiny_processor(), torch.tensor([3, 4])).__getitems__([1, 0])
    assert [int(item["labels"]) for item in items] == [4, 3]
    assert items[0]["pixels"].dtype == torch.uint8


class TestRetained:
    FORGET = read(images([2, 2])).images

    def kept(self, labels, pictures=1, **options):
        data = labelled_dataset(images(labels, seed=pictures), tiny_processor(), NAMES)
        return read_retain_set(data, [2], self.FORGET, **options)

    def test_all_of_them_or_some_drawn_by_the_seed(self):
        whole, some = self.kept([0, 1, 3, 4] * 3), self.kept([0, 1, 3, 4] * 3, most=5)
        assert len(whole) == 12 and len(some) == 5 and whole.labels.tolist() == [0, 1, 3, 4] * 3
        rows = [int((whole.pixels == image).flatten(1).all(1).nonzero()) for image in some.pixels]
        assert rows == sorted(rows) and some.labels.tolist() == whole.labels[rows].tolist()
        assert torch.equal(self.kept([0, 1, 3, 4] * 3, most=5).pixels, some.pixels)
        assert not torch.equal(self.kept([0, 1, 3, 4] * 3, most=5, seed=1).pixels, some.pixels)

    def test_forgotten_classes_and_images_are_refused(self):
        with pytest.raises(UnlearningError, match=r"2 images of forgotten classes, among \[2\]"):
            self.kept([0, 2, 2])
        with pytest.raises(UnlearningError, match="holds 1 of the images to forget"):
            self.kept([0], pictures=0)

    def test_another_size_is_refused(self):
        with pytest.raises(UnlearningError, match="become 8 x 8 pixels, and not 16 x 16"):
            read_retain_set(labelled_dataset(images([0]), tiny_processor(), NAMES), [2], torch.zeros(1, 3, 16, 16))
