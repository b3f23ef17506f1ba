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
    job = trainer(folder, **{**UNSC, "retain": RETAIN, **options})
    job.train()
    return job


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run."""
    return trained(tmp_path_factory.mktemp("done"))


def movement_share(job, pixels) -> list[float]:
    """By layer, the share of the weights' displacement that the images' leading directions (energy .99) see."""
    layers, model = job.run.layers, job.model
    now = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(job.original)
    grams = collect_grams(job.run.classifier, pixels, torch.arange(len(pixels)) % 4, layers)
    model.load_state_dict(now)
    shares = []
    for name, layer in layers.items():
        change = layer.matrix(layer.weight.detach()).double() - layer.matrix(job.original[f"{name}.weight"]).double()
        values, vectors = torch.linalg.eigh(grams[name])
        values, vectors = values.flip(1), vectors.flip(2)
        for group in range(layer.groups):
            rank = int((values[group].cumsum(0) / values[group].sum() < 0.99 - 1e-9).sum()) + 1
            moved = change[group].norm()
            if moved > 1e-4 * layer.weight.norm():
                shares.append(float((change[group] @ vectors[group][:, :rank]).norm() / moved))
    return shares


def test_weights_move_in_the_complement_of_what_real_images_use_and_not_of_what_forget_images_use(done):
    shares = movement_share(done, done.run.retained.pixels)
    assert len(shares) > 2 and max(shares) < 1e-3
    assert max(movement_share(done, done.run.forget.pixels)) > 0.1


@pytest.mark.slow
def test_so_they_do_in_a_convolutional_network(tmp_path):
    job = trained(tmp_path, family="resnet")
    shares = movement_share(job, job.run.retained.pixels)
    assert len(shares) > 2 and max(shares) < 1e-3


def test_it_is_the_hard_form_at_the_published_threshold_with_nothing_but_weights(done):
    assert done.method.constraint == "hard" and done.method.threshold == 0.99
    weights = {f"{name}.weight" for name in done.run.layers}
    moved = {name for name, value in done.model.state_dict().items() if not torch.equal(value, done.original[name])}
    assert moved and moved <= weights
    assert [layer["name"] for layer in done.report.layers] == list(done.run.layers)
    assert done.report.proxies is None


def test_it_trains_on_forget_images_alone_and_the_original_runner_up_among_classes_that_stay(tmp_path, done):
    fresh = trainer(tmp_path, **UNSC, retain=RETAIN).run
    logits = fresh.classifier.predict(fresh.forget.pixels)
    logits[:, 1] = -torch.inf
    assert torch.equal(done.run.plan.targets, torch.nn.functional.one_hot(logits.argmax(1), 5).float())
    assert torch.equal(done.run.plan.pixels, done.run.forget.pixels)


def test_the_bases_are_made_from_so_many_images_of_each_class(tmp_path, monkeypatch):
    seen, gather = [], unsc.gather_subspaces
    monkeypatch.setattr(unsc, "IMAGES_PER_CLASS", 3)
    monkeypatch.setattr(
        unsc, "gather_subspaces", lambda run, made, *rest: seen.append(made) or gather(run, made, *rest)
    )
    job = trained(tmp_path, retain=images([0] * 9 + [3] * 2 + [4] * 5, seed=2), max_steps=1)
    (made,) = seen
    assert made.labels.bincount(minlength=5).tolist() == [3, 0, 0, 2, 3] and IMAGES_PER_CLASS == 100
    retained = job.run.retained
    rows = [(retained.pixels == one).flatten(1).all(1).nonzero().item() for one in made.pixels]
    assert torch.equal(retained.labels[rows], made.labels)


def test_which_images_depends_on_the_seed():
    retain = RetainSet(torch.arange(40).view(40, 1, 1, 1), torch.arange(40) % 2)
    first, again, other = (drawn_per_class(retain, 5, seed).pixels.flatten().tolist() for seed in (0, 0, 1))
    assert first == again != other and len(first) == 10


@pytest.mark.parametrize("constraint", ["soft", "none"])
def test_the_other_constraints_are_an_option(tmp_path, constraint):
    job = trained(tmp_path, constraint=constraint, max_steps=1)
    assert (job.run.plan.constraint is None) is (constraint == "none")
    assert type(job.run.plan.constraint).__name__ in ("SoftConstraint", "NoneType")
