"""One evaluation of models of any origin: whole rows, reasons for what is missing, verdicts from retrained models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from tiny import NAMES, images, tiny_model, tiny_processor, trainer

from zspag_hf import METRICS, UnlearningError, evaluate_unlearning
from zspag_hf.evaluation.floors import BLIND, DIFFERS, NOT_FORGOTTEN, floor, least_tolerances, verdict
from zspag_hf.evaluation.relearning import RelearnData, relearning_curve
from zspag_hf.evaluation.table import PixelDataset, Table
from zspag_hf.metrics import NEEDS
from zspag_hf.pipeline.classifier import PixelClassifier

FORGET, RETAIN = images([2] * 12, seed=1), images([0, 1, 3, 4] * 10, seed=2)
TEST = images([0, 1, 2, 3, 4] * 12, seed=3)


def other(seed: int):
    """A model with weights of its own."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def evaluated(unlearned=None, **options):
    options = {"retain": RETAIN, "retrained": [other(2), other(3), other(4)], "disable_progress": True} | options
    unlearned = other(1) if unlearned is None else unlearned
    test = options.pop("test", TEST)
    return evaluate_unlearning(
        tiny_model(), unlearned, FORGET, test, ["cat"], processing_class=tiny_processor(), **options
    )


def broken():
    """A model whose weights have diverged."""
    model = tiny_model()
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    return model


def test_a_diverged_model_is_named_before_anything_is_computed():
    with pytest.raises(UnlearningError, match="the elsewhere model's outputs on test images are not 5 finite numbers"):
        evaluated(beside={"elsewhere": broken()})


def test_a_half_precision_model_is_refused():
    with pytest.raises(UnlearningError, match=r"stored as torch\.float16"):
        evaluated(unlearned=other(1).half())


def test_a_model_that_reads_other_sizes_is_refused(tmp_path):
    other(1).save_pretrained(tmp_path)
    processor = tiny_processor()
    processor.size = {"height": 16, "width": 16}
    processor.save_pretrained(tmp_path)
    with pytest.raises(UnlearningError, match="reads images of another size"):
        evaluated(unlearned=str(tmp_path))


def test_a_model_of_another_architecture_is_compared_by_its_own_head():
    report = evaluated(beside={"convolutional": tiny_model("resnet")}, retain=None, retrained=None, level="full")
    row = report.models["convolutional"]
    assert row["probe_auc"] is not None and row["relearn"] is not None


@pytest.fixture(scope="module")
def full():
    return evaluated(level="full", beside={"elsewhere": other(5)})


def test_every_model_has_every_score_or_a_reason(full):
    assert list(full.models) == ["original", "masked", "elsewhere", "unlearned", "retrained"]
    for name, row in full.models.items():
        assert set(METRICS) <= set(row), name
        for score in METRICS:
            assert row[score] is not None or score in full.reasons or name == "retrained", (name, score)
    for score, reason in full.reasons.items():
        assert reason.startswith("not defined") or set(reason.split("; ")) <= set(NEEDS.values()), reason
        assert all(row[score] is None for row in full.models.values()), score


def test_what_was_not_given_is_null_with_the_reason():
    bare = evaluated(retain=None, retrained=None)
    assert bare.models["retrained"] is None
    for score, line in METRICS.items():
        if "retrained" in line.needs or "retain" in line.needs:
            assert bare.models["unlearned"][score] is None
            missing = {"retrained": "pass retrained=", "retain": "pass retain="}
            assert all(text in bare.reasons[score] for need, text in missing.items() if need in line.needs), score
    assert bare.models["unlearned"]["acc_rt"] is not None and "acc_rt" not in bare.reasons


def test_the_images_are_counted_by_split(full):
    assert full.images == {"forget": 12, "retain": 40, "test_forgotten": 12, "test_retained": 48}


def test_the_masked_model_never_answers_with_a_forgotten_class_and_knows_as_much_as_the_original(full):
    masked, original = full.models["masked"], full.models["original"]
    assert masked["acc_ut"] == 0 and masked["ua"] == 1
    assert masked["acc_rt"] >= original["acc_rt"]
    for score in ("probe_auc", "relearn", "relearn_mixed", "gradcam_similarity"):
        assert masked[score] == original[score], "it changes no weight"


def test_the_original_standing_in_gets_the_originals_row():
    report = evaluated(unlearned=tiny_model())
    for score in METRICS:
        assert report.models["unlearned"][score] == report.models["original"][score], score


