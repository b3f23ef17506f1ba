"""Fine-tuning: on retained images alone."""

import torch
import torch.nn.functional as F
from retained import one_step, retained_run


def test_it_sees_retained_images_and_nothing_of_what_is_forgotten(tmp_path):
    run, _ = retained_run(tmp_path, "finetune", max_steps=1)
    run.train()
    assert torch.equal(run.plan.pixels, run.retain.pixels)
    assert torch.equal(run.plan.targets.argmax(1), run.retain.labels)
    assert (run.plan.targets[:, 2] == 0).all()


def test_a_step_is_one_of_cross_entropy_on_every_parameter(tmp_path):
    options = {"max_steps": 1, "per_device_train_batch_size": 24, "learning_rate": 0.1, "weight_decay": 0.0}
    run, start = retained_run(tmp_path, "finetune", **options)
    run.train()
    one_step(run, start, lambda model: F.cross_entropy(model(run.retain.pixels), run.retain.labels), 0.1)
    assert not torch.equal(run.model.classifier.bias, start.classifier.bias), "biases move too"


def test_the_published_settings_reach_the_optimizer(tmp_path):
    run, _ = retained_run(tmp_path, "finetune", max_steps=1)
    run.train()
    groups = run.optimizer.param_groups
    assert {(group["momentum"], group["lr"]) for group in groups} == {(0.9, 0.01)}
    assert max(group["weight_decay"] for group in groups) == 5e-4 and run.args.num_train_epochs == 10
