"""What every metric module promises, and known answers of those that do not ask who was a member."""

import socket

import evaluate
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy as kl_divergence
from scipy.stats import norm

from zspag_hf.metrics import CLOSEST, HIGHER, LOWER, METRICS, MODULES, NEEDS, TABLE_METRICS, compute, metric_path
from zspag_hf.metrics.relearning.relearning import steps_to

SIZES = {"forget": 60, "retain": 60, "test_forgotten": 110, "test_retained": 90, "views": 15, "neighbours": 20}
GONE = 3  # the forgotten one of four classes
SVM = {"mia_confidence", "mia_modified_entropy", "mia_entropy"}
RECOVERY = {"recovery_1", "recovery_5", "recovery_50"}
LOSS = {"mia_loss_auc", "mia_loss_tpr_at_1fpr", "mia_loss_cv"}
DISTANCES = ("kl", "kl_reverse", "js", "fade", "tv", "agreement")
# The images that a score is about; without them there is no number.
EMPTIED = {
    "forget": {"ua", "rmia_auc", "u_lira", "dispersion"} | SVM | LOSS | RECOVERY,
    "retain": {"ra"} | SVM,
    "test_forgotten": {"acc_ut", "acc_ut_micro", "mia_nn", "probe_auc"} | LOSS | {f"{d}_ut" for d in DISTANCES},
    "test_retained": {"acc_rt", "acc_rt_micro", "ta", "mia_nn", "probe_auc"}
    | SVM
    | RECOVERY
    | {f"{d}_rt" for d in DISTANCES},
    "views": {"acc_views"},
    "neighbours": {"over_unlearning"},
}
LARGEST = {
    "js": np.log(2),
    "over_unlearning": np.log(2),
    "kl": 50,
    "kl_reverse": 50,
    "fade": 50,
    "relearn_steps": 21,
    "ain": 21,
}


def random_columns(seed=0, sizes=SIZES):
    """Module -> the columns that it reads, all over one table of random models."""
    rng = np.random.default_rng(seed)
    splits = np.repeat(list(sizes), list(sizes.values()))
    labels = np.where(np.isin(splits, ["retain", "test_retained"]), rng.integers(0, GONE, len(splits)), GONE)
    predictions, retrained = rng.normal(0, 3, (2, len(splits), 4)).astype(np.float16)
    predictions[splits == "retain"] += 6 * np.eye(4, dtype=np.float16)[labels[splits == "retain"]]
    table = {"predictions": predictions, "references": labels, "splits": splits}
    margins = rng.normal(0, 3, (len(splits), 4))
    curves, maps, scores = rng.uniform(size=(2, 21)), rng.uniform(size=(2, 9, 16)), rng.uniform(size=(2, 4))
    populations, features = rng.normal(size=(2, 10, 16)), rng.normal(1, 1, (len(splits), 6))
    masked = np.where(np.arange(4) == GONE, -np.inf, predictions)
    return {
        "unlearning_accuracy": table,
        "membership_svm": table,
        "membership_loss": table,
        "rmia": table | {"reference_log_probs": -rng.exponential(2, (len(splits), 3))},
        "u_lira": table | {"in_margins": margins[:, :1], "out_margins": margins[:, 1:]},
        "mia_nn": table | {"retrained": retrained},
        "divergence": table | {"retrained": retrained},
        "prototype_recovery": table | {"features": features},
        "dispersion": {"features": features, "references": labels, "splits": splits},
        "over_unlearning": {"predictions": predictions, "masked": masked, "splits": splits},
        "linear_probe": {"features": features, "splits": splits},
        "relearning": {"predictions": curves[0], "references": curves[1], "original": 0.9},
        "heatmap_similarity": {"predictions": maps[0], "references": maps[1]},
        "gap_to_retrained": {"predictions": scores[0], "references": scores[1]},
        "forgetting_quality": {"unlearned": populations[0], "retrained": populations[1]},
        "backdoor_accuracy": {"predictions": predictions, "references": labels, "target": 1},
    }


