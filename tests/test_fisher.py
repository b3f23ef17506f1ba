"""Fisher forgetting: the diagonal in closed form, each image's gradient its own, and the scale of the noise."""

import math

import pytest
import torch
from cases import MODELS, linear_classifier
from tiny import images, tiny_model, trainer
from torch import nn
from transformers.pytorch_utils import Conv1D

from zspag_hf.methods.fisher import fisher_diagonal, samples_at_once, variances
from zspag_hf.pipeline.layers import as_layer

FISHER = {"method": "fisher"}
RETAIN = images([0, 1, 3, 4] * 5, seed=3)


def by_loops(classifier, pixels):
    """One image and one class after the other, by plain backward passes."""
    named = dict(classifier.model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for x in pixels:
        log_p = classifier(torch.stack([x, x])).log_softmax(1)[0]
        for one in log_p:
            found = torch.autograd.grad(one, list(named.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    total[name] += one.exp().detach() * gradient.square() / len(pixels)
    return total


class TestDiagonal:
    @pytest.mark.parametrize("batch_size", [1, 3, 16])
    def test_of_softmax_regression_in_closed_form(self, batch_size):
        """sum_y p_y ((e_y - p) x^T)^2 = p (1 - p) x^2, entry by entry; x = 1 for the bias."""
        classifier = linear_classifier(num_labels=4, size=3)
        pixels = torch.rand(10, 1, 3, 3, dtype=torch.float64)
        with torch.no_grad():
            p = classifier(pixels).softmax(1)
        spread = p * (1 - p)
        found = fisher_diagonal(classifier, pixels, batch_size)
        expected = spread.T @ pixels.flatten(1).square() / 10
        torch.testing.assert_close(found["layers.1.weight"], expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found["layers.1.bias"], spread.mean(0), rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("case", [c for c in MODELS if c.name in ("vit", "swin", "resnet")], ids=lambda c: c.name)
    def test_of_a_network_it_is_what_loops_give(self, case):
        classifier, pixels = case.classifier(), case.pixels(3)
        found, expected = fisher_diagonal(classifier, pixels), by_loops(classifier, pixels)
        assert found.keys() == expected.keys()
        most = max(float(value.max()) for value in expected.values())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-14 * most)

    def test_as_many_images_at_once_as_fit(self):
        classifier = linear_classifier(num_labels=4, size=3)  # 40 parameters: 320 bytes an image
        assert samples_at_once(classifier, 1.0) > 1
        assert samples_at_once(classifier, 1000e-9) == 3 and samples_at_once(classifier, 1e-12) == 1


class TestVariances:
    ALPHA = 1e-6

    def of(self, fisher, modules):
        layers = {name: as_layer(name, module) for name, module in modules.items()}
        return variances(fisher, layers, "head", [1], self.ALPHA)

    def test_of_a_weight_it_is_averaged_over_its_inputs_and_bounded(self):
        """1/F is 4, 2 and, bounded, 1000: the mean over the row is 1006 / 3."""
        fisher = {"deep.weight": torch.tensor([[0.25, 0.5, 0.0], [1.0, 1.0, 1.0]])}
        found = self.of(fisher, {"deep": nn.Linear(3, 2), "head": nn.Linear(3, 4)})["deep.weight"]
        expected = self.ALPHA * torch.tensor([[1006 / 3] * 3, [1.0] * 3])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)

    def test_of_a_convolution_positions_stay_apart(self):
        fisher = torch.rand(4, 3, 2, 2) + 0.5
        found = self.of({"c.weight": fisher}, {"c": nn.Conv2d(3, 4, 2), "head": nn.Linear(3, 4)})["c.weight"]
        expected = self.ALPHA * (1 / fisher).mean(1, keepdim=True).expand(4, 3, 2, 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)

    def test_a_weight_that_is_stored_the_other_way_round_is_averaged_over_its_inputs_too(self):
        fisher = torch.rand(3, 2) + 0.5  # [in, out]
        found = self.of({"c.weight": fisher}, {"c": Conv1D(2, 3), "head": nn.Linear(3, 4)})["c.weight"]
        torch.testing.assert_close(found, self.ALPHA * (1 / fisher).mean(0).expand(3, 2), rtol=1e-5, atol=0)

    def test_vectors_have_ten_times_as_much(self):
        fisher = {"norm.weight": torch.tensor([0.5, 0.0]), "deep.bias": torch.tensor([0.1])}
        found = self.of(fisher, {"head": nn.Linear(3, 4)})
        torch.testing.assert_close(
            found["norm.weight"], 10 * self.ALPHA * torch.tensor([2.0, 1000.0]), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(found["deep.bias"], 10 * self.ALPHA * torch.tensor([10.0]), rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        "head", [nn.Linear(2, 3), nn.Conv2d(2, 3, 1), Conv1D(3, 2)], ids=lambda m: type(m).__name__
    )
    def test_the_head_has_a_bound_of_its_own_and_fixed_rows_for_forgotten_classes(self, head):
        fisher = {"head.weight": torch.zeros_like(head.weight), "head.bias": torch.tensor([0.5, 0.5, 0.0])}
        found = variances(fisher, {"head": as_layer("head", head)}, "head", [1], 1e-8)
        rows = as_layer("head", head).matrix(found["head.weight"])[0]
        torch.testing.assert_close(rows[:, 0], torch.tensor([1e-5, 1e-3, 1e-5]), rtol=1e-6, atol=0)
        assert torch.equal(rows[:, 0], rows[:, 1])
        torch.testing.assert_close(found["head.bias"], torch.tensor([2e-7, 1e-3, 1e-5]), rtol=1e-6, atol=0)

    def test_a_layer_with_as_many_outputs_as_classes_is_no_head_for_that(self):
        fisher = {"deep.weight": torch.zeros(4, 3)}
        found = self.of(fisher, {"deep": nn.Linear(3, 4), "head": nn.Linear(3, 4)})["deep.weight"]
        torch.testing.assert_close(found, torch.full((4, 3), self.ALPHA * 1000), rtol=1e-6, atol=0)


class TestRun:
    def test_every_parameter_gets_noise_of_its_variance(self, tmp_path):
        job = trainer(tmp_path, **FISHER, retain=RETAIN)
        before = {name: parameter.detach().clone() for name, parameter in job.model.named_parameters()}
        job.train()
        fisher, head = fisher_diagonal_of_original(job, before), job.run.head
        spread = variances(fisher, job.run.layers, head, [2], 1e-7)
        before[f"{head}.weight"][2] = before[f"{head}.bias"][2] = 0
        draws = torch.cat(
            [((p.detach() - before[n]) / spread[n].sqrt()).flatten() for n, p in job.model.named_parameters()]
        )
        assert abs(float(draws.std()) - 1) < 5 / math.sqrt(2 * len(draws))
        assert abs(float(draws.mean())) < 5 / math.sqrt(len(draws)) and draws.abs().max() < 6

    def test_the_forgotten_class_is_no_answer_any_more(self, tmp_path):
        model = tiny_model()
        model.classifier.bias.data[2] = 30.0  # its answer to everything
        job = trainer(tmp_path, **FISHER, model=model, retain=RETAIN)
        assert (job.run.classifier.predict(job.run.forget.pixels).argmax(1) == 2).all()
        job.train()
        row = job.model.classifier.weight[2].norm()
        assert row < 0.1 * job.model.classifier.weight.norm(dim=1).median() and job.model.classifier.bias[2].abs() < 0.2
        assert job.state.global_step == 0

    def test_another_seed_is_other_noise(self, tmp_path):
        weights = []
        for seed in (0, 1):
            job = trainer(tmp_path / str(seed), **FISHER, retain=RETAIN, seed=seed)
            job.train()
            weights.append(job.model.classifier.weight.detach().clone())
        assert not torch.equal(*weights)


def fisher_diagonal_of_original(job, before):
    after = {name: parameter.detach().clone() for name, parameter in job.model.named_parameters()}
    with torch.no_grad():
        for name, parameter in job.model.named_parameters():
            parameter.copy_(before[name])
        found = fisher_diagonal(job.run.classifier, job.run.retained.pixels)
        for name, parameter in job.model.named_parameters():
            parameter.copy_(after[name])
    return found
