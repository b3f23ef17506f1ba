"""TRW: what it trains on, in both forms, and one step by hand."""

import pytest
import torch
from tiny import images, tiny_model, trainer

from zspag_hf import METHODS
from zspag_hf.methods.run import state_tensors
from zspag_hf.pipeline.pseudo_labels import class_similarity, tilted_reweighting

FIXED = {"method": "trw", "per_device_train_batch_size": 4}


def expected_targets(job):
    logits = job.run.classifier.predict(job.run.forget.pixels)
    return tilted_reweighting(logits, job.run.forget_ids, job.model.classifier.weight, job.run.class_ids).targets


def test_it_is_registered_and_reads_no_retained_data_unless_asked():
    method = METHODS["trw"]()
    assert not method.needs_retain and not method.with_retain and method.forgets == ("classes",)
    assert method.constraint == "none" and method.tilt == "similarity"


def test_zero_shot_rows_are_the_forget_images_with_tilted_targets(tmp_path):
    job = trainer(tmp_path, retain=images([0, 1] * 4), max_steps=1, **FIXED)
    expected = expected_targets(job)
    job.train()
    assert job.run.retained is None and torch.equal(job.run.plan.pixels, job.run.forget.pixels)
    torch.testing.assert_close(job.run.plan.targets, expected)
    assert (job.run.plan.targets[:, 2] == 0).all()


def test_with_retained_images_come_with_their_own_labels(tmp_path):
    job = trainer(tmp_path, retain=images([0, 1, 3, 4] * 2, seed=1), with_retain=True, max_steps=1, **FIXED)
    expected = expected_targets(job)
    job.train()
    assert torch.equal(job.run.plan.pixels, torch.cat([job.run.forget.pixels, job.run.retained.pixels]))
    torch.testing.assert_close(job.run.plan.targets[:12], expected)
    assert job.run.plan.targets[12:].argmax(1).tolist() == [0, 1, 3, 4] * 2
    assert (job.run.plan.targets[12:].max(1).values == 1).all() and job.run.plan.blocks is None


def test_one_step_by_hand(tmp_path):
    """W - lr X^T (p - q) / n on the head, whose inputs are seen by a hook; the sum is over both kinds of rows."""
    job = trainer(
        tmp_path,
        retain=images([0, 1, 3, 4], seed=1),
        with_retain=True,
        max_steps=1,
        learning_rate=0.3,
        method="trw",
        per_device_train_batch_size=16,
    )
    head, seen = job.model.classifier, []
    handle = head.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().double()))
    targets = torch.cat([expected_targets(job), torch.eye(5)[[0, 1, 3, 4]]]).double()
    seen.clear()
    job.run.classifier.predict(torch.cat([job.run.forget.pixels, job.run.retained.pixels]))
    handle.remove()
    x, w, b = torch.cat(seen), head.weight.detach().double().clone(), head.bias.detach().double().clone()
    gap = ((x @ w.T + b).softmax(1) - targets) / 16
    job.train()
    torch.testing.assert_close(head.weight.detach().double(), w - 0.3 * gap.T @ x, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.bias.detach().double(), b - 0.3 * gap.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_every_parameter_moves_without_a_constraint_and_layers_alone_with_one(tmp_path):
    moved = {}
    for constraint in ("none", "soft", "hard"):
        threshold = {"energy_threshold": 0.9} if constraint != "none" else {}
        job = trainer(
            tmp_path / constraint, constraint=constraint, learning_rate=0.1, max_steps=3, **FIXED, **threshold
        )
        job.train()
        state = state_tensors(job.model)
        moved[constraint] = {name for name, tensor in state.items() if not torch.equal(tensor, job.original[name])}
        layers = {f"{name}.weight" for name in job.run.layers}
        assert moved[constraint] <= layers or constraint == "none"
    assert moved["none"] > moved["soft"] and "vit.layernorm.bias" in moved["none"] and moved["hard"]


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.slow
def test_forget_images_end_near_their_targets(tmp_path, family):
    model = tiny_model(family)
    probe = trainer(tmp_path / "probe", family, model=model)
    label = int(probe.run.classifier.predict(probe.run.forget.pixels).argmax(1).mode().values)
    job = trainer(
        tmp_path, model=model, forget=images([label] * 12), forget_classes=[str(label)], learning_rate=0.05,
        num_train_epochs=20, **FIXED,
    )  # fmt: skip
    before = job.run.classifier.predict(job.run.forget.pixels).softmax(1)
    job.train()
    after, targets = job.run.classifier.predict(job.run.forget.pixels).softmax(1), job.run.plan.targets
    assert (after - targets).abs().sum(1).mean() < 0.7 * (before - targets).abs().sum(1).mean()
    assert after[:, label].mean() < before[:, label].mean()


@pytest.mark.slow
def test_a_second_request_is_compared_by_its_own_class(tmp_path):
    """The first request's class is no target, and its row, fitted since, no measure of likeness."""
    model = tiny_model()
    trainer(tmp_path / "a", model=model, forget=images([2] * 20), max_steps=10).train()
    job = trainer(tmp_path / "b", model=model, forget=images([1] * 8), forget_classes=["bee"], max_steps=1, **FIXED)
    rows, logits = model.classifier.weight.detach().clone(), job.run.classifier.predict(job.run.forget.pixels)
    job.train()
    assert (job.run.plan.targets[:, [1, 2]] == 0).all()
    scores = logits.double() + 10 * class_similarity(rows, [1, 2], [1])
    torch.testing.assert_close(job.run.plan.targets[:, [0, 3, 4]], scores[:, [0, 3, 4]].softmax(1).float())
