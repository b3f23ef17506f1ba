"""What every method promises, in every form that it has, on a small transformer and a small convolutional network."""

import pytest
import torch
from tiny import NAMES, images, tiny_model, trainer
from transformers import TrainerCallback

from zspag_hf import METHODS, UnlearningError, UnlearningReport
from zspag_hf.pipeline.pseudo_labels import pseudo_labels
from zspag_hf.report.card import model_card

FORMS = [
    (name, with_retain, kind)
    for name, method in METHODS.items()
    for kind in method.forgets
    for with_retain in (False, True)
    if (not method.needs_retain if not with_retain else method.needs_retain or method.takes_retain)
]
FIRST = {form[0]: form for form in reversed(FORMS)}
CASES = [(*form, "vit") for form in FORMS] + [(*form, "resnet") for form in FIRST.values()]
STEPS = 12
RATES = {"boundary_expand": 0.001, "scrub": 0.002}  # where the one below is not one to learn at
EITHER_WAY = ("ssd",)  # in a network that learned nothing, weights that matter to a class may speak against it
TEST = images([0, 1, 2, 3, 4] * 4, seed=7)


class Tripwire:
    """A data set that must not be looked at."""

    def __getattribute__(self, name):
        raise AssertionError(f"retained data was touched: {name}")


class Cut(BaseException):
    """A run that is cut off."""


class CutAt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == STEPS // 2 + 1:
            raise Cut


def sure_model(family):
    """A model as sure as an over-fitted one; on noise it answers one class."""
    model = tiny_model(family)
    head = model.classifier if family == "vit" else model.classifier[-1]
    head.weight.data *= 4
    return model


def make(folder, name, family, with_retain, kind="classes", **options):
    """A trainer on images with the labels that the model gives them: of one class, the one to forget, or of several."""
    model = sure_model(family)
    probe = trainer(folder / "probe", model=model, forget=images([0] * 32, seed=1), forget_classes=[NAMES[0]])
    answers = probe.classifier.predict(probe.forget.pixels).argmax(1)
    label = int(answers.mode().values)
    given = {
        "method": name,
        "adaptive": False,
        "learning_rate": RATES.get(name, 0.02) if METHODS[name].trains else None,
        "max_steps": STEPS if METHODS[name].trains else -1,
        "per_device_train_batch_size": 8,
        "forget": images([label] * 32 if kind == "classes" else answers.tolist(), seed=1),
        "forget_classes": [NAMES[label]] if kind == "classes" else None,
        "retain": images([k for k in range(5) if k != label] * 6, seed=2) if with_retain else Tripwire(),
        "with_retain": with_retain,
        "test": TEST,
    }
    return trainer(folder, model=model, **{**given, **options})


def belief(run):
    """Mean probability that the model gives the forget images' labels."""
    return float(run.classifier.predict(run.forget.pixels).softmax(1).gather(1, run.forget.labels[:, None]).mean())


