import copy

import torch
import torch.nn.functional as F
from tiny import images, tiny_model, tiny_processor, trainer

from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.pseudo_labels import pseudo_labels


def test_targets_are_the_original_s_outputs_without_any_forgotten_class(tmp_path):
    job = trainer(tmp_path, method="delete", forget=images([1, 2] * 6), forget_classes=["cat", "bee"], max_steps=1)
    logits = job.run.classifier.predict(job.run.forget.pixels)
    job.train()
    masked = logits.clone()
    masked[:, [1, 2]] = -1e10  # the published constant
    torch.testing.assert_close(job.run.plan.targets, masked.softmax(1))
    assert job.run.plan.targets[:, [1, 2]].eq(0).all() and job.report.zero_shot and job.report.proxies is None


def test_a_step_is_sgd_on_the_kl_over_every_parameter_in_train_mode(tmp_path):
    usual = {"max_steps": 1, "learning_rate": 0.1, "per_device_train_batch_size": 64}
    job = trainer(tmp_path, method="delete", model=tiny_model("resnet"), **usual)
    model, forget = copy.deepcopy(job.run.model).train(), job.run.forget.pixels  # a pass moves batch norm's statistics
    targets = pseudo_labels(job.run.classifier.predict(forget), [2], None).targets
    kl = F.kl_div(PixelClassifier(model, tiny_processor())(forget / 255).log_softmax(1), targets, reduction="batchmean")
    gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(kl, model.parameters()), strict=True))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    job.train()
    assert job.run.plan.train_mode and job.run.plan.trainable is None
    for name, value in job.run.model.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] - 0.1 * gradients[name], rtol=1e-3, atol=1e-6)
