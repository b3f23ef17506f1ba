"""Known answers of the scores that look into features or beside the forget images: recovery, dispersion, change."""

import numpy as np
import pytest

from zspag_hf.metrics import compute
from zspag_hf.metrics.dispersion.dispersion import dispersion
from zspag_hf.metrics.prototype_recovery.prototype_recovery import recovery

RETAINED, GONE = 3, (3, 4)  # classes


def columns(gone=GONE, apart=8.0, images=60, seed=0, width=24):
    """Images of five classes whose features are noise, and ``apart`` from it along an axis of their class; sure answers
    on retained classes, and on forgotten ones the class that a head of those axes gives."""
    rng = np.random.default_rng(seed)
    sizes = {"forget": (gone, images), "test_forgotten": (gone, images), "test_retained": (range(RETAINED), 400)}
    labels, splits = [], []
    for split, (classes, count) in sizes.items():
        labels += [label for label in classes for _ in range(count)]
        splits += [split] * (count * len(classes))
    labels, splits = np.array(labels), np.array(splits)
    features = rng.normal(size=(len(labels), width))
    features[np.arange(len(labels)), labels] += np.where(splits == "test_retained", 8.0, apart)
    return {"logits": features[:, :5].copy(), "features": features, "labels": labels, "splits": splits}


def only(table, value=5):
    """Recovery from so many images."""
    return recovery(**table, counts=(value,))[value]


# ------------------------------------------------------------------ recovery


@pytest.mark.parametrize("count", [1, 5, 50])
def test_the_prototype_of_a_class_that_lies_apart_brings_all_of_it_back(count):
    assert only(columns(apart=16.0), count) == 1


def test_features_that_carry_nothing_bring_back_no_more_than_the_share_that_may_be_lost():
    table = columns(gone=(3,), images=500)
    table["features"] = np.random.default_rng(1).normal(size=table["features"].shape)
    table["logits"][:, :3] = np.random.default_rng(2).normal(size=(len(table["labels"]), 3))
    kept = table["splits"] == "test_retained"
    table["labels"][kept] = table["logits"][kept, :3].argmax(1)  # right on all, and as sure on forgotten images
    assert only(table) == pytest.approx(0.012, abs=0.012)


def test_equal_features_of_all_images_give_a_number_and_no_recovery():
    table = columns(gone=(3,))
    table["features"][:] = 1.0
    table["logits"][:] = 0
    table["labels"][table["splits"] == "test_retained"] = 0
    assert only(table) == 0


def test_what_the_head_says_of_forgotten_classes_and_how_long_its_rows_are_plays_no_part():
    table = columns(apart=3.0)
    found = recovery(**table)
    assert 0.05 < found[1] < found[5] < found[50] < 1
    for change in (-np.inf, 1e4):  # the masked model, and one that never answers with anything else
        logits = table["logits"].copy()
        logits[:, GONE] = change
        assert recovery(**table | {"logits": logits}) == found
    longer = table | {"logits": 50 * table["logits"], "features": 0.01 * table["features"]}
    assert recovery(**longer) == pytest.approx(found, abs=1e-9)


def test_the_class_of_the_largest_cosine_has_to_be_right():
    table = columns(apart=16.0)
    there = np.isin(table["splits"], ["forget", "test_forgotten"])
    table["features"][there, 3] = table["features"][there, 4] = 16.0  # both classes lie apart, in one place
    assert only(table, 50) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("count", "lost"), [(400, 4), (99, 0), (1, 0)])
def test_the_offset_loses_at_most_one_in_a_hundred_right_answers(count, lost):
    """Every scale sees the same order: so many come back as lie above all retained images but ``lost``."""
    cosine = np.linspace(-0.5, 0.5, count)
    kept = np.stack([cosine, np.sqrt(1 - cosine**2)], 1)
    asked = np.linspace(-0.5, 0.5, 1000, endpoint=False) + 5e-4
    gone = np.stack([asked, np.sqrt(1 - asked**2)], 1)
    splits = np.repeat(["forget", "test_forgotten", "test_retained"], [5, 1000, count])
    table = {"features": np.concatenate([np.tile([[1.0, 0.0]], (5, 1)), gone, kept]), "splits": splits}
    table |= {"labels": np.repeat([1, 1, 0], [5, 1000, count]), "logits": np.zeros((1005 + count, 2))}
    limit = np.sort(cosine)[::-1][lost]
    assert only(table) == pytest.approx(np.mean(asked > limit), abs=1e-9)


