"""UNSC: steps that leave what real retained images use, and labels that the original ranks second."""

import pytest
import torch
from tiny import images, trainer

from zspag_hf.data.images import RetainSet
from zspag_hf.methods import unsc
from zspag_hf.methods.unsc import IMAGES_PER_CLASS, drawn_per_class
from zspag_hf.pipeline.grams import collect_grams

UNSC = {
    "method": "unsc",
    "forget_classes": ["bee"],  # the class that the tiny model sees
    "forget": images([1] * 16, seed=1),
    "max_steps": 20,
    "learning_rate": 0.1,
    "per_device_train_batch_size": 8,
}
RETAIN = images([0, 2, 3, 4], seed=2)


def trained(folder, **options):
    run = trainer(folder, **{**UNSC, "retain": RETAIN, **options})
    run.train()
    return run


def movement_share(run, pixels) -> list[float]:
    """By layer, the share of the weights' displacement that the images' leading directions (energy .99) see."""
    now = {name: layer.weight.detach().clone() for name, layer in run.layers.items()}
    with torch.no_grad():
        for name, layer in run.layers.items():
            layer.weight.copy_(run.original_weights[name])
        labels = torch.arange(len(pixels)) % 4
        grams = collect_grams(run.classifier, pixels, labels, run.layers)
    shares = []
    for name, layer in run.layers.items():
        change = layer.matrix(now[name]).double() - layer.matrix(run.original_weights[name]).double()
        values, vectors = torch.linalg.eigh(grams[name])
        values, vectors = values.flip(1), vectors.flip(2)
        for group in range(layer.groups):
            rank = int((values[group].cumsum(0) / values[group].sum() < 0.99 - 1e-9).sum()) + 1
            whole = change[group].norm()
            if whole > 1e-4 * layer.weight.norm():
                shares.append(float((change[group] @ vectors[group][:, :rank]).norm() / whole))
    return shares


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_weights_move_in_the_complement_of_what_real_images_use(tmp_path, family):
    run = trained(tmp_path, family=family, energy_threshold=None)
    shares = movement_share(run, run.retain.pixels)
    assert len(shares) > 2 and max(shares) < 1e-3


def test_that_is_not_the_complement_of_what_forget_images_use(tmp_path):
    run = trained(tmp_path)
    assert max(movement_share(run, run.forget.pixels)) > 0.1


def test_it_is_the_hard_form_at_the_published_threshold_with_nothing_but_weights(tmp_path):
    run = trainer(tmp_path, **UNSC, retain=RETAIN)
    assert run.args.constraint == "hard" and run.args.energy_threshold == 0.99
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    weights = {f"{name}.weight" for name in run.layers}
    moved = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and moved <= weights
    assert [layer["name"] for layer in run.report.layers] == list(run.layers)
    assert run.report.proxies is None


def test_targets_are_the_original_runner_up_among_classes_that_stay(tmp_path):
    run = trainer(tmp_path, **UNSC, retain=RETAIN)
    logits = run.classifier.predict(run.forget.pixels)
    logits[:, 1] = -torch.inf
    run.train()
    assert torch.equal(run.plan.targets, torch.nn.functional.one_hot(logits.argmax(1), 5).float())


def test_retained_images_are_no_rows_to_train_on(tmp_path):
    run = trained(tmp_path)
    assert torch.equal(run.plan.pixels, run.forget.pixels)


def test_the_bases_are_made_from_so_many_images_of_each_class(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(unsc, "IMAGES_PER_CLASS", 3)
    gather = unsc.gather_subspaces
    monkeypatch.setattr(unsc, "gather_subspaces", lambda run, found: seen.append(found) or gather(run, found))
    run = trained(tmp_path, retain=images([0] * 9 + [3] * 2 + [4] * 5, seed=2))
    (found,) = seen
    assert found.labels.bincount(minlength=5).tolist() == [3, 0, 0, 2, 3] and IMAGES_PER_CLASS == 100
    rows = [(run.retain.pixels == one).flatten(1).all(1).nonzero().item() for one in found.pixels]
    assert torch.equal(run.retain.labels[rows], found.labels)


def test_which_images_depends_on_the_seed():
    retain = RetainSet(torch.arange(40).view(40, 1, 1, 1), torch.arange(40) % 2)
    first, again, other = (drawn_per_class(retain, 5, seed).pixels.flatten().tolist() for seed in (0, 0, 1))
    assert first == again != other and len(first) == 10


@pytest.mark.parametrize("constraint", ["soft", "none"])
def test_the_other_constraints_are_an_option(tmp_path, constraint):
    run = trained(tmp_path, constraint=constraint)
    assert (run.plan.constraint is None) is (constraint == "none")
    assert type(run.plan.constraint).__name__ in ("SoftConstraint", "NoneType")
