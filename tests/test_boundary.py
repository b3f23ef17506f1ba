"""Boundary unlearning: labels where FGSM's answer is known, and an extra neuron that trains as one of the model's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import linear_classifier
from tiny import images, tiny_model, trainer
from transformers import TrainerCallback

from zspag_hf.methods.boundary_shrink import BOUND, nearest_wrong_labels

BEE = {"forget_classes": ["bee"]}  # the class that the tiny models see


def far_from_the_edges(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(count, 1, 3, 3, generator=generator, dtype=torch.float64)


class TestNearestWrongLabels:
    """On a linear model z = W x + b the gradient of the cross-entropy is W^T (p - y)."""

    def case(self, num_labels, gain, count=64):
        classifier, pixels = linear_classifier(num_labels, gain=gain), far_from_the_edges(count)
        linear = classifier.model.layers[1]
        return classifier, pixels, linear.weight.detach(), linear.bias.detach()

    def adversary(self, pixels, weight, bias, labels):
        """x' and the logits there, without autograd."""
        x = pixels.flatten(1)
        p = (x @ weight.T + bias).softmax(1)
        moved = x + BOUND * ((p - F.one_hot(labels, len(weight))) @ weight).sign()
        return moved @ weight.T + bias

    def test_of_two_classes_an_image_crosses_where_the_bound_reaches_over_the_boundary(self):
        classifier, pixels, weight, bias = self.case(2, gain=2.0)
        logits = pixels.flatten(1) @ weight.T + bias
        labels = logits.argmax(1)
        margin = (logits[:, 0] - logits[:, 1]).abs()
        found, crossed = nearest_wrong_labels(classifier, pixels, labels, [])
        assert torch.equal(crossed, margin < BOUND * (weight[0] - weight[1]).abs().sum())
        assert crossed.any() and not crossed.all()
        assert torch.equal(found, 1 - labels), "the runner-up where it fails"

    def test_the_label_is_the_answer_at_the_adversary(self):
        classifier, pixels, weight, bias = self.case(5, gain=1.0)
        labels = (pixels.flatten(1) @ weight.T + bias).argmax(1)
        answers = self.adversary(pixels, weight, bias, labels).argmax(1)
        found, crossed = nearest_wrong_labels(classifier, pixels, labels, [])
        assert torch.equal(crossed, answers != labels) and crossed.any()
        assert torch.equal(found[crossed], answers[crossed])

    def test_no_forgotten_class_becomes_a_label(self):
        classifier, pixels, weight, bias = self.case(5, gain=1.0)
        labels = (pixels.flatten(1) @ weight.T + bias).argmax(1)
        pixels, labels = pixels[labels == labels[0]], labels[labels == labels[0]]
        logits = self.adversary(pixels, weight, bias, labels)
        answers = logits.argmax(1)
        other = int(answers[answers != labels][0])  # where the attack leads from the first class
        found, crossed = nearest_wrong_labels(classifier, pixels, labels, [int(labels[0]), other])
        logits[:, [int(labels[0]), other]] = -torch.inf
        assert torch.equal(found, logits.argmax(1)) and torch.equal(crossed, found == answers)

    def test_images_whose_classes_stay_never_keep_their_label(self):
        classifier, pixels, _, _ = self.case(3, gain=9.0)
        labels = classifier.predict(pixels).argmax(1)
        found, crossed = nearest_wrong_labels(classifier, pixels, labels, [])
        assert (found != labels).all() and not crossed.all(), "some attacks must fail"

    def test_the_weights_are_left_alone(self):
        classifier, pixels, weight, _ = self.case(3, gain=1.0)
        before = weight.clone()
        nearest_wrong_labels(classifier, pixels, torch.zeros(len(pixels), dtype=torch.long), [0])
        assert torch.equal(classifier.model.layers[1].weight, before)
        assert classifier.model.layers[1].weight.grad is None


def test_shrinking_trains_on_those_labels(tmp_path):
    job = trainer(tmp_path, forget=images([1] * 12, seed=1), method="boundary_shrink", max_steps=3, **BEE)
    run = job.run
    expected, crossed = nearest_wrong_labels(run.classifier, run.forget.pixels, run.forget.labels, run.forget_ids)
    job.train()
    assert torch.equal(job.run.plan.targets.argmax(1), expected) and (expected != 1).all()
    assert job.report.proxies == {"attack_success_rate": float(crossed.float().mean())}