def test_images_that_were_answered_wrongly_anyway_cost_nothing():
    table = columns(gone=(3,), apart=16.0)
    kept = np.flatnonzero(table["splits"] == "test_retained")[:50]
    table["features"][kept, :4] = 0
    table["features"][kept, 3] = 16.0  # they look like the forgotten class
    table["logits"][kept] = np.eye(5)[0]
    assert only(table) < 1
    table["logits"][kept] = np.eye(5)[2]  # and are taken for a class that is not theirs
    assert (table["labels"][kept] == 0).all() and only(table) == 1


def test_too_few_images_or_nothing_to_watch_or_to_lose_is_none():
    table = columns(images=49)
    found = recovery(**table)
    assert found[50] is None and None not in (found[1], found[5])
    few = columns()
    few["labels"][few["splits"] == "forget"] = np.repeat([3, 4], [117, 3])
    assert recovery(**few)[5] is None and recovery(**few)[1] is not None, "of each class so many"
    without = {
        split: few | {"splits": np.where(few["splits"] == split, "retain", few["splits"])}
        for split in set(few["splits"])
    }
    assert all(set(recovery(**each).values()) == {None} for each in without.values())
    wrong = columns()
    wrong["labels"][wrong["splits"] == "test_retained"] = 4
    assert set(recovery(**wrong).values()) == {None}


def test_unseen_views_are_watched_where_the_classes_have_no_test_images():
    table = columns(apart=5.0)
    views = table | {"splits": np.where(table["splits"] == "test_forgotten", "views", table["splits"])}
    assert recovery(**views) == recovery(**table)


def test_an_earlier_request_whose_images_are_gone_is_neither_watched_nor_answered():
    """Class 4 was forgotten before: no forget images, but test images, and a head that may say anything of it."""
    table = columns(apart=5.0)
    earlier = (table["splits"] == "forget") & (table["labels"] == 4)
    later = {name: column[~earlier] for name, column in table.items()}
    alone = {name: column[~(later["labels"] == 4)] for name, column in later.items()}
    later["logits"][:, 4] = alone["logits"][:, 4] = 1e4
    assert recovery(**later) == recovery(**alone | {"logits": np.delete(alone["logits"], 4, 1)})


def test_the_same_images_are_drawn_for_every_model_and_others_with_another_seed():
    table = columns(apart=2.0)
    assert recovery(**table) == recovery(**table) != recovery(**table, seed=1)


# ------------------------------------------------------------------ dispersion


def test_equal_directions_have_dispersion_1_orthogonal_ones_0_and_opposite_ones_minus_1():
    features = np.eye(6) * np.arange(1, 7)[:, None]
    assert dispersion(features, np.zeros(6)) == pytest.approx(0, abs=1e-12)
    assert dispersion(features[[2, 2, 2]] * [[1], [2], [30]], np.zeros(3)) == pytest.approx(1)
    assert dispersion([[1.0, 0.0], [-3.0, 0.0]], [0, 0]) == pytest.approx(-1)


def test_dispersion_is_the_mean_over_pairs_within_each_class_and_over_classes():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(0.3, 1, (70, 9)), np.repeat([0, 1, 5], [10, 59, 1])
    expected = []
    for label in (0, 1):
        rows = features[labels == label]
        pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
        cosines = [rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]) for i, j in pairs]
        expected.append(np.mean(cosines))
    assert dispersion(features, labels) == pytest.approx(np.mean(expected), rel=1e-9)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert dispersion(features[-1:], labels[-1:]) is None and dispersion(features[:0], labels[:0]) is None


def test_dispersion_reads_forget_images_alone():
    features = np.concatenate([np.ones((3, 4)), np.eye(4)])
    splits = ["forget"] * 3 + ["test_forgotten"] * 4
    assert compute("dispersion", features=features, references=[2] * 7, splits=splits)["dispersion"] == pytest.approx(1)


# ------------------------------------------------------------------ over-unlearning


def test_the_masked_original_has_not_changed_and_other_answers_are_at_the_largest_distance():
    masked = np.array([[0.0, 30.0, -np.inf], [30.0, 0.0, -np.inf]], np.float32)
    splits = ["neighbours", "neighbours"]

    def change(model, splits=splits):
        return compute("over_unlearning", predictions=model, masked=masked, splits=splits)["over_unlearning"]

    assert change(masked) == pytest.approx(0, abs=1e-12)
    assert change(masked[::-1]) == pytest.approx(np.log(2), rel=1e-6)
    assert change(masked[[0, 0]]) == pytest.approx(np.log(2) / 2, rel=1e-6)
    assert change(np.where(np.isinf(masked), 60, masked)) == pytest.approx(np.log(2), rel=1e-6)
    assert change(masked, ["forget", "test_forgotten"]) is None
