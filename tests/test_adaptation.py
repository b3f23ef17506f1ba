"""The held-out data that watch a run, on models where every reading is known, and what is decided by them."""

import math
from types import SimpleNamespace

import pytest
import torch
from cases import linear_classifier, two_layer_classifier

from zspag_hf.adaptive.control import BACK, AdaptiveControl
from zspag_hf.adaptive.held_out import HeldOut, Reading, jensen_shannon
from zspag_hf.pipeline.layers import constrained_layers
from zspag_hf.pipeline.pseudo_labels import pseudo_labels


def setting(classifier=None):
    """A classifier, its layers, forget images with targets, proxies, and the held-out view of them."""
    classifier = classifier or two_layer_classifier(width=6, num_labels=4)
    forget, proxies = torch.rand(12, 1, 2, 2), torch.rand(16, 1, 2, 2)
    targets = pseudo_labels(classifier.predict(forget), [1], None).targets
    layers = constrained_layers(classifier.model, lambda: classifier(forget.double()))
    held = HeldOut(classifier, proxies, forget, targets, [1])
    return SimpleNamespace(classifier=classifier, layers=layers, held=held)


def test_jensen_shannon_of_equal_and_disjoint_rows():
    p = torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.4, 0.6]], dtype=torch.float64)
    assert jensen_shannon(p, q).tolist() == pytest.approx([0.0, math.log(2)], abs=1e-12)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))


def test_held_out_readings_start_at_zero_and_ignore_the_forgotten_logit():
    s = setting()
    assert s.held.read().proxy_kl == pytest.approx(0, abs=1e-12)
    head = list(s.layers.values())[-1]
    with torch.no_grad():
        head.weight[1] -= 5.0  # the forgotten row alone
    assert s.held.read().proxy_kl == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        head.weight[0] -= 1.0
    assert s.held.read().proxy_kl > 1e-3


def test_a_masked_model_reads_as_forgotten_and_on_target():
    s = setting(linear_classifier(num_labels=4, channels=1, size=2))
    with torch.no_grad():
        s.classifier.model.layers[1].bias[1] = -1e6
    now = s.held.read()
    assert now.forget_probability < 1e-9 and now.forget_rate == 0 and now.proxy_forget_probability < 1e-9
    assert now.target_js == pytest.approx(0, abs=1e-7)


class Scripted:
    """A AdaptiveControl whose readings depend on how far the one weight has gone."""

    def __init__(self, cost, budget=0.01):
        weight = torch.nn.Parameter(torch.zeros(1))
        layers = {"only": SimpleNamespace(weight=weight)}
        constraint = SimpleNamespace(step_scale=1.0)
        held = SimpleNamespace(first=Reading(0, 0.5, 1, 0, 1), read=lambda: Reading(cost(weight.item()), 0, 0, 0, 0))
        self.weight, self.finished = weight, 0
        self.control = AdaptiveControl(held, constraint, layers, budget, 0.1, dict, self.finish)
        self.state, self.args = SimpleNamespace(global_step=0), SimpleNamespace(max_steps=100)
        self.control.on_train_begin(self.args, self.state, None)

    def finish(self):
        self.finished += 1
        return 1e-3

    def end(self, at):
        with torch.no_grad():
            self.weight.fill_(at)
        self.state.global_step = 100
        self.control.on_train_end(self.args, self.state, None)


class TestControl:
    def test_steps_follow_half_a_cosine(self):
        run, scales = Scripted(lambda w: 0.0), []
        for run.state.global_step in range(100):
            run.control.on_step_begin(run.args, run.state, None)
            scales.append(run.control.constraint.step_scale)
        assert scales[0] == 1 and scales == sorted(scales, reverse=True) and 0 < scales[-1] < 1e-3
        assert scales[50] == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("cost", "way"), [(0.01, 1.0), (0.015, 0.75), (0.03, 0.5), (0.1, 0.25), (1e9, 0.0), (float("nan"), 0.0)]
    )
    def test_it_goes_back_as_far_as_the_proxies_ask(self, cost, way):
        run = Scripted(lambda w: cost * w**2 if w else 0.0)
        run.end(1.0)
        assert run.control.way == way in BACK and run.weight.item() == way
        assert run.finished == 1 and run.control.curve[-1]["phase"] == "head"
        assert run.control.summary()["forgotten"]

    def test_a_checkpoint_keeps_the_curve(self):
        run = Scripted(lambda w: 0.0)
        for run.state.global_step in range(1, 21):
            run.control.on_step_end(run.args, run.state, None)
        saved = run.control.state()
        again = Scripted(lambda w: 0.0)
        again.state.global_step, again.state.stateful_callbacks = 20, {"AdaptiveControl": saved}
        again.control.on_train_begin(again.args, again.state, None)
        assert again.control.curve == run.control.curve and [e["step"] for e in run.control.curve] == [0, 10, 20]
