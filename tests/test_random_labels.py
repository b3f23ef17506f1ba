"""Random labels: who may be drawn, and what stands beside them."""

import pytest
import torch
from retained import retained_run
from tiny import images, tiny_model, trainer

from zspag_hf.methods.random_labels import random_labels


@pytest.mark.parametrize("keep", [[0, 1, 3, 4], [1, 4]])
def test_labels_are_drawn_evenly_from_those_that_stay_and_never_the_own_one(keep):
    labels = torch.arange(5).repeat_interleave(4000)
    drawn = random_labels(labels, torch.tensor(keep), seed=0)
    for own in range(5):
        counts = torch.bincount(drawn[labels == own], minlength=5)
        others = [k for k in keep if k != own]
        assert counts.sum() == counts[others].sum() == 4000
        assert (counts[others] - 4000 / len(others)).abs().max() < 5 * (4000 / len(others)) ** 0.5


def test_they_are_drawn_once_from_the_seed():
    labels, keep = torch.arange(5).repeat(20), torch.arange(5)
    assert torch.equal(random_labels(labels, keep, 3), random_labels(labels, keep, 3))
    assert not torch.equal(random_labels(labels, keep, 3), random_labels(labels, keep, 4))


def test_retained_images_keep_their_labels_and_are_shuffled_in(tmp_path):
    job, _ = retained_run(tmp_path, "random_labels", max_steps=1)
    job.train()
    plan, retained = job.run.plan, job.run.retained
    targets = plan.targets.argmax(1)
    assert torch.equal(targets[12:], retained.labels) and torch.equal(plan.pixels[12:], retained.pixels)
    assert not (targets == 2).any() and plan.blocks is None
    alone = trainer(tmp_path / "alone", method="random_labels", max_steps=1)
    alone.train()
    assert torch.equal(alone.run.plan.targets.argmax(1), targets[:12]) and len(alone.run.plan.pixels) == 12


def test_images_whose_classes_stay_get_another_label_that_no_request_forgot(tmp_path):
    model = tiny_model()
    model.config.unlearning = [{"classes": [{"id": 1, "label": "bee"}], "date": "2026-01-01"}]
    forget = images([0, 2, 3, 4] * 10)
    job = trainer(tmp_path, model=model, method="random_labels", forget=forget, forget_classes=None, max_steps=1)
    job.train()
    targets = job.run.plan.targets.argmax(1)
    assert not (targets == job.run.forget.labels).any() and set(targets.tolist()) == {0, 2, 3, 4}
