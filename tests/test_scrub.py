"""SCRUB: its two losses on hand-made samples, and when each of them is at work."""

import math

import pytest
import torch
import torch.nn.functional as F
from retained import even, retained_run, rows, stand_in
from transformers import TrainerCallback

from zspag_hf.methods.scrub import FORGET, RETAIN, SCRUB, Idle

TEACHER = [[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]


def loss(block, epoch):
    """Of two samples, with the student's logits."""
    stand, method = stand_in(epoch=epoch), SCRUB()
    method.idle = Idle()
    pixels, labels = rows([0, 2])
    inputs = {
        "pixels": pixels,
        "targets": torch.cat([labels, torch.tensor(TEACHER)], 1),
        "weights": even(2),
        "blocks": torch.full((2,), block),
    }
    found = method.compute_loss(stand, stand.classifier.model, inputs)
    return float(found.detach()), stand.classifier.predict(pixels).tolist(), method.idle.working


def divergence(logits):
    """Mean KL(teacher || student) at temperature 4, times 4^2, in plain arithmetic."""
    total = 0.0
    for row, teacher in zip(logits, TEACHER, strict=True):
        parts = [math.exp(z / 4) for z in row]
        total += 16 * sum(t * math.log(t * sum(parts) / part) for t, part in zip(teacher, parts, strict=True))
    return total / 2


def test_forget_images_raise_the_divergence_in_the_first_two_epochs():
    for epoch in (None, 0.5, 1.9):
        found, logits, working = loss(FORGET, epoch)
        assert found == pytest.approx(-divergence(logits), rel=1e-5) and working


def test_retained_images_lower_it_beside_cross_entropy_in_every_epoch():
    for epoch in (0.5, 2.5):
        found, logits, working = loss(RETAIN, epoch)
        entropy = -sum(torch.tensor(logits).log_softmax(1)[i, k] for i, k in ((0, 0), (1, 2))) / 2
        assert found == pytest.approx(0.99 * float(entropy) + 0.001 * divergence(logits), rel=1e-5) and working


def test_forget_images_do_nothing_from_the_third_epoch_on():
    found, _, working = loss(FORGET, 2.0)
    assert found == 0 and not working


class Watch(TrainerCallback):
    """The weights and the momentum after each step."""

    def __init__(self, job):
        self.job, self.seen = job, []

    def on_step_end(self, args, state, control, **_):
        weight = self.job.model.classifier.weight
        self.seen.append((weight.detach().clone(), self.job.optimizer.state[weight]["momentum_buffer"].clone()))


def test_a_run_alternates_and_ends_with_retained_images_alone(tmp_path, monkeypatch):
    job, _ = retained_run(tmp_path, "scrub", per_device_train_batch_size=6, learning_rate=0.01)
    logits, blocks, watch = job.run.classifier.predict(job.run.forget.pixels), [], Watch(job)
    compute = SCRUB.compute_loss

    def watched(method, run, model, inputs):
        blocks.append(inputs["blocks"].unique().tolist())
        return compute(method, run, model, inputs)

    monkeypatch.setattr(SCRUB, "compute_loss", watched)
    job.add_callback(watch)
    job.train()
    assert blocks == ([[FORGET]] * 2 + [[RETAIN]] * 4) * 3
    torch.testing.assert_close(job.run.plan.targets[:12, 5:], (logits / 4).softmax(1))
    moved = [not torch.equal(a[0], b[0]) for a, b in zip(watch.seen[:-1], watch.seen[1:], strict=True)]
    assert moved == [True] * 11 + [False] * 2 + [True] * 4, "two steps of the third epoch are idle"
    assert torch.equal(watch.seen[11][1], watch.seen[13][1]), "momentum waits too"


def test_a_step_of_both_kinds_of_batches_works(tmp_path):
    """Where gradients are accumulated, an idle batch may share its step with one at work."""
    options = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 3, "learning_rate": 0.01}
    job, _ = retained_run(tmp_path, "scrub", **options)
    watch = Watch(job)
    job.add_callback(watch)
    job.train()
    assert len(watch.seen) == 6 and not torch.equal(watch.seen[3][0], watch.seen[4][0])


@pytest.mark.slow
def test_the_forgotten_class_is_believed_less_and_the_others_stay(tmp_path):
    job, _ = retained_run(tmp_path, "scrub", learning_rate=0.01, num_train_epochs=10)
    entropy = lambda data: float(F.cross_entropy(job.run.classifier.predict(data.pixels), data.labels))  # noqa: E731
    before = entropy(job.run.forget), entropy(job.run.retained)
    job.train()
    assert entropy(job.run.forget) > before[0] and entropy(job.run.retained) < before[1]
