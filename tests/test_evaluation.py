"""One evaluation of models of any origin: whole rows, reasons for what is missing, verdicts from retrained models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import t as student
from tiny import NAMES, images, tiny_model, tiny_processor, trainer

from zspag_hf import METRICS, UnlearningError, evaluate_unlearning
from zspag_hf.data.images import labelled_dataset
from zspag_hf.evaluation import Comparison, PixelDataset, comparison
from zspag_hf.evaluation.floors import floor, least_tolerances, verdict
from zspag_hf.evaluation.relearning import RelearnData, relearning_curve
from zspag_hf.evaluation.table import Table
from zspag_hf.metrics import BLIND, DIFFERS, NEEDS, NOT_FORGOTTEN, compute
from zspag_hf.pipeline.classifier import PixelClassifier, to_pixels

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
    test, forget = options.pop("test", TEST), options.pop("forget", FORGET)
    return evaluate_unlearning(
        tiny_model(), unlearned, forget, test, ["cat"], processing_class=tiny_processor(), **options
    )


def broken():
    """A model whose weights have diverged."""
    model = tiny_model()
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    return model


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Relearning in a few steps, but in the test of two processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.evaluation.relearning.STEPS", 3)
        yield


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
    with pytest.raises(UnlearningError, match=f"'{tmp_path.name}' reads images of another size"):
        evaluated(unlearned=str(tmp_path))


@pytest.fixture(scope="module")
def full():
    """Three retrained models at level full; beside them the original once more."""
    return evaluated(level="full", beside={"elsewhere": tiny_model()})


@pytest.fixture(scope="module")
def bare():
    """Without retained images and retrained models."""
    return evaluated(retain=None, retrained=None)


@pytest.mark.slow
def test_every_model_has_every_score_or_a_reason(full):
    assert list(full.models) == ["original", "masked", "elsewhere", "unlearned", "retrained"]
    for name, row in full.models.items():
        assert set(METRICS) <= set(row), name
        for score in METRICS:
            assert row[score] is not None or score in full.reasons or name == "retrained", (name, score)
    for score, reason in full.reasons.items():
        assert reason.startswith("not defined") or set(reason.split("; ")) <= set(NEEDS.values()), reason
        assert all(row[score] is None for row in full.models.values()), score


def test_what_was_not_given_is_null_with_the_reason(bare):
    assert bare.models["retrained"] is None
    for score, line in METRICS.items():
        if "retrained" in line.needs or "retain" in line.needs:
            assert bare.models["unlearned"][score] is None
            missing = {"retrained": "pass retrained=", "retain": "pass retain="}
            assert all(text in bare.reasons[score] for need, text in missing.items() if need in line.needs), score
    assert bare.models["unlearned"]["acc_rt"] is not None and "acc_rt" not in bare.reasons


@pytest.mark.slow
def test_a_model_of_another_architecture_is_compared_by_its_own_head():
    report = evaluated(beside={"convolutional": tiny_model("resnet")}, retain=None, retrained=None, level="full")
    row = report.models["convolutional"]
    assert row["probe_auc"] is not None and row["relearn"] is not None


@pytest.mark.slow
def test_the_images_are_counted_by_split(full):
    assert full.images == {"forget": 12, "retain": 40, "test_forgotten": 12, "test_retained": 48}


@pytest.mark.slow
def test_the_masked_model_never_answers_with_a_forgotten_class_and_knows_as_much_as_the_original(full):
    masked, original = full.models["masked"], full.models["original"]
    assert masked["acc_ut"] == 0 and masked["ua"] == 1
    assert masked["acc_rt"] >= original["acc_rt"]
    for score in ("probe_auc", "relearn", "relearn_mixed", "gradcam_similarity"):
        assert masked[score] == original[score], "it changes no weight"


@pytest.mark.slow
def test_the_original_standing_in_gets_the_originals_row(full):
    assert full.models["elsewhere"] == full.models["original"] != full.models["unlearned"]


def test_a_model_equal_to_the_only_retrained_one_is_at_distance_zero():
    report = evaluated(unlearned=other(2), retrained=other(2))
    row = report.models["unlearned"]
    assert [row[f"{name}_ut"] for name in ("kl", "js", "tv", "agreement")] == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert row["mia_nn"] == pytest.approx(0, abs=1e-9) and row["avg_gap"] == 0 and row["tow"] == 1
    assert row["ain"] is None and "ain" in report.reasons, "the tiny original knows no cats: there is nothing to regain"
    assert report.floors["js_ut"] is None and not any(report.verdicts["unlearned"].values())
    assert "two of them" in report.row_reasons["retrained"] and report.models["retrained"]["js_ut"] is None


def answers(model):
    """Its logits on forgotten-class test images."""
    pixels = to_pixels(
        [image for image, label in zip(TEST["image"], TEST["label"], strict=True) if label == 2], tiny_processor()
    )
    return PixelClassifier(model, tiny_processor()).predict(pixels)


def js(model, retrained):
    """Distance of two models' answers to forgotten-class test images."""
    table = {"references": [2] * 12, "splits": ["test_forgotten"] * 12}
    return compute("divergence", predictions=answers(model), retrained=answers(retrained), **table)["js_ut"]


@pytest.mark.slow
def test_distances_are_means_over_the_retrained_models(full):
    each = [js(other(1), other(seed)) for seed in (2, 3, 4)]
    assert full.models["unlearned"]["js_ut"] == pytest.approx(np.mean(each), rel=1e-5) and np.ptp(each) > 1e-4


