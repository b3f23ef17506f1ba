"""l1-sparse: the penalty's schedule, its gradient, and the epochs that it is read at."""

import pytest
import torch
from retained import cross_entropy_gradient, even, gradient, retained_run, rows, stand_in

from zspag_hf.methods import l1_sparse
from zspag_hf.methods.l1_sparse import WEIGHT, L1Sparse, penalty_weight


def test_the_penalty_falls_evenly_from_the_first_epoch_and_never_rises():
    assert [penalty_weight(t, 4) / WEIGHT for t in range(4)] == [1, 0.75, 0.5, 0.25]
    assert WEIGHT == 5e-4


@pytest.mark.parametrize(("epoch", "share"), [(None, 1), (0.5, 1), (2.0, 0.5), (3.75, 0.25)])
def test_the_gradient_is_cross_entropys_and_the_signs_of_the_weights(monkeypatch, epoch, share):
    monkeypatch.setattr(l1_sparse, "WEIGHT", 0.3)
    stand = stand_in(epoch=epoch)
    model = stand.classifier.model
    pixels, targets = rows([0, 1, 2])
    loss = L1Sparse().compute_loss(stand, model, {"pixels": pixels, "targets": targets, "weights": even(3)})
    weight = model.layers[1].weight.detach()
    expected = cross_entropy_gradient(stand.classifier, pixels, targets) + 0.3 * share * weight.sign()
    torch.testing.assert_close(gradient(loss, stand.classifier), expected, rtol=1e-5, atol=1e-6)


def test_what_a_constraint_freezes_is_not_penalised():
    stand = stand_in()
    model = stand.classifier.model
    pixels, targets = rows([0, 1, 2])
    inputs = {"pixels": pixels, "targets": targets, "weights": even(3)}
    whole = L1Sparse().compute_loss(stand, model, inputs)
    model.layers[1].bias.requires_grad_(False)
    part = L1Sparse().compute_loss(stand, model, inputs)
    assert (whole - part).item() == pytest.approx(WEIGHT * model.layers[1].bias.abs().sum().item(), rel=1e-3)


def test_a_run_reads_the_schedule_once_a_step_by_whole_epochs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(l1_sparse, "penalty_weight", lambda *at: asked.append(at) or penalty_weight(*at))
    job, _ = retained_run(tmp_path, "l1_sparse", num_train_epochs=3, per_device_train_batch_size=10)
    job.train()
    assert asked == [(epoch, 3) for epoch in range(3) for _ in range(3)]


@pytest.mark.slow
def test_a_strong_penalty_shrinks_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(l1_sparse, "WEIGHT", 0.1)
    job, start = retained_run(tmp_path, "l1_sparse", num_train_epochs=30)
    job.train()
    norms = [sum(p.abs().sum().item() for p in model.parameters()) for model in (start, job.model)]
    assert norms[1] < 0.9 * norms[0]
