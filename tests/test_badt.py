"""Bad teacher: whose outputs are learned where, and that they are learned as by KL."""

import copy

import torch
import torch.nn.functional as F
from retained import even, gradient, retained_run, rows, stand_in
from tiny import tiny_model, trainer

from zspag_hf.methods.badt import BadTeacher, bad_teacher


def test_the_untrained_network_teaches_forget_images_and_the_original_a_share_of_retained_ones(tmp_path):
    job, original = retained_run(tmp_path, "badt", per_class=10, max_steps=1)
    retained = job.run.retained.pixels
    job.train()
    plan, start = job.run.plan, copy.deepcopy(job.run.classifier)
    start.model = original
    assert len(plan.pixels) == 12 + 12, "30 % of 40 retained images"
    torch.testing.assert_close(plan.targets[:12], bad_teacher(job.run).predict(job.run.forget.pixels).softmax(1))
    kept = start.predict(plan.pixels[12:]).softmax(1)
    kept[:, job.run.forget_ids] = 0  # what is to go is not kept on any image
    torch.testing.assert_close(plan.targets[12:], kept / kept.sum(1, keepdim=True))
    found = (plan.pixels[12:, None] == retained[None]).flatten(2).all(2)
    assert found.any(1).all() and not found[:, :12].all(0).any(), "of the retained set, drawn from all of it"


def test_the_zero_shot_form_learns_from_the_untrained_network_alone(tmp_path):
    job = trainer(tmp_path, method="badt", max_steps=1)
    job.train()
    assert torch.equal(job.run.plan.pixels, job.run.forget.pixels)
    torch.testing.assert_close(job.run.plan.targets, bad_teacher(job.run).predict(job.run.forget.pixels).softmax(1))


def test_the_untrained_network_is_drawn_from_the_seed_and_leaves_other_draws_alone(tmp_path):
    job, state = trainer(tmp_path, method="badt"), torch.get_rng_state()
    first, again = (bad_teacher(job.run).model.state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = bad_teacher(trainer(tmp_path / "b", method="badt", seed=1).run).model
    mine = "classifier.weight"
    assert not torch.equal(other.state_dict()[mine], first[mine])
    assert not torch.equal(tiny_model().state_dict()[mine], first[mine]) and not other.training


def test_the_loss_has_the_gradient_of_kl():
    stand = stand_in()
    pixels, _ = rows([0, 1, 2])
    teacher = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]])
    inputs = {"pixels": pixels, "targets": teacher, "weights": even(3)}
    found = gradient(BadTeacher().compute_loss(stand, stand.classifier.model, inputs), stand.classifier)
    divergence = F.kl_div(stand.classifier(pixels).log_softmax(1), teacher.double(), reduction="batchmean")
    torch.testing.assert_close(found, gradient(divergence, stand.classifier), rtol=1e-5, atol=1e-6)


def test_one_epoch_of_adam_is_the_published_setting(tmp_path):
    job = trainer(tmp_path, method="badt")
    job.train()
    assert isinstance(job.optimizer.optimizer, torch.optim.AdamW) and job.state.epoch == 1
    assert {(group["lr"], group["weight_decay"]) for group in job.optimizer.param_groups} == {(1e-4, 0.0)}
