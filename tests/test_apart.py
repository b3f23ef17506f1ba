"""Test images that are images to forget: left out, told, and no score that needs others is made of them."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from tiny import images, tiny_model, tiny_processor, trainer

from zspag_hf import UnlearningError, evaluate_unlearning
from zspag_hf.evaluation.table import digests

FORGET, RETAINED, OTHERS = images([2] * 12, seed=1), images([0, 1, 3, 4] * 5, seed=2), images([2] * 8, seed=3)
COMPARED = ("mia_loss_auc", "mia_loss_tpr_at_1fpr", "mia_loss_cv", "acc_ut", "acc_ut_micro", "relearn", "recovery_1")


def other():
    model = tiny_model()
    with torch.no_grad():
        model.classifier.bias[2] -= 1
    return model


def evaluated(*tests, forget=FORGET, classes=("cat",)):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.evaluation.relearning.STEPS", 2)
        return evaluate_unlearning(
            tiny_model(),
            other(),
            forget,
            concatenate_datasets(list(tests)),
            list(classes),
            processing_class=tiny_processor(),
            disable_progress=True,
        )


@pytest.fixture(scope="module")
def alone():
    """Evaluated on test images that nobody was to forget."""
    with warnings.catch_warnings(action="error", category=UserWarning):
        return evaluated(RETAINED, OTHERS)


def test_where_all_are_forget_images_there_is_a_reason_and_no_score():
    with pytest.warns(UserWarning, match="12 of 32 test images are images to forget.*no test images of forgotten"):
        report = evaluated(RETAINED, FORGET)
    for score in COMPARED:
        assert all(row[score] is None for row in report.models.values() if row)
        assert "the 12 that were given are images to forget" in report.reasons[score]
    assert report.models["unlearned"]["acc_rt"] is not None
    assert report.images == {"forget": 12, "test_retained": 20} and report.left_out_tests == 12
    assert "Left out, as images to forget, pixel by pixel: 12 test images." in report.table()


@pytest.mark.parametrize("kind", ["some", "twice", "under another label", "in front"])
def test_the_others_are_scored_as_they_are_alone(alone, kind):
    relabelled = images([0] * 12, seed=1)
    tests = {
        "some": [RETAINED, FORGET.select([3, 7]), OTHERS],
        "twice": [RETAINED, OTHERS, FORGET, FORGET],
        "under another label": [RETAINED, relabelled, OTHERS],
        "in front": [FORGET, RETAINED, OTHERS],
    }[kind]
    with pytest.warns(UserWarning, match="are images to forget, pixel by pixel.* and 8 test images"):
        report = evaluated(*tests)
    assert report.images == alone.images
    for name, row in alone.models.items():
        for score, value in (row or {}).items():
            assert report.models[name][score] == (value if value is None else pytest.approx(value, abs=1e-6)), score


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_leave_out_the_same_images(tmp_path):
    """In batches of four, so that each has several: rows of the table are told in the order of the images."""
    (tmp_path / "job.py").write_text(
        "import json, os, sys\nimport torch\nimport test_apart as T\ntorch.set_num_threads(1)\n"
        "report = T.mixed()\n"
        "if os.environ['RANK'] == '0':\n"
        "    json.dump([report.models, report.images, report.relearning], open(sys.argv[1], 'w'))\n"
    )
    tests = Path(__file__).parent
    paths = f"{tests}{os.pathsep}{tests.parent}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launcher, str(tmp_path / "job.py"), str(tmp_path / "two.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    with pytest.warns(UserWarning, match="3 of 31 test images"):
        one = mixed()
    models, counts, curves = json.loads((tmp_path / "two.json").read_text())
    assert counts == one.images and curves == one.relearning
    for name, row in one.models.items():
        for score, value in (row or {}).items():
            assert models[name][score] == (value if value is None else pytest.approx(value, abs=1e-5)), (name, score)


def mixed():
    """An evaluation with forget images here and there among the test images, in small batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zspag_hf.evaluation.table.IMAGES_AT_ONCE", 4)
        held = [FORGET.select([3]), RETAINED.select(range(11)), FORGET.select([5, 0]), RETAINED.select(range(11, 20))]
        return evaluated(*held, OTHERS)


def test_a_run_says_the_same_of_its_own_metrics(tmp_path):
    tests = concatenate_datasets([RETAINED, FORGET])
    run = trainer(tmp_path, forget=FORGET, test=tests, method="random_labels", max_steps=2)
    run.train()
    with pytest.warns(UserWarning, match="12 of 32 test images"):
        metrics = run.evaluate()
    assert "eval_acc_ut" not in metrics and "eval_acc_cat" not in metrics
    assert metrics["eval_acc_rt"] == pytest.approx(run.report.models["unlearned"]["acc_rt"])
    assert run.report.models["unlearned"]["acc_ut"] is None


def test_nothing_but_forget_images_is_refused():
    with pytest.raises(UnlearningError, match="images that nobody trained on"):
        evaluated(FORGET, images([0] * 12, seed=1))


def test_a_digest_tells_pixels_apart_and_nothing_else():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8))
    changed = pixels.clone()
    changed[1, 0, 0, 0] ^= 1
    assert (digests(pixels) == digests(changed)).tolist() == [True, False, True]
    assert digests(pixels.transpose(2, 3).contiguous().transpose(2, 3)).equal(digests(pixels))