def every_score(columns):
    """Score -> value, over the given modules, without the accuracies of single classes."""
    scores = {score: value for name, row in columns.items() for score, value in compute(name, **row).items()}
    return {score: value for score, value in scores.items() if score != "per_class"}


def over_images(columns):
    """The modules that read a row an image with its split."""
    return {name: row for name, row in columns.items() if "splits" in row}


def none_or_finite(scores):
    return all(value is None or np.isfinite(value) for value in scores.values())


def divergence(model, retrained):
    count = len(model)
    return compute(
        "divergence", predictions=model, retrained=retrained, references=[0] * count, splits=["test_forgotten"] * count
    )


# ------------------------------------------------------------------ every module


@pytest.fixture(scope="module")
def scores():
    """Of the random columns, by module."""
    return {name: compute(name, **row) for name, row in random_columns().items()}


def test_every_score_is_returned_by_the_module_that_it_names(scores):
    assert list(scores) == list(MODULES)
    listed = {name: {score for score, line in METRICS.items() if line.module == name} for name in MODULES}
    listed["relearning"].remove("relearn_mixed")  # the module's "relearn", of a curve on mixed images
    assert {name: set(row) - {"per_class"} for name, row in scores.items()} == listed


def test_every_score_says_what_it_is_where_it_is_from_and_what_it_needs():
    assert all(reason.strip() for reason in NEEDS.values())
    for score, line in METRICS.items():
        assert line.definition.strip() and line.source.strip(), score
        assert line.direction in (HIGHER, LOWER, CLOSEST) and set(line.needs) <= set(NEEDS), score