def test_a_model_equal_to_the_only_retrained_one_is_at_distance_zero():
    report = evaluated(unlearned=other(2), retrained=other(2))
    row = report.models["unlearned"]
    assert [row[f"{name}_ut"] for name in ("kl", "js", "tv", "agreement")] == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert row["mia_nn"] == pytest.approx(0, abs=1e-9) and row["avg_gap"] == 0 and row["tow"] == 1
    assert row["ain"] is None and "ain" in report.reasons, "the tiny original knows no cats: there is nothing to regain"
    assert report.floors["js_ut"] is None and not any(report.verdicts["unlearned"].values())
    assert "two of them" in report.row_reasons["retrained"] and report.models["retrained"]["js_ut"] is None


def test_distances_are_means_over_the_retrained_models():
    models = [other(2), other(3)]
    each = [evaluated(retrained=model).models["unlearned"]["js_ut"] for model in models]
    assert evaluated(retrained=models).models["unlearned"]["js_ut"] == pytest.approx(np.mean(each))


def test_the_floor_between_retrained_models_leaves_each_one_out(full):
    pairs = [evaluated(unlearned=other(a), retrained=other(b)) for a, b in ((2, 3), (2, 4), (3, 4))]
    expected = np.mean([report.models["unlearned"]["js_ut"] for report in pairs])
    assert full.models["retrained"]["js_ut"] == pytest.approx(expected, rel=1e-5)


def test_the_tolerance_is_a_prediction_interval():
    values = [0.1, 0.2, 0.4]
    sd = np.std(values, ddof=1)
    found = floor(values)
    assert found["tolerance"] == pytest.approx(student.ppf(0.975, 2) * sd * (4 / 3) ** 0.5)
    assert floor([0.1, 0.2])["tolerance"] is None and floor([0.1]) is None
    assert floor([0.5, 0.5, 0.5])["tolerance"] == 0.005


def test_one_more_model_of_the_same_kind_falls_within_the_tolerance_95_times_in_100():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.5, 0.1, (4000, 5))
    found = [abs(row[4] - np.mean(row[:4])) <= floor(row[:4].tolist())["tolerance"] for row in draws]
    assert 0.94 < np.mean(found) < 0.96


