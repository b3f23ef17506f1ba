"""SalUn: its mask where the gradient is known, weights off the mask that never move, and labels that are no image's
own."""

import pytest
import torch
from cases import linear_classifier
from tiny import images, tiny_model, trainer

from zspag_hf.methods.salun import FORGET, RETAIN, SaliencyMask, saliency, salient

DECAYED = {"optim_args": "momentum=0.9", "weight_decay": 0.01, "learning_rate": 0.05}
SALUN = {"method": "salun", "max_steps": 9, "per_device_train_batch_size": 8, **DECAYED}


def held(job) -> dict:
    return {name: parameter.detach().clone() for name, parameter in job.model.named_parameters()}


class TestSaliency:
    def test_of_softmax_regression_it_is_the_known_gradient(self):
        """The gradient of the mean cross-entropy is (1/N) sum (p - e_y) x^T, and (1/N) sum (p - e_y) for the bias."""
        classifier = linear_classifier(num_labels=4, size=3)
        pixels, labels = torch.rand(150, 1, 3, 3, dtype=torch.float64), torch.randint(4, (150,))  # several batches
        found = saliency(classifier, pixels, labels)
        error = classifier.predict(pixels).double().softmax(1) - torch.eye(4, dtype=torch.float64)[labels]
        expected = {"layers.1.weight": (error.T @ pixels.flatten(1) / 150).abs(), "layers.1.bias": error.mean(0).abs()}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)  # predict rounds to float32

    def test_it_is_of_every_parameter_also_of_those_that_are_frozen(self, tmp_path):
        job = trainer(tmp_path, **SALUN)
        job.model.requires_grad_(False)
        found = saliency(job.run.classifier, job.run.forget.pixels, job.run.forget.labels)
        shapes = {name: parameter.shape for name, parameter in job.model.named_parameters()}
        assert {name: value.shape for name, value in found.items()} == shapes
        norms = [name for name in found if "layernorm" in name and name.endswith("weight")]
        assert norms and all(found[name].any() for name in norms)
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in job.model.parameters())


class TestSalient:
    def test_the_largest_entries_of_all_tensors_together(self):
        mask = salient({"a": torch.tensor([[0.1, 9.0], [3.0, 0.2]]), "b": torch.tensor([8.0, 0.3])}, 0.5)
        assert mask["a"].tolist() == [[False, True], [True, False]] and mask["b"].tolist() == [True, False]

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
    def test_exactly_the_share_however_many_are_equal(self, share):
        mask = salient({"dead": torch.zeros(7, 9), "alive": torch.arange(10.0)}, share)
        assert sum(int(part.sum()) for part in mask.values()) == int(share * 73)
        assert mask["alive"][-7:].all()


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.AdamW])
def test_entries_off_the_mask_stay_bit_by_bit_and_gather_no_momentum(optim):
    torch.manual_seed(1)
    free, kept = (torch.nn.Parameter(torch.randn(5, 4)) for _ in range(2))
    with torch.no_grad():
        kept.copy_(free)
    mask = torch.rand(5, 4) < 0.5
    start, options = free.detach().clone(), {"lr": 0.1, "weight_decay": 0.1}
    options |= {"momentum": 0.9} if optim is torch.optim.SGD else {}
    optimizers = [optim([parameter], **options) for parameter in (free, kept)]
    keeper = SaliencyMask({"w": kept}, {"w": mask})
    optimizers[1].register_step_pre_hook(keeper.before_step)
    optimizers[1].register_step_post_hook(keeper.after_step)
    for _ in range(5):
        gradient = torch.randn(5, 4)
        for parameter, optimizer in zip((free, kept), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(kept[~mask], start[~mask]) and not torch.equal(free[~mask], start[~mask])
    assert torch.equal(kept[mask], free[mask]), "what is on the mask steps as without it"
    states = [value for value in optimizers[1].state[kept].values() if value.shape == mask.shape]
    assert states and all((value[~mask] == 0).all() and value[mask].any() for value in states)


class TestRun:
    def test_half_of_all_entries_move_in_any_parameter(self, tmp_path):
        job = trainer(tmp_path, **SALUN)
        before = held(job)
        job.train()
        masks = {name: mask for name, (_, mask) in zip(before, job.run.plan.keepers[0].parts, strict=True)}
        after = held(job)
        assert sum(int(mask.sum()) for mask in masks.values()) == sum(p.numel() for p in before.values()) // 2
        for name, mask in masks.items():
            assert torch.equal(after[name][~mask], before[name][~mask]), name
        moved = {name for name in before if not torch.equal(after[name], before[name])}
        assert any("layernorm" in name for name in moved) and any("attention" in name for name in moved)

    def test_without_retained_data_labels_are_of_classes_that_stay_and_new_in_each_epoch(self, tmp_path):
        job = trainer(tmp_path, **SALUN, forget=images([2] * 64))
        job.train()
        epochs = [job.run.plan.retarget(epoch).argmax(1) for epoch in range(3)]
        assert len(job.run.plan.pixels) == 64 and set(torch.cat(epochs).tolist()) == {0, 1, 3, 4}
        assert not torch.equal(epochs[0], epochs[1]) and torch.equal(epochs[1], job.run.plan.retarget(1).argmax(1))

    def test_an_image_whose_class_stays_is_never_given_its_own(self, tmp_path):
        job = trainer(tmp_path, **SALUN, forget=images([0, 1, 2, 3, 4] * 8), forget_classes=None)
        job.train()
        for epoch in range(5):
            assert (job.run.plan.retarget(epoch).argmax(1) != job.run.forget.labels).all()
        assert set(job.run.plan.retarget(0).argmax(1).tolist()) == set(range(5))

    def test_classes_that_earlier_requests_forgot_are_given_to_none(self, tmp_path):
        model = tiny_model()
        model.config.unlearning = [{"classes": [{"id": 4, "label": "elk"}], "date": "2026-01-01"}]
        job = trainer(tmp_path, model=model, **SALUN, forget=images([2] * 64))
        job.train()
        assert set(job.run.plan.retarget(0).argmax(1).tolist()) == {0, 1, 3}

    def test_retained_batches_follow_the_forget_batches_with_their_own_labels(self, tmp_path):
        job = trainer(tmp_path, **SALUN, retain=images([0, 1, 3, 4] * 5, seed=4), with_retain=True)
        seen = []

        def compute_loss(run, model, inputs):
            seen.append((inputs["blocks"].unique().tolist(), inputs["targets"].argmax(1)))
            return type(job.method).compute_loss(job.method, run, model, inputs)

        job.method.compute_loss = compute_loss
        job.train()
        assert [blocks for blocks, _ in seen[:5]] == [[FORGET], [FORGET], [RETAIN], [RETAIN], [RETAIN]]
        assert torch.equal(job.run.plan.retarget(3)[12:].argmax(1), job.run.retained.labels)
        assert torch.cat([labels for _, labels in seen[2:5]]).bincount(minlength=5).tolist() == [5, 5, 0, 5, 5]