class TestExtraNeuron:
    STEPS = 6
    OPTIONS = {"method": "boundary_expand", "max_steps": STEPS, "per_device_train_batch_size": 12, **BEE}

    @pytest.mark.parametrize("schedule", ["constant", "linear"])
    def test_the_model_ends_as_one_with_an_output_more_that_is_cut_off(self, tmp_path, schedule):
        """Against torch's own SGD over a model whose head really has the row; every batch holds all images."""
        rate, original = 0.003, tiny_model()
        job = trainer(
            tmp_path,
            forget=images([1] * 12, seed=1),
            learning_rate=rate,
            lr_scheduler_type=schedule,
            weight_decay=0.0,
            **self.OPTIONS,
        )
        wider, start = copy.deepcopy(original), {}
        job.add_callback(Began(job, start))
        job.train()
        wider.classifier = torch.nn.Linear(16, 6)
        with torch.no_grad():
            wider.classifier.weight.copy_(torch.cat([original.classifier.weight, start["weight"]]))
            wider.classifier.bias.copy_(torch.cat([original.classifier.bias, start["bias"]]))
        optimizer = torch.optim.SGD(wider.parameters(), rate, momentum=0.9)
        pixels = job.run.classifier.normalize(job.run.forget.pixels.float() / 255)
        for step in range(self.STEPS):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / self.STEPS if schedule == "linear" else 1)
            optimizer.zero_grad()
            F.cross_entropy(wider(pixel_values=pixels).logits, torch.full((12,), 5)).backward()
            optimizer.step()
        head, model = wider.classifier, job.model
        assert model.classifier.weight.shape == (5, 16) and model.config.num_labels == 5
        assert not torch.equal(model.classifier.weight, original.classifier.weight)
        torch.testing.assert_close(model.classifier.weight, head.weight[:5], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.classifier.bias, head.bias[:5], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(job.method.neuron.weight, head.weight[5:], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(job.method.neuron.weight, start["weight"], atol=1e-3), "the row is trained too"
        others = {name: value for name, value in wider.named_parameters() if not name.startswith("classifier")}
        for name, value in others.items():
            torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-4, atol=1e-5)

    def test_the_row_is_in_no_file_of_the_model(self, tmp_path):
        job = trainer(tmp_path, forget=images([1] * 12, seed=1), **self.OPTIONS)
        names = set(job.model.state_dict())
        job.train()
        assert set(job.model.state_dict()) == names and job.model.config.num_labels == 5

    @pytest.mark.parametrize("optimizer", [{"optim": "adamw_torch", "weight_decay": 0.1}, {"optim": "sgd"}])
    @pytest.mark.slow
    def test_a_checkpoint_holds_the_row_and_its_optimizer(self, tmp_path, optimizer):
        options = {**self.OPTIONS, **optimizer, "learning_rate": 0.002, "max_steps": 9, "seed": 3}
        options |= {"per_device_train_batch_size": 5, "save_strategy": "steps", "save_steps": 4}
        whole, cut, again = (
            trainer(tmp_path / name, forget=images([1] * 12, seed=1), **options) for name in ("whole", "cut", "cut")
        )
        whole.train()
        cut.add_callback(CutAt(6))
        with pytest.raises(Cut):
            cut.train()
        again.train(resume_from_checkpoint=True)
        assert torch.equal(again.method.neuron.weight, whole.method.neuron.weight)
        assert torch.equal(again.method.neuron.bias, whole.method.neuron.bias)
        expected = whole.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


class Cut(BaseException):
    """A run that is cut off."""


class CutAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Cut


class Began(TrainerCallback):
    """Keeps the extra row as it was drawn."""

    def __init__(self, job, kept):
        self.job, self.kept = job, kept

    def on_train_begin(self, args, state, control, **_):
        neuron = self.job.method.neuron
        self.kept |= {"weight": neuron.weight.detach().clone(), "bias": neuron.bias.detach().clone()}