class TestEveryForm:
    @pytest.mark.parametrize(("name", "with_retain", "kind", "family"), CASES)
    def test_it_forgets_reports_and_repeats_itself(self, tmp_path, name, with_retain, kind, family):
        weights = []
        for attempt in ("a", "b") if family == "resnet" else ("a",):  # the next test repeats the others
            run = make(tmp_path / attempt, name, family, with_retain, kind)
            before = belief(run)
            run.train()
            moved = belief(run) - before
            assert moved < 0 or (name in EITHER_WAY and moved), "what was to be forgotten is believed less"
            weights.append({key: value.clone() for key, value in run.model.state_dict().items()})
        assert all(torch.equal(weights[0][key], value) for key, value in weights[-1].items()), "one seed, one result"
        run.evaluate()
        run.save_model()
        report = UnlearningReport.load(run.args.output_dir)
        assert report.method == name and report.config["with_retain"] is with_retain
        assert report.models["unlearned"] and "training" in report.timings_s
        assert report.request["method"] == name
        card = str(model_card(report))
        assert METHODS[name].description.split("](")[0].split(".")[0] in card
        assert ("zero-shot-unlearning" in card) is not with_retain

    @pytest.mark.parametrize(("name", "with_retain", "kind", "family"), CASES)
    def test_a_run_that_was_cut_off_ends_as_one_left_alone(self, tmp_path, name, with_retain, kind, family):
        whole = make(tmp_path / "whole", name, family, with_retain, kind)
        whole.train()
        cut = make(tmp_path / "cut", name, family, with_retain, kind, save_strategy="steps", save_steps=4)
        cut.add_callback(CutAt())
        if whole.plan.pixels is None:
            cut.edit = lambda plan: (_ for _ in ()).throw(Cut)
        with pytest.raises(Cut):
            cut.train()
        again = make(tmp_path / "cut", name, family, with_retain, kind, save_strategy="steps", save_steps=4)
        again.train(resume_from_checkpoint=True)
        expected = whole.model.state_dict()
        for key, value in again.model.state_dict().items():
            assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_retained_data_are_read_only_where_they_are_asked_for(tmp_path, name):
    method = METHODS[name]
    if not (method.needs_retain or method.takes_retain):
        with pytest.raises(UnlearningError, match="no form that reads retained data"):
            make(tmp_path, name, "vit", True)
    if method.needs_retain:
        with pytest.raises(UnlearningError, match="cannot work without"):
            make(tmp_path, name, "vit", False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, method in METHODS.items() if method.constrainable for kind in method.forgets],
)
def test_the_constraint_confines_every_method(tmp_path, name, kind):
    """Under the hard constraint no weight moves along what the proxies use, and nothing but layers' weights moves."""
    method = METHODS[name]
    run = make(tmp_path, name, "vit", method.needs_retain, kind, constraint="hard", energy_threshold=0.9)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.train()
    assert run.report.layers and run.report.proxies if name != "unsc" else run.report.layers
    moved = 0
    for layer, group, u, _start, q in run.plan.constraint.parts:
        change = (
            layer.matrix(layer.weight.detach())[group] - layer.matrix(run.original_weights[layer.name])[group]
        ).double()
        inside = change - change @ q.double() @ q.double().T if u is None else change @ u.double()
        assert inside.norm() <= 1e-4 * max(float(change.norm()), 1e-2), layer.name
        moved += bool(change.any())
    assert moved
    free = {f"{layer}.weight" for layer in run.layers}
    for key, value in run.model.state_dict().items():
        assert key in free or torch.equal(value, before[key]), key


AIMED = [name for name, method in METHODS.items() if method.takes_targets]


class TestTargets:
    """What the forget images are trained on is a part that methods share."""

    @pytest.mark.parametrize("prior", ["second_best", "uniform"])
    @pytest.mark.parametrize("name", AIMED)
    def test_they_can_be_named(self, tmp_path, name, prior):
        run = make(tmp_path, name, "vit", METHODS[name].needs_retain, prior=prior, tilt="none", max_steps=1)
        logits = run.classifier.predict(run.forget.pixels)
        run.train()
        expected = pseudo_labels(logits, run.forget_ids, None, prior).targets
        assert torch.equal(run.plan.targets[: len(run.forget)], expected)
        if run.plan.retarget is not None:
            assert torch.equal(run.plan.retarget(3)[: len(run.forget)], expected), "in later epochs too"

    @pytest.mark.parametrize("options", [{"tilt": "influence", "tilt_temperature": 1.0}, {"pseudo_label": "paper"}])
    def test_by_influence_they_are_the_same_in_every_method_that_makes_them_from_proxies(self, tmp_path, options):
        found = {}
        for name in set(AIMED) - {"unsc"}:
            run = make(tmp_path / name, name, "vit", METHODS[name].needs_retain, max_steps=1, **options)
            run.train()
            found[name] = run.plan.targets[: len(run.forget)]
            assert run.report.proxies["count"]
            text = "In place of the method's own targets the forget images had"
            assert (text in str(model_card(run.report))) is (name != "zspag")
            assert sum(s for stage, s in run.timings.items() if stage != "total") <= run.timings["total"]
        assert len(found) == 4
        assert all(torch.equal(targets, found["zspag"]) for targets in found.values())

    def test_unsc_makes_them_from_retained_images(self, tmp_path):
        """No proxy is made, and other labels of theirs are other targets."""
        found = []
        for shift in (0, 1):
            options = {"tilt": "influence", "tilt_temperature": 0.5, "prior": "uniform", "max_steps": 1}
            run = make(tmp_path / str(shift), "unsc", "vit", True, **options)
            run.retain.labels.copy_(run.retain.labels.roll(shift))
            run.train()
            assert run.report.proxies is None
            found.append(run.plan.targets)
        assert not torch.equal(*found)