def test_every_score_of_random_models_lies_in_its_range(scores):
    for row in scores.values():
        for score, value in row.items():
            most = LARGEST.get(score.removesuffix("_ut").removesuffix("_rt"), 1)
            assert score == "per_class" or -1e-9 <= value <= most + 1e-9, score


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_module_loads_from_its_folder_without_a_network_and_gives_the_same(name, scores, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a metric asked the network"))
    loaded = evaluate.load(metric_path(name), cache_dir=str(tmp_path))
    assert loaded.compute(**random_columns()[name]) == scores[name]
    assert loaded.description.startswith(next(iter(scores[name]))) or name == "divergence"
    assert loaded.inputs_description and "Inputs:" not in loaded.description


def test_the_metrics_over_the_common_table_combine_and_give_the_same_as_each_alone(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a metric asked the network"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    together = evaluate.combine([metric_path(name) for name in TABLE_METRICS]).compute(**random_columns()["divergence"])
    assert together == {score: value for name in TABLE_METRICS for score, value in scores[name].items()}


def test_an_unknown_module_is_answered_with_those_that_exist():
    with pytest.raises(KeyError, match="choose from unlearning_accuracy"):
        metric_path("accuracy")


@pytest.mark.slow
@pytest.mark.parametrize("split", SIZES)
def test_without_images_of_a_split_exactly_the_scores_about_them_are_none(split):
    columns = over_images(random_columns(sizes={name: count for name, count in SIZES.items() if name != split}))
    scores = every_score(columns)
    assert {score for score, value in scores.items() if value is None} == EMPTIED[split]
    assert none_or_finite(scores)


@pytest.mark.parametrize("split", SIZES)
def test_one_image_of_a_split_gives_a_number_or_none(split):
    columns = over_images(random_columns(sizes=SIZES | {split: 1}))
    readers = {METRICS[score].module for score in EMPTIED[split]}
    assert none_or_finite(every_score({name: row for name, row in columns.items() if name in readers}))


@pytest.mark.slow
def test_a_single_retained_class_gives_numbers_but_for_the_test_between_retained_classes():
    columns = over_images(random_columns())
    for row in columns.values():
        if "references" in row:
            row["references"] = np.where(row["references"] == GONE, GONE, 0)
    scores = every_score(columns)
    assert {score for score, value in scores.items() if value is None} == {"mia_nn"} and none_or_finite(scores)


@pytest.mark.parametrize("side", ["predictions", "retrained"])
def test_a_masked_model_has_finite_scores_everywhere(side):
    columns = {name: dict(row) for name, row in over_images(random_columns()).items() if side in row}
    for row in columns.values():
        row[side] = np.where(np.arange(4) == GONE, -np.inf, row[side])
    scores = every_score(columns)
    assert None not in scores.values() and none_or_finite(scores)


@pytest.mark.slow
def test_the_dtype_of_a_column_changes_no_score(scores):
    for logits, labels in ((np.float16, np.int32), (np.float32, np.int64), (np.float64, np.int32)):
        for name, row in over_images(random_columns()).items():
            types = {"predictions": logits, "masked": logits, "references": labels}
            if cast := {column: row[column].astype(dtype) for column, dtype in types.items() if column in row}:
                cast = row | cast
                assert compute(name, **cast) == scores[name], (name, logits, labels)


@pytest.mark.parametrize("name", ["backdoor_accuracy", "heatmap_similarity", "gap_to_retrained", "forgetting_quality"])
def test_over_nothing_there_is_no_score(name):
    columns = {column: [] if np.ndim(value) else value for column, value in random_columns()[name].items()}
    assert set(compute(name, **columns).values()) == {None}


# ------------------------------------------------------------------ accuracies


def test_accuracies_are_means_over_classes_and_over_images_of_their_own_split():
    answers = {"test_retained": [(0, 0), (0, 0), (0, 1), (1, 2)], "test_forgotten": [(3, 3), (3, 0)]}
    answers |= {"forget": [(3, 3), (3, 1), (3, 1), (3, 1)], "retain": [(0, 0), (1, 0)], "views": [(3, 3)]}
    rows = [(split, label, answer) for split, pairs in answers.items() for label, answer in pairs]
    splits, labels, given = zip(*rows, strict=True)
    scores = compute("unlearning_accuracy", predictions=np.eye(4)[list(given)], references=labels, splits=splits)
    assert scores.pop("per_class") == {0: pytest.approx(2 / 3), 1: 0.0, 3: 0.5}
    assert scores == pytest.approx(
        dict(acc_rt=1 / 3, acc_ut=0.5, acc_rt_micro=0.5, acc_ut_micro=0.5, acc_views=1, ua=0.75, ra=0.5, ta=0.5)
    )


def test_a_forgotten_test_image_does_not_lower_the_test_accuracy():
    table = {"predictions": np.eye(2)[[0, 0, 0]], "references": [0, 0, 1]}
    faulty = np.mean(table["predictions"].argmax(1) == table["references"])  # over the whole test set
    scores = compute("unlearning_accuracy", **table, splits=["test_retained", "test_retained", "test_forgotten"])
    assert scores["ta"] == 1 and faulty == pytest.approx(2 / 3)


def test_only_triggered_images_of_other_classes_count_for_the_backdoor():
    predictions, labels = np.eye(3)[[2, 2, 0, 2, 1]], np.array([2, 2, 0, 1, 2])
    faulty = np.mean(predictions.argmax(1) == 2)  # also images whose true class is the target
    scores = compute("backdoor_accuracy", predictions=predictions, references=labels, target=2)
    assert scores["attack_accuracy"] == 0.5 and faulty == pytest.approx(0.6)
    alone = compute("backdoor_accuracy", predictions=predictions[:2], references=labels[:2], target=2)
    assert alone["attack_accuracy"] is None


# ------------------------------------------------------------------ distance from a retrained model


def test_divergences_equal_those_of_scipy():
    model, retrained = np.random.default_rng(0).normal(0, 2, (2, 50, 5)).astype(np.float32)
    u, r = softmax(model.astype(float), 1), softmax(retrained.astype(float), 1)
    kl, reverse = kl_divergence(r, u, axis=1).mean(), kl_divergence(u, r, axis=1).mean()
    scores = divergence(model, retrained)
    assert scores["kl_ut"] == pytest.approx(kl) and scores["kl_reverse_ut"] == pytest.approx(reverse)
    assert scores["fade_ut"] == pytest.approx((kl + reverse) / 2)
    assert scores["js_ut"] == pytest.approx((jensenshannon(u, r, axis=1) ** 2).mean())
    assert scores["tv_ut"] == pytest.approx(np.clip(u - r, 0, None).sum(1).mean())
    assert scores["agreement_ut"] == np.mean(model.argmax(1) == retrained.argmax(1))
    assert all(scores[f"{name}_rt"] is None for name in DISTANCES)


def test_equal_answers_are_at_no_distance_and_disjoint_ones_at_the_largest():
    logits = np.array([[30.0, -np.inf, 0.0], [0.0, -np.inf, 30.0]])
    same = divergence(logits, logits)
    assert all(same[f"{name}_ut"] == pytest.approx(float(name == "agreement"), abs=1e-9) for name in DISTANCES)
    disjoint = divergence(np.array([[0, -np.inf]]), np.array([[-np.inf, 0]]))
    assert disjoint["js_ut"] == pytest.approx(np.log(2)) and disjoint["tv_ut"] == pytest.approx(1)
    assert disjoint["kl_ut"] == pytest.approx(50) and disjoint["agreement_ut"] == 0


def test_the_jensen_shannon_divergence_is_not_that_of_the_middle_from_each_averaged_over_classes():
    model, retrained = np.random.default_rng(0).normal(0, 1, (2, 50, 100)).astype(np.float32)
    u, r = softmax(model.astype(float), 1), softmax(retrained.astype(float), 1)
    m = (u + r) / 2
    faulty = sum((m * np.log(m / p)).mean() for p in (u, r)) / 2  # kl_div(log p, m), reduction "mean"
    right = sum((p * np.log(p / m)).sum(1).mean() for p in (u, r)) / 2
    scores = divergence(model, retrained)["js_ut"]
    assert scores == pytest.approx(right) and scores > 0.1 and faulty < scores / 50


def test_the_gap_is_a_mean_and_the_tug_of_war_a_product():
    scores = compute("gap_to_retrained", predictions=[1.0, 0.9, 0.5], references=[0.8, 0.9, 0.75])
    assert scores == {"avg_gap": pytest.approx(0.15), "tow": pytest.approx(0.8 * 1 * 0.75)}


def test_heatmap_similarity_is_the_mean_cosine_over_pairs_that_are_not_empty():
    mine, theirs = [[1, 0], [3, 4], [0, 0], [1, 1]], [[1, 1], [6, 8], [1, 0], [0, 0]]
    scores = compute("heatmap_similarity", predictions=mine, references=theirs)
    assert scores["gradcam_similarity"] == pytest.approx((np.sqrt(0.5) + 1) / 2)
    empty = compute("heatmap_similarity", predictions=mine[2:], references=theirs[2:])
    assert empty["gradcam_similarity"] is None


# ------------------------------------------------------------------ depth


def test_relearning_is_the_mean_after_step_0_and_the_first_step_at_95_percent_of_the_original():
    mine, theirs = [0, 0.2, 0.86, 0.7, 0.9], [0, 0, 0, 0.5, 0.86]
    scores = compute("relearning", predictions=mine, references=theirs, original=0.9)
    assert scores == {"relearn": pytest.approx(0.665), "relearn_steps": 2, "ain": 0.5}


def test_relearning_that_never_comes_back_takes_one_step_more_than_there_are():
    never, soon = [0] * 5, [0, 1, 1, 1, 1]
    assert compute("relearning", predictions=never, references=soon, original=0.9)["relearn_steps"] == 5
    assert compute("relearning", predictions=never, references=soon, original=0.9)["ain"] == 5
    assert compute("relearning", predictions=never, references=never, original=0.9)["ain"] == 1
    assert steps_to([0.95, 1], 0.95) == 1  # a model that forgot nothing divides nothing by zero


@pytest.mark.parametrize("shift", [0, 1, 2, 30])
def test_the_probe_finds_as_much_of_the_class_as_lies_in_the_features(shift):
    splits = np.repeat(["test_forgotten", "test_retained"], [300, 500])
    features = np.random.default_rng(0).normal(size=(800, 4))
    features[:300, 2] += shift
    scores = compute("linear_probe", features=features, splits=splits)["probe_auc"]
    assert scores == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.06 if shift < 30 else 1e-9)
