"""The rules that steer a run, on a linear model where every reading is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from cases import linear_classifier, two_layer_classifier

from zspag_hf.adaptive.control import MAX_REJECTED, AdaptiveControl
from zspag_hf.adaptive.first_step import ROUND_STEPS, choose_damping, soft_loss
from zspag_hf.adaptive.held_out import HeldOut, Reading, jensen_shannon
from zspag_hf.pipeline.constraint import SoftConstraint
from zspag_hf.pipeline.grams import collect_grams
from zspag_hf.pipeline.layers import constrained_layers
from zspag_hf.pipeline.pseudo_labels import pseudo_labels
from zspag_hf.pipeline.subspaces import Spectrum


def setting(classifier=None):
    """A classifier, its layers, forget images with targets, proxies, and the held-out view of them."""
    classifier = classifier or two_layer_classifier(width=6, num_labels=4)
    forget, proxies = torch.rand(12, 1, 2, 2), torch.rand(16, 1, 2, 2)
    targets = pseudo_labels(classifier.predict(forget), [1], None).targets
    layers = constrained_layers(classifier.model, lambda: classifier(forget.double()))
    grams = collect_grams(classifier, proxies, torch.arange(16) % 3, layers)
    held = HeldOut(classifier, proxies, forget, targets, [1])
    return SimpleNamespace(
        classifier=classifier, forget=forget, targets=targets, layers=layers, spectrum=Spectrum(grams), held=held
    )


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


def test_the_first_step_stays_inside_its_share_and_the_weights_come_back():
    s = setting()
    before = {name: layer.weight.detach().clone() for name, layer in s.layers.items()}
    threshold, rate, probe = choose_damping(s.held, s.spectrum, s.layers, s.forget, s.targets, 0.01, (0.9, 0.999))
    assert [record["energy_threshold"] for record in probe] == [0.9, 0.999]
    assert all(record["proxy_kl"] <= 0.01 / 50 for record in probe)
    assert all(record["forget_loss_drop"] > 0 for record in probe)
    best = max(record["gain"] for record in probe)
    good = [record for record in probe if record["gain"] >= 0.9 * best]
    assert threshold == good[-1]["energy_threshold"], "the most protective of the equally good"
    assert rate == good[-1]["step"] / ROUND_STEPS
    assert all(torch.equal(layer.weight, before[name]) for name, layer in s.layers.items())


class Run:
    """An AdaptiveControl fed with scripted readings in place of a model's."""

    def __init__(self, readings, budget=0.01, **options):
        s = setting()
        constraint = SoftConstraint(s.layers, s.spectrum.dampings(0.9))
        self.fitted = []
        options = {"finish": lambda: self.fitted.append(True) or 1e-4} | options
        self.control = AdaptiveControl(s.held, constraint, s.layers, budget, 0.1, dict, **options)
        script = iter(readings)
        s.held.first = next(script)
        self.control.read = lambda: next(script)
        self.args, self.state = SimpleNamespace(max_steps=10_000), SimpleNamespace(global_step=0)
        self.signal = SimpleNamespace(should_training_stop=False, should_save=False)
        self.layers, self.constraint = s.layers, constraint
        self.control.on_train_begin(self.args, self.state, self.signal)

    def round(self):
        """One round of steps that move every weight by 1."""
        with torch.no_grad():
            for layer in self.layers.values():
                layer.weight.add_(1.0)
        for _ in range(ROUND_STEPS):
            if self.signal.should_training_stop:
                return
            self.state.global_step += 1
            self.control.on_step_end(self.args, self.state, self.signal)


def reading(kl=0.0, js=0.5, p=0.5, beside=0.1, rate=1.0):
    return Reading(kl, js, p, beside, rate)


@pytest.mark.parametrize(
    "bad", [reading(kl=0.0021), reading(js=float("nan")), reading(kl=float("nan")), reading(kl=float("inf"))]
)
def test_a_round_that_costs_too_much_even_halved_is_rolled_back(bad):
    run = Run([reading(), bad, bad])
    before = {name: layer.weight.detach().clone() for name, layer in run.layers.items()}
    run.round()
    assert all(torch.equal(layer.weight, before[name]) for name, layer in run.layers.items())
    assert run.control.scale == 0.25 and not run.control.curve[-1]["kept"]


def test_half_of_a_round_that_costs_too_much_is_kept_where_it_costs_little():
    run = Run([reading(), reading(kl=0.0041, js=0.3), reading(kl=0.001, js=0.4), reading(js=0.3)])
    before = {name: layer.weight.detach().clone() for name, layer in run.layers.items()}
    run.round()
    for name, layer in run.layers.items():
        torch.testing.assert_close(layer.weight - before[name], torch.full_like(layer.weight, 0.5), rtol=0, atol=1e-6)
    assert [entry["kept"] for entry in run.control.curve] == [True, False, True]
    assert run.control.scale == 0.5 and not run.control.rejected
    run.round()
    assert run.control.scale == 1.0, "a step that was only halved may be tried again"


def test_steps_get_smaller_within_a_round_and_are_its_rate_on_average():
    run = Run([reading(), reading(js=0.4)])
    scales = []
    for _ in range(ROUND_STEPS):
        run.control.on_step_begin(run.args, run.state, run.signal)
        scales.append(run.constraint.step_scale)
        run.state.global_step += 1
        run.control.on_step_end(run.args, run.state, run.signal)
    assert sum(scales) / ROUND_STEPS == pytest.approx(1) and scales == sorted(scales, reverse=True) and scales[-1] > 0
    run.control.on_step_begin(run.args, run.state, run.signal)
    assert run.constraint.step_scale == pytest.approx(2 * scales[0]), "the next round begins anew, at twice the rate"


