"""Real digits: a retrained model in the place of the unlearned one is "as retrained", the original is "not forgotten".

The same as examples/benchmarks/calibration.py, once: the caveats in METRICS come from that table.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from digits import digits_dataset, digits_model, train_classifier

from zspag_hf import METRICS, evaluate_unlearning
from zspag_hf.evaluation.floors import BLIND, NOT_FORGOTTEN

THREE, RETRAINED = 3, 4


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    train, test = digits_dataset()
    labels = train["label"][:]
    forget, retain = (train.select([i for i, k in enumerate(labels) if (k == THREE) == gone]) for gone in (True, False))

    def trained(seed, drop):
        options = SimpleNamespace(output_dir=str(folder), disable_tqdm=True, use_cpu=True, seed=seed)
        model, processor = digits_model(train.features["label"].names, seed)
        return train_classifier(model, processor, train, drop, options), processor

    original, processor = trained(0, [])
    stand_in, *retrained = [trained(seed, [THREE])[0] for seed in range(1, RETRAINED + 2)]
    return evaluate_unlearning(
        original,
        stand_in,
        forget,
        test,
        [THREE],
        retain=retain,
        retrained=retrained,
        beside={"the original": original},
        processing_class=processor,
        disable_progress=True,
    )


def trusted():
    return [score for score, line in METRICS.items() if line.detects and not line.caveat]


def test_the_original_is_not_forgotten_by_any_trusted_score(report):
    verdicts = report.verdicts["the original"]
    found = {score: verdicts[score] for score in trusted() if score not in report.reasons}
    assert found and set(found.values()) == {NOT_FORGOTTEN}, {k: v for k, v in found.items() if v != NOT_FORGOTTEN}


def test_a_retrained_model_is_as_retrained_by_every_score(report):
    """Each floor is a 95 % interval of four models: of some thirty scores one or two may lie outside, none far."""
    outside = {}
    for score, known in report.floors.items():
        value = report.models["unlearned"][score]
        if known is not None and value is not None and not METRICS[score].caveat:
            distance = abs(value - known["mean"]) / known["tolerance"]
            if distance > 1:
                outside[score] = round(distance, 2)
    assert len(outside) <= 2 and all(distance < 1.5 for distance in outside.values()), outside


def test_every_score_that_can_not_tell_here_has_a_caveat(report):
    blind = [score for score in METRICS if report.verdicts["the original"].get(score) == BLIND]
    for score in blind:
        assert METRICS[score].caveat or not METRICS[score].detects, score


def test_the_masked_model_passes_for_free_what_is_said_to(report):
    """As good as the retrained models, without a weight changed."""
    for score, line in METRICS.items():
        known, value = report.floors.get(score), report.models["masked"][score]
        if line.masked_passes and not line.caveat and known is not None and value is not None:
            better = {"higher": value - known["mean"], "lower": known["mean"] - value}.get(line.direction, -1.0)
            assert better >= -0.02 or abs(value - known["mean"]) <= known["tolerance"], score
    for score in ("relearn", "relearn_steps"):
        assert report.verdicts["masked"][score] == NOT_FORGOTTEN, score
