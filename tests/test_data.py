import random

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from tiny import NAMES, images, tiny_processor

from zspag_hf.data.images import EvalDataset, random_views, read_forget_set
from zspag_hf.data.labels import class_names, label_ids, reconcile_labels, resolve_classes, rows_of_classes
from zspag_hf.errors import UnlearningError
from zspag_hf.parallel.batches import KeptProxies, TargetDataset, proxies_like


def test_classes_are_found_by_name_synonym_case_or_id():
    names = ["background", "goldfish, Carassius auratus", "Great White Shark", "7"]
    assert resolve_classes(["carassius AURATUS", "great white shark"], names) == [1, 2]
    assert resolve_classes([2, "1"], names) == [1, 2]
    assert resolve_classes(["7"], [str(i) for i in range(9, -1, -1)]) == [2], "a name comes before an id"


def test_an_unknown_label_lists_the_known_and_suggests_the_nearest():
    with pytest.raises(UnlearningError, match=r"no label 'cet'. Did you mean 'cat'.*'ant', 'bee', 'cat'"):
        resolve_classes(["cet"], NAMES)


def test_an_ambiguous_synonym_is_refused():
    with pytest.raises(UnlearningError, match="ambiguous"):
        resolve_classes(["crane"], ["crane, bird", "crane, machine"])


@pytest.mark.parametrize(
    "requested, message", [(NAMES, "all 5 classes"), ([], "no class to forget"), (None, "no class")]
)
def test_none_or_all_classes_are_refused(requested, message):
    with pytest.raises(UnlearningError, match=message):
        resolve_classes(requested, NAMES)


def test_labels_are_reconciled_by_name_in_any_order():
    assert reconcile_labels(["Dog", "ant"], NAMES) == [3, 0]
    assert reconcile_labels(None, NAMES) == [0, 1, 2, 3, 4]
    assert reconcile_labels(["x", "y"], ["LABEL_0", "LABEL_1"]) == [0, 1], "a model saved without names"


def test_labels_that_do_not_fit_show_both_sides_and_the_mend():
    with pytest.raises(UnlearningError, match=r"'cow'.*'ant', 'cow'.*'bee'.*label_offset"):
        reconcile_labels(["ant", "cow"], NAMES)
    with pytest.raises(UnlearningError, match="not one of the model's"):
        reconcile_labels(["x", "y", "z"], ["LABEL_0", "LABEL_1"])


def test_offset_and_mapping():
    assert reconcile_labels(["a", "b"], ["background", "a1", "b1"], offset=1) == [1, 2]
    assert reconcile_labels(["a", "b"], NAMES, mapping={"a": "dog", "b": 0}) == [3, 0]
    with pytest.raises(UnlearningError, match="lacks the data set's label 'b'"):
        reconcile_labels(["a", "b"], NAMES, mapping={"a": "dog"})
    with pytest.raises(UnlearningError, match="label_offset 4 sends"):
        reconcile_labels(["a", "b"], NAMES, offset=4)
    with pytest.raises(UnlearningError, match="give one"):
        reconcile_labels(["a"], NAMES, offset=1, mapping={"a": 0})


def test_integer_labels_outside_the_model_are_refused():
    data = images([0, 1]).cast_column("label", Value("int64")).map(lambda row: {"label": row["label"] + 7})
    with pytest.raises(UnlearningError, match="label id 7"):
        label_ids(data, "label", range(5), 5)


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


def test_missing_columns_are_named():
    with pytest.raises(UnlearningError, match=r"no image column 'img'; its columns are \['image', 'label'\]"):
        read(images([2]), image_column="img")
    with pytest.raises(UnlearningError, match="no label column 'fine_label'"):
        class_names(images([2]), "fine_label")


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


def test_rows_of_classes_go_through_the_mapping():
    assert rows_of_classes(images([0, 1, 2, 1]), "label", [4, 2, 0], [2]) == [1, 3]


def test_eval_items_hold_model_labels():
    data = images([0, 1])
    items = EvalDataset(data, tiny_processor(), torch.tensor([3, 4])).__getitems__([1, 0])
    assert [int(item["labels"]) for item in items] == [4, 3]
    assert items[0]["pixels"].dtype == torch.uint8


def test_proxies_are_paired_by_epoch_alone():
    numbers = torch.arange(7)
    data = TargetDataset(numbers, numbers, KeptProxies(numbers.float(), numbers.float(), numbers), seed=1)
    first = [float(data[i]["proxy_pixels"]) for i in range(5)]
    data.set_epoch(1)
    second = [float(data[i]["proxy_pixels"]) for i in range(5)]
    data.set_epoch(0)
    assert first != second and first == [float(data[i]["proxy_pixels"]) for i in range(5)]
    assert len(set(first)) == 5, "no proxy twice in an epoch that needs fewer than there are"


def test_a_proxy_for_an_images_features_is_of_a_class_drawn_from_its_target():
    targets = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]).repeat(500, 1)
    labels = torch.tensor([2, 0, 2, 3, 0, 2])
    chosen = labels[proxies_like(targets, labels, torch.Generator().manual_seed(0))]
    assert (chosen[1::2] == 3).all()
    assert 0.4 < (chosen[::2] == 0).float().mean() < 0.6 and (chosen[::2] != 3).all()


def test_a_class_without_proxies_gives_its_share_to_the_others():
    targets = torch.tensor([[0.9, 0.0, 0.1], [1.0, 0.0, 0.0]])
    assert proxies_like(targets, torch.tensor([2, 2]), torch.Generator().manual_seed(0)).lt(2).all()


def test_what_is_paired_depends_on_seed_and_epoch_alone():
    proxies = KeptProxies(torch.rand(6, 1, 2, 2), torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6, 5))
    make = lambda seed: TargetDataset(torch.zeros(9, 1, 2, 2), torch.full((9, 3), 1 / 3), proxies, seed)  # noqa: E731
    same, other = make(1), make(2)
    goals = torch.stack([item["feature_targets"] for item in make(1)])
    torch.testing.assert_close(goals, torch.stack([item["feature_targets"] for item in same]))
    same.set_epoch(1)
    assert not torch.equal(goals, torch.stack([item["feature_targets"] for item in same]))
    assert not torch.equal(goals, torch.stack([item["feature_targets"] for item in other]))