@pytest.mark.parametrize("count", [3, 4, 6])
def test_distances_that_share_their_pairs_get_a_wider_tolerance(count):
    """d(a, b) = x_a + x_b + noise: every retrained model's mean distance shares pairs with the others'."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(1500):
        own = rng.normal(1, 0.2, count + 1)
        d = own[:, None] + own[None] + rng.normal(0, 0.05, (count + 1,) * 2)
        values = [np.mean([d[a, b] for b in range(count) if b != a]) for a in range(count)]
        known = floor(values, pairwise=True)
        inside.append(abs(d[count, :count].mean() - known["mean"]) <= known["tolerance"])
    assert 0.93 < np.mean(inside) < 0.99


@pytest.mark.parametrize(
    ("value", "original", "expected"),
    [
        (0.51, 0.9, "as retrained"),
        (0.8, 0.9, NOT_FORGOTTEN),
        (0.1, 0.9, DIFFERS),
        (0.6, 0.9, DIFFERS),
        (0.9, 0.5, BLIND),
    ],
)
def test_verdicts(value, original, expected):
    known = {"mean": 0.5, "sd": 0.01, "models": 4, "tolerance": 0.05}
    assert verdict("relearn", value, original, known) == expected
    assert verdict("relearn", None, original, known) is None and verdict("relearn", value, original, None) is None


def test_accuracy_near_the_originals_is_no_sign_of_remembering():
    known = {"mean": 0.9, "sd": 0.002, "models": 3, "tolerance": 0.01}
    assert verdict("acc_rt", 0.86, 0.85, known) == DIFFERS


def test_nearer_to_the_retrained_models_than_they_are_to_each_other_is_as_retrained():
    known = {"mean": 0.05, "sd": 0.001, "models": 3, "tolerance": 0.005}
    assert verdict("js_ut", 0.03, 0.3, known) == "as retrained"
    assert verdict("agreement_ut", 0.9, 0.01, known) == "as retrained"
    assert verdict("js_ut", 0.06, 0.3, known) == DIFFERS


def test_one_image_is_never_evidence():
    table = Table(np.zeros(48, int), np.repeat(["forget", "test_forgotten", "test_retained"], [30, 8, 10]), {}, {})
    least = least_tolerances(table)
    assert least["acc_ut"] == 1 / 8 and least["acc_rt"] == 1 / 10 and least["relearn_steps"] == 1
    assert floor([0.0, 0.0, 0.0], least=1 / 8)["tolerance"] == 1 / 8


def test_sorted_data_is_drawn_from_everywhere(monkeypatch):
    """Two forgotten classes one after the other: both are fine-tuned on, and both are watched."""
    seen = {}

    def watch(models, data, *_):
        seen["data"] = data
        return {name: {"forget": {"acc_ut": [0.5, 1.0], "acc_rt": [0.5, 0.5], "step": [0, 1]}} for name in models}

    monkeypatch.setattr("zspag_hf.evaluation.comparison.relearn_all", watch)
    forget, test = images(sorted([1, 2] * 300), seed=1), images(sorted([0, 1, 2, 3, 4] * 150), seed=2)
    arguments = (tiny_model(), other(1), forget, test, ["cat", "bee"])
    evaluate_unlearning(*arguments, processing_class=tiny_processor(), disable_progress=True)
    for part in (seen["data"].forget, seen["data"].test_forgotten):
        counts = torch.bincount(part[1], minlength=5)[[1, 2]]
        assert (counts > counts.sum() / 3).all()


def test_relearning_leaves_the_model_alone_and_repeats_exactly():
    classifier = PixelClassifier(tiny_model(), tiny_processor())
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    part = (pixels, torch.full((10,), 2))
    data = RelearnData(part, part, (pixels, torch.zeros(10, dtype=torch.long)))
    curves = [relearning_curve(classifier, data, steps=12, seed=seed) for seed in (0, 0)]
    assert curves[0] == curves[1] and curves[0]["step"] == list(range(13))
    assert curves[0]["acc_ut"][-1] > 0.5 > curves[0]["acc_ut"][0], "twelve steps bring them back"
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
    assert all(not p.requires_grad or p.grad is None for p in classifier.parameters())


def test_the_trainers_report_is_the_functions(tmp_path):
    run = trainer(tmp_path, forget=FORGET, test=TEST, max_steps=30)
    run.train()
    run.evaluate(retain=RETAIN, retrained=[other(2), other(3), other(4)])
    alone = evaluated(unlearned=run.model, seed=run.args.seed)
    for name in ("original", "masked", "unlearned", "retrained"):
        for score in METRICS:
            mine, theirs = run.report.models[name][score], alone.models[name][score]
            assert mine == (None if theirs is None else pytest.approx(theirs, abs=1e-6)), (name, score)
    assert run.report.verdicts == alone.verdicts and run.report.reasons == alone.reasons


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": images([2, 2, 2])}, "no image of a retained class"),
        ({"test": None}, "must be one datasets.Dataset, not NoneType"),
        ({"beside": {"retrained 1": None}}, "'retrained 1' has a row of its own"),
        ({"level": "thorough"}, "'thorough' is not one of 'quick', 'full'"),
        ({"retain": images([0, 2, 1])}, "retain set holds 1 images of forgotten classes, first image 1"),
        ({"beside": {"masked": None}}, "'masked' has a row of its own"),
        ({"retrained": tiny_model(names=["a", *NAMES[1:]])}, "labels of a model to compare with differ"),
        ({"retain": "somewhere"}, "must be one datasets.Dataset, not str"),
        ({"retain": images([])}, "is empty"),
    ],
)
def test_bad_input_is_refused_by_name(options, message):
    if "beside" in options:
        options = {"beside": dict.fromkeys(options["beside"], other(5))}
    with pytest.raises(UnlearningError, match=message):
        evaluated(**options)


def test_comparisons_before_a_training_are_refused(tmp_path):
    run = trainer(tmp_path, test=TEST)
    with pytest.raises(UnlearningError, match="call train"):
        run.evaluate(retrained=other(2))


def test_unseen_views_stand_in_where_no_forgotten_class_image_can_be_tested(tmp_path):
    run = trainer(tmp_path, forget=images([2]), test=RETAIN, forget_views=8, max_steps=20)
    run.train()
    run.evaluate(level="full")
    row = run.report.models["unlearned"]
    assert row["acc_views"] is not None and row["relearn"] is not None
    assert row["acc_ut"] is None and run.report.reasons["acc_ut"] == NEEDS["forgotten"]
    assert run.report.images["forget"] == 1 and len(run.forget) == 8, "the image itself is judged, not its crops"
    assert run.report.images["views"] == len(run.forget.unseen) and isinstance(
        PixelDataset(run.forget.unseen, run.forget.unseen_labels)[0], dict
    )


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_count_every_image_once(tmp_path):
    """Odd numbers of images, so that the last batch is padded: every score equals one process's."""
    script = tmp_path / "job.py"
    script.write_text(
        "import json, sys, os\nimport test_evaluation as T\n"
        "from tiny import images\n"
        "T.TEST, T.FORGET = images([0, 1, 2, 3, 4] * 11, seed=3), images([2] * 11, seed=1)\n"
        "report = T.evaluated(level='full')\n"
        "if os.environ.get('RANK', '0') == '0':\n"
        "    json.dump([report.models, report.images, report.relearning], open(sys.argv[1], 'w'))\n"
    )
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for name, command in (("one", [sys.executable]), ("two", launcher)):
        command = [*command, str(script), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert one[1:] == two[1:]
    for model, row in one[0].items():
        for score in METRICS:
            assert two[0][model][score] == (None if row[score] is None else pytest.approx(row[score], abs=1e-5)), score