def test_the_budget_is_never_exceeded_in_small_steps():
    run = Run([reading(kl=0.0015 * i) for i in [*range(8), 7]])
    for _ in range(7):
        run.round()
    kept = [entry["proxy_kl"] for entry in run.control.curve if entry["kept"]]
    assert max(kept) <= 0.01 and not run.control.curve[-1]["kept"]


def test_a_cheap_round_doubles_the_step_and_a_failed_step_is_not_tried_again():
    bad = [reading(kl=0.5, js=0.3)] * 2
    run = Run([reading(), reading(js=0.4), reading(js=0.3), *bad, *[reading(js=0.2)] * 5])
    scales = []
    for _ in range(6):
        run.round()
        scales.append(run.control.scale)
    assert scales[:3] == [2.0, 4.0, 1.0]
    assert max(scales[3:]) == 2.0, "4 was rolled back"


def test_a_round_that_takes_most_of_what_is_left_does_not_double_the_step():
    run = Run([reading(), reading(js=0.2)])
    run.round()
    assert run.control.scale == 1.0


def test_what_the_whole_network_cannot_do_the_head_finishes():
    run = Run([reading(), *[reading(kl=1.0)] * (2 * MAX_REJECTED), reading(p=0.0001, rate=0.0)])
    for i in range(MAX_REJECTED):
        assert not run.fitted, i
        run.round()
    assert run.fitted == [True] and run.signal.should_training_stop
    summary = run.control.summary()
    assert summary["forgotten"] and summary["unseen_level"] == 1e-4
    assert summary["forget_probability"] == [0.5, 0.5, 0.0001], "at the start, after the whole network, at the end"


def test_where_the_head_alone_moves_the_deep_layers_stay():
    run = Run([reading(), reading(p=0.0001, rate=0.0)], whole=False)
    before = {name: layer.weight.detach().clone() for name, layer in run.layers.items()}
    run.round()
    assert run.fitted == [True] and run.signal.should_training_stop
    assert all(torch.equal(layer.weight, before[name]) for name, layer in run.layers.items())


def test_once_forgotten_a_round_must_gain_what_it_costs():
    gone = {"p": 0.005, "rate": 0.0}
    kept = [reading(), reading(js=0.02, **gone), reading(kl=0.001, js=0.01, **gone)]
    run = Run([*kept, reading(kl=0.0025, js=0.009, **gone), reading(kl=0.002, js=0.0095, **gone), reading(**gone)])
    run.round(), run.round()
    assert run.control.curve[-1]["kept"] and not run.signal.should_training_stop
    run.round()
    assert [entry["kept"] for entry in run.control.curve[3:5]] == [False, False], "1 for 1.5, and halved 0.5 for 1"
    assert run.signal.should_training_stop and run.fitted == [True], "and that is the end of it"


def test_what_little_is_left_is_left_to_the_head():
    run = Run([reading(js=0.5), reading(js=0.007, p=0.005, rate=0.0), reading(js=0.001, p=0.001, rate=0.0)])
    run.round()
    assert run.signal.should_training_stop and run.fitted == [True]


def test_the_head_is_fitted_where_the_steps_run_out():
    run = Run([reading(), *[reading(js=0.49)] * 4, reading(p=0.0001, rate=0.0)])
    run.args.max_steps = 3 * ROUND_STEPS
    run.round(), run.round()
    assert not run.fitted
    run.round()
    assert run.fitted and run.signal.should_training_stop


def test_a_round_cut_short_is_judged_too():
    run = Run([reading(), *[reading(kl=1.0)] * 2], finish=None)
    before = {name: layer.weight.detach().clone() for name, layer in run.layers.items()}
    with torch.no_grad():
        for layer in run.layers.values():
            layer.weight.add_(1.0)
    run.control.on_step_end(run.args, run.state, run.signal)
    run.control.on_train_end(run.args, run.state, run.signal)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in run.layers.items())


def test_a_run_that_did_not_forget_says_so():
    run = Run([reading(), reading(p=0.4)], finish=None)
    run.round()
    assert run.control.summary()["forgotten"] is False


def test_without_a_head_to_fit_the_whole_network_ends_the_run():
    run = Run([reading(), *[reading(kl=1.0)] * (2 * MAX_REJECTED)], finish=None)
    for _ in range(MAX_REJECTED):
        run.round()
    assert run.signal.should_training_stop and run.control.phase == "whole"


def test_a_forgotten_set_that_has_settled_ends_the_run():
    gone = [reading(js=js, p=0.005, rate=0.0) for js in (0.02, 0.019, 0.019)]
    run = Run([reading(js=0.1), *gone])
    run.round()
    assert not run.signal.should_training_stop, "still falling"
    run.round()
    assert run.signal.should_training_stop and run.fitted == [True], "the rows are fitted even so"


def test_soft_loss_is_the_mean_soft_cross_entropy():
    s = setting()
    expected = -(s.targets * s.classifier.predict(s.forget).log_softmax(1)).sum(1).mean()
    assert soft_loss(s.classifier, s.forget, s.targets) == pytest.approx(float(expected), rel=1e-6)
