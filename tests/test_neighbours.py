"""Neighbours of forget images, the rows that they make in the table, and what every model gets there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from cases import linear_classifier
from tiny import NAMES, images, tiny_model, tiny_processor

from zspag_hf.data.images import labelled_dataset
from zspag_hf.evaluation import Comparison, PixelDataset
from zspag_hf.evaluation.comparison import NEIGHBOUR_IMAGES
from zspag_hf.evaluation.scores import table_scores
from zspag_hf.metrics.rows import NEIGHBOURS
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.neighbours import EPS, STEP, STEPS, neighbours
from zspag_hf.report.report import UnlearningReport


def uint8(count, size=2, channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(40, 215, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def test_neighbours_are_three_signed_steps_up_the_loss_of_a_linear_model_from_the_image_itself():
    classifier = linear_classifier(num_labels=3, size=2, gain=2.0).float()
    pixels, labels = uint8(70), torch.arange(70) % 3
    x = clean = pixels.float() / 255
    for _ in range(STEPS):
        x = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(classifier(x), labels, reduction="sum"), x)
        x = (x.detach() + STEP * grad.sign() - clean).clamp(-EPS, EPS) + clean
    moved, _ = neighbours(classifier, pixels, labels)
    torch.testing.assert_close(moved, x)
    assert moved.dtype == torch.float32
    assert (moved - clean).abs().max() == pytest.approx(0.03, abs=1e-6)


def test_images_whose_answer_is_wrong_or_already_turned_go_all_steps_too():
    classifier = linear_classifier(num_labels=3, size=2, gain=50.0).float()
    pixels = uint8(30)
    wrong = (classifier.predict(pixels).argmax(1) + 1) % 3
    moved = neighbours(classifier, pixels, wrong)[0] - pixels.float() / 255
    assert (moved.abs().flatten(1).amax(1) > 0.99 * EPS).all()


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was_found(training):
    model = tiny_model("resnet").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    neighbours(PixelClassifier(model, tiny_processor()), uint8(3, 8, 3), torch.zeros(3, dtype=torch.long))
    assert model.training is training and all(torch.equal(model.state_dict()[name], v) for name, v in before.items())


def comparison(forget_ids, test_labels=(0, 1, 2, 3, 4) * 12, forget=60, views=None):
    """A tiny model against another, without a retrained one."""
    processor, other = tiny_processor(), tiny_model()
    with torch.no_grad():
        other.classifier.bias[0] += 1.0
    models = (PixelClassifier(model.eval(), processor) for model in (tiny_model(), other))
    label = forget_ids[0] if forget_ids else 2
    forget = PixelDataset(uint8(forget, 8, 3), torch.full((forget,), label))
    test = labelled_dataset(images(list(test_labels), seed=2), processor, NAMES)
    return Comparison(*models, list(forget_ids), NAMES, forget, test, Accelerator(), views=views)


def test_the_masked_model_has_not_changed_and_knows_as_much_as_the_original():
    table = comparison([2]).gather()
    original, masked, other = (table_scores(table, name, []) for name in ("original", "masked", "unlearned"))
    assert masked["over_unlearning"] == pytest.approx(0, abs=1e-9)
    assert min(original["over_unlearning"], other["over_unlearning"]) > 1e-3
    for score in ("recovery_1", "recovery_5", "recovery_50", "dispersion", "probe_auc"):
        assert masked[score] == original[score] is not None, score


def test_of_images_at_random_nothing_is_masked_so_the_original_itself_has_not_changed():
    table = comparison([]).gather()
    original, other = (table_scores(table, name, []) for name in ("original", "unlearned"))
    assert original["over_unlearning"] == pytest.approx(0, abs=1e-9) and other["over_unlearning"] > 1e-3
    assert original["dispersion"] is not None, "classes that stay scatter too"


def test_neighbours_are_few_the_same_for_every_model_and_not_counted_among_the_images(monkeypatch):
    made = comparison([2], forget=NEIGHBOUR_IMAGES + 30)
    monkeypatch.setattr(made, "relearn", lambda rows: {})
    report = UnlearningReport("given", "m", [{"id": 2, "label": "cat"}], 1, 0)
    table = made.run(report)
    assert len(table.rows(NEIGHBOURS)) == NEIGHBOUR_IMAGES
    assert report.images == {"forget": NEIGHBOUR_IMAGES + 30, "test_forgotten": 12, "test_retained": 48}
    assert all(len(logits) == len(table.splits) for logits in table.logits.values())


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"forget": 4}, {"recovery_5": "needs 5 forget", "recovery_50": "needs 50 forget"}),
        ({"forget": 49}, {"recovery_50": "needs 50 forget"}),
        (
            {"test_labels": (0, 1, 3, 4) * 10},
            dict.fromkeys(
                ("recovery_1", "recovery_5", "recovery_50"), "needs test images of the forgotten classes, or"
            ),
        ),
        (
            {"test_labels": (0, 1, 3, 4) * 10, "forget": 1, "views": PixelDataset(uint8(9, 8, 3), torch.full((9,), 2))},
            {
                "recovery_5": "needs 5 forget",
                "recovery_50": "needs 50 forget",
                "dispersion": "not defined on so few images",
            },
        ),
    ],
)
def test_what_cannot_be_recovered_has_the_reason(options, missing, monkeypatch):
    made = comparison([2], **options)
    monkeypatch.setattr(made, "relearn", lambda rows: {})
    report = UnlearningReport("given", "m", [{"id": 2, "label": "cat"}], 1, 0)
    made.run(report)
    scores = ("recovery_1", "recovery_5", "recovery_50", "dispersion", "over_unlearning")
    reasons = {score: report.reasons[score] for score in scores if score in report.reasons}
    assert list(reasons) == [score for score in scores if score in missing]
    assert all(reason.startswith(missing[score]) for score, reason in reasons.items())
    known = [report.models["unlearned"][score] for score in scores if score not in missing]
    assert all(value is not None and np.isfinite(value) for value in known)