@pytest.mark.slow
def test_the_floor_between_retrained_models_leaves_each_one_out(full):
    each = [js(other(a), other(b)) for a, b in ((2, 3), (2, 4), (3, 4))]
    assert full.models["retrained"]["js_ut"] == pytest.approx(np.mean(each), rel=1e-5)
    assert full.floors["js_ut"]["mean"] == pytest.approx(np.mean(each), rel=1e-5)


def test_the_tolerance_is_a_prediction_interval():
    values = [0.1, 0.2, 0.4]
    sd = np.std(values, ddof=1)
    known = floor(values)
    assert known["tolerance"] == pytest.approx(student.ppf(0.975, 2) * sd * (4 / 3) ** 0.5)
    assert floor([0.1, 0.2])["tolerance"] is None and floor([0.1]) is None
    assert floor([0.5, 0.5, 0.5])["tolerance"] == 0.005


def test_one_more_model_of_the_same_kind_falls_within_the_tolerance_95_times_in_100():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.5, 0.1, (2000, 5))
    inside = [abs(row[4] - np.mean(row[:4])) <= floor(row[:4].tolist())["tolerance"] for row in draws]
    assert 0.935 < np.mean(inside) < 0.965


@pytest.mark.parametrize("count", [3, 6])
def test_distances_that_share_their_pairs_get_a_wider_tolerance(count):
    """d(a, b) = x_a + x_b + noise: every retrained model's mean distance shares pairs with the others'."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(800):
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
    seen = []
    curve = {"acc_ut": [0.5, 1.0], "acc_rt": [0.5, 0.5], "step": [0, 1]}

    def watch(models, data, *_):
        seen.extend([data.forget, data.test_forgotten])
        return {name: {"forget": curve} for name in models}

    for name, value in {"relearn_all": watch, "RELEARN_IMAGES": 40, "WATCHED_IMAGES": 20}.items():
        monkeypatch.setattr(comparison, name, value)
    labels, processor = torch.tensor(sorted([1, 2] * 50)), tiny_processor()
    forget = PixelDataset(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), labels)
    test = labelled_dataset(images(sorted([0, 1, 2, 3, 4] * 30), seed=2), processor, NAMES)
    models = (PixelClassifier(model, processor) for model in (tiny_model(), other(1)))
    Comparison(*models, [1, 2], NAMES, forget, test, Accelerator()).relearn({"original": {}, "unlearned": {}})
    for _, kept in seen:
        counts = torch.bincount(kept, minlength=5)[[1, 2]]
        assert counts.sum() in (20, 40) and (counts > counts.sum() / 3).all()


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


@pytest.mark.slow
def test_the_trainers_report_is_the_functions(tmp_path):
    job = trainer(tmp_path, forget=FORGET, test=TEST, max_steps=30)  # new API
    job.train()
    job.evaluate(retain=RETAIN, retrained=other(2))
    alone = evaluated(unlearned=job.model, retrained=other(2), seed=job.args.seed)
    for name in ("original", "masked", "unlearned", "retrained"):
        for score in METRICS:
            mine, theirs = job.report.models[name][score], alone.models[name][score]
            assert mine == (None if theirs is None else pytest.approx(theirs, abs=1e-6)), (name, score)
    assert job.report.verdicts == alone.verdicts and job.report.reasons == alone.reasons


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
    job = trainer(tmp_path, test=TEST)  # new API
    with pytest.raises(UnlearningError, match="call train"):
        job.evaluate(retrained=other(2))


@pytest.mark.slow
def test_unseen_views_stand_in_where_no_forgotten_class_image_can_be_tested(tmp_path):
    job = trainer(tmp_path, forget=images([2]), test=RETAIN, forget_views=8, max_steps=20)  # new API
    job.train()
    job.evaluate(level="full")
    row = job.report.models["unlearned"]
    assert row["acc_views"] is not None and row["relearn"] is not None
    assert row["acc_ut"] is None and job.report.reasons["acc_ut"] == NEEDS["forgotten"]
    forget = job.run.forget
    assert job.report.images["forget"] == 1 and len(forget) == 8, "the image itself is judged, not its crops"
    assert job.report.images["views"] == len(forget.unseen) > 0


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_count_every_image_once(tmp_path):
    """Odd numbers of images, so that the last batch is padded: every score equals one process's."""
    script, out = tmp_path / "job.py", tmp_path / "two.json"
    script.write_text(
        "import json, os, sys\nimport torch\nimport test_evaluation as T\nimport zspag_hf.evaluation.relearning as R\n"
        "torch.set_num_threads(1)\nR.STEPS = 3\n"
        "report = T.odd()\n"
        "if os.environ['RANK'] == '0':\n"
        "    json.dump([report.models, report.images, report.relearning], open(sys.argv[1], 'w'))\n"
    )
    tests = Path(__file__).parent
    paths = f"{tests}{os.pathsep}{tests.parent}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launcher, str(script), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    models, counts, curves = json.loads(out.read_text())
    one = odd()
    assert counts == one.images and curves == one.relearning
    for model, row in one.models.items():
        for score in METRICS:
            expected = None if row[score] is None else pytest.approx(row[score], abs=1e-5)
            assert models[model][score] == expected, (model, score)


def odd():
    """An evaluation over odd numbers of images."""
    test, forget = images([0, 1, 2, 3, 4] * 11, seed=3), images([2] * 11, seed=1)
    return evaluated(level="full", retrained=other(2), test=test, forget=forget)
