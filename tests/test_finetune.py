"""Fine-tuning: on retained images alone."""

import torch
import torch.nn.functional as F
from retained import one_step, retained_run


def test_it_sees_retained_images_and_nothing_of_what_is_forgotten(tmp_path):
    job, _ = retained_run(tmp_path, "finetune", max_steps=1)
    job.train()
    assert torch.equal(job.run.plan.pixels, job.run.retained.pixels)
    assert torch.equal(job.run.plan.targets.argmax(1), job.run.retained.labels)
    assert (job.run.plan.targets[:, 2] == 0).all()


def test_a_step_is_one_of_cross_entropy_on_every_parameter(tmp_path):
    options = {"max_steps": 1, "per_device_train_batch_size": 24, "learning_rate": 0.1, "weight_decay": 0.0}
    job, start = retained_run(tmp_path, "finetune", **options)
    job.train()
    one_step(job, start, lambda model: F.cross_entropy(model(job.run.retained.pixels), job.run.retained.labels), 0.1)
    assert not torch.equal(job.model.classifier.bias, start.classifier.bias), "biases move too"


def test_the_published_settings_reach_the_optimizer(tmp_path):
    job, _ = retained_run(tmp_path, "finetune", max_steps=1)
    job.train()
    groups = job.optimizer.param_groups
    assert {(group["momentum"], group["lr"]) for group in groups} == {(0.9, 0.01)}
    assert max(group["weight_decay"] for group in groups) == 5e-4 and job.args.num_train_epochs == 10
