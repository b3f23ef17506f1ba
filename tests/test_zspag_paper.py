"""The paper's method at its preset: each attack, each policy, each subspace, on a network that has learned."""

import copy
from functools import lru_cache

import pytest
import torch
from tiny import learned_model, patterns, trainer
from tiny_runs import leak

from zspag_hf.methods import zspag_paper
from zspag_hf.pipeline.attacks import ATTACKS
from zspag_hf.pipeline.pseudo_labels import pseudo_labels, retained_mask

TEST = patterns([0, 1, 2, 3, 4] * 20, 5)
VARIANTS = [
    *({"attack": name} for name in ATTACKS),
    {"proxy_policy": "second"},
    {"subspace_merge": "gpm"},
    {"subspace_merge": "gram"},
    {"subspace_merge": "random"},
    {"influence_sign": "eq10"},
    {"targets": "paper_unmasked"},
]


@lru_cache
def learned():
    return learned_model("resnet", steps=15)


def job(folder, **options):
    usual = {"forget": patterns([2] * 40, 1), "test": TEST, "attack_eps": None, "proxies_per_class": 100}
    options = usual | {"method": "zspag_paper"} | options
    return trainer(folder, model=copy.deepcopy(learned()), **options)


@pytest.mark.parametrize("options", [{}, *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS)], ids=str)
def test_the_preset_runs_in_every_form_and_moves_nothing_that_proxies_use(tmp_path, options):
    run = job(tmp_path, **options)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert min(before["eval_acc_rt"], before["eval_acc_ut"]) > 0.9 and leak(run) < 1e-4
    assert sum((w.detach() - run.original[k]).norm() for k, w in run.model.named_parameters()) > 0.1
    if "targets" not in options:
        assert run.run.plan.targets[:, ~retained_mask(5, [2])].eq(0).all()
    if not options:
        assert after["eval_acc_ut"] <= 0.02 and after["eval_acc_rt"] >= before["eval_acc_rt"] - 0.02


@pytest.mark.parametrize(
    ("given", "steps"),
    [({"num_train_epochs": 2}, 4), ({"max_steps": 5}, 5), ({"num_train_epochs": 2, "max_steps": 5}, 5)],
)
def test_epochs_or_steps_that_are_given_go_before_the_preset_s_steps(tmp_path, given, steps):
    run = job(tmp_path, per_device_train_batch_size=20, **given)
    run.train()
    assert run.state.global_step == steps


def test_labels_are_told_by_the_proxies_of_eq_2_and_subspaces_by_all(tmp_path, monkeypatch):
    run, seen = job(tmp_path, max_steps=1), {}
    for name in ("gather_subspaces", "gather_targets"):
        real = getattr(zspag_paper, name)

        def watched(*given, name=name, real=real):
            seen[name] = next(one for one in given if hasattr(one, "per_class"))
            return real(*given)

        monkeypatch.setattr(zspag_paper, name, watched)
    logits = run.run.classifier.predict(run.run.forget.pixels)
    run.train()
    assert min(seen["gather_subspaces"].per_class.values()) > 0
    second = pseudo_labels(logits, [2], None, "second_best").targets.argmax(1)
    assert torch.isin(seen["gather_targets"].labels, second).all() and seen["gather_targets"].attempted == len(logits)
