"""What every method promises, in every form that it has, on a small transformer and a small convolutional network."""

import copy
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache

import pytest
import torch
from tiny import NAMES, images, learned_model, patterns, tiny_model, tiny_processor, trainer
from tiny_runs import leak
from transformers import TrainerCallback

from zspag_hf import METHODS, PixelClassifier, UnlearningError, UnlearningReport
from zspag_hf.adaptive.held_out import split
from zspag_hf.methods import Constrained, Targets, amun
from zspag_hf.pipeline.classifier import to_pixels
from zspag_hf.pipeline.pseudo_labels import pseudo_labels
from zspag_hf.report.card import model_card


@dataclass(frozen=True)
class Form:
    """One form of a method, and the family of model that it is to work on."""

    name: str
    with_retain: bool
    kind: str
    family: str = "vit"

    def __str__(self):
        return "-".join([self.name, self.kind, *["retain"] * self.with_retain, self.family])

    @property
    def method(self):
        return METHODS[self.name]


def has(name, option):
    """Whether a method has an option."""
    return option in {one.name for one in fields(METHODS[name])}


ON_VIT = [
    Form(name, with_retain, kind)
    for name, method in METHODS.items()
    for kind in method.forgets
    for with_retain in ((True,) if method.needs_retain else (False, True) if has(name, "with_retain") else (False,))
]
FIRST = list({form.name: form for form in reversed(ON_VIT)}.values())
FORMS = ON_VIT + [replace(form, family="resnet") for form in FIRST]
FAST = ("zspag", "zspag_paper", "salun", "mixunlearn")  # the default, the paper's, a mask, a callback with a state
STEPS = 12
OPTIONS = {  # where the usual ones leave nothing to see in few steps
    "boundary_expand": {"learning_rate": 0.001},
    "gkt": {"max_steps": 4},
    "scrub": {"learning_rate": 0.002},
    "zspag_paper": {"energy_threshold": 0.8, "learning_rate": 0.1},
}
TEST = images([0, 1, 2, 3, 4] * 4, seed=7)


def cases(forms, names=FAST):
    """As parameters, all but one form each of a few methods marked slow."""
    fast = {next(form for form in forms if form.name == name) for name in names}
    return [pytest.param(form, id=str(form), marks=[] if form in fast else [pytest.mark.slow]) for form in forms]


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


@lru_cache
def sure_model(family):
    """A model as sure as an over-fitted one, and the labels that it gives 32 images of noise."""
    model = tiny_model(family)
    head = model.classifier if family == "vit" else model.classifier[-1]
    head.weight.data *= 4
    pictures, classifier = images([0] * 32, seed=1)["image"], PixelClassifier(model, tiny_processor())
    return model, classifier.predict(to_pixels(pictures, tiny_processor())).argmax(1)


@lru_cache
def material(family, kind, learned):
    """Model, forget images, retained ones, and the class to forget. Images have the labels that the model gives them:
    of one class, or for a request of images of several."""
    if learned:
        return learned_model(family), patterns([2] * 32, 1), patterns([0, 1, 3, 4] * 6, 2), "cat"
    model, labels = sure_model(family)
    label = int(labels.mode().values)
    forget = images([label] * 32 if kind == "classes" else labels.tolist(), seed=1)
    return model, forget, images([k for k in range(5) if k != label] * 6, seed=2), NAMES[label]


def given(form):
    """What a form is run with. SSD damps what matters to a class, which is nothing in a network that learned nothing:
    it gets one that learned."""
    model, forget, retain, label = material(form.family, form.kind, form.name == "ssd")
    made = {"model": copy.deepcopy(model), "method": form.name, "forget": forget}
    made |= {"forget_classes": [label] if form.kind == "classes" else None, "per_device_train_batch_size": 8}
    made |= {"retain": retain if form.with_retain else Tripwire()}
    made |= {"max_steps": STEPS} if form.method.trains else {}
    made |= {"learning_rate": 0.02} if has(form.name, "learning_rate") else {}
    made |= {"with_retain": True} if form.with_retain and has(form.name, "with_retain") else {}
    return made | OPTIONS.get(form.name, {})


def make(folder, form, **options):
    return trainer(folder, **given(form) | {"test": TEST} | options)


def belief(job):
    """Mean probability that the model gives the forget images' labels."""
    forget = job.run.forget
    return float(job.run.classifier.predict(forget.pixels).softmax(1).gather(1, forget.labels[:, None]).mean())


@pytest.fixture(scope="module", autouse=True)
def few_attacks():
    """AMUN's search: fewer radii, of fewer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amun, "FIRST_EPS", 8 * amun.FIRST_EPS)
        patch.setattr(amun, "STEPS", 15)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each form trained once and left alone: form -> trainer, and belief before and after."""

    @lru_cache
    def trained(form):
        job = make(tmp_path_factory.mktemp("whole"), form)
        before = belief(job)
        job.train()
        return job, before, belief(job)

    return trained


class TestEveryForm:
    @pytest.mark.parametrize("form", cases(FORMS))
    def test_what_was_to_be_forgotten_is_believed_less_and_the_report_says_how(self, whole, form):
        job, before, after = whole(form)
        assert after < before - 0.01
        report = job.report
        assert report.method == report.request["method"] == form.name and "training" in report.timings_s
        assert report.zero_shot == (job.run.retained is None) == (not form.with_retain)
        assert report.method_options == job.method.to_dict()
        assert set(report.given) >= given(form).keys() & {*OPTIONS.get(form.name, {}), "with_retain", "max_steps"}
        card = str(model_card(report))
        assert form.method.description in card and ("zero-shot-unlearning" in card) is not form.with_retain
        report.save(job.args.output_dir)
        assert asdict(UnlearningReport.load(job.args.output_dir)) == asdict(report)

    @pytest.mark.parametrize("form", cases(FORMS))
    def test_a_run_that_was_cut_off_ends_as_one_left_alone(self, tmp_path, monkeypatch, whole, form):
        """To the last bit, so one seed has one result."""
        expected, kept = whole(form)[0].model.state_dict(), {"save_strategy": "steps", "save_steps": 4}
        cut = make(tmp_path, form, **kept)
        cut.add_callback(CutAt())
        with monkeypatch.context() as patch:
            if whole(form)[0].run.plan.pixels is None:
                prepare = form.method.prepare
                patch.setattr(form.method, "prepare", lambda self, run: replace(prepare(self, run), edit=cut_off))
            with pytest.raises(Cut):
                cut.train()
        again = make(tmp_path, form, **kept)
        again.train(resume_from_checkpoint=True)
        assert any(not torch.equal(value, again.original[key]) for key, value in expected.items())
        for key, value in again.model.state_dict().items():
            assert torch.equal(value, expected[key]), key

    @pytest.mark.slow
    @pytest.mark.parametrize("form", [*FIRST, *FORMS[len(ON_VIT) :]], ids=str)
    def test_it_is_evaluated(self, whole, form):
        job = whole(form)[0]
        scores, row = job.evaluate(), job.report.models["unlearned"]
        assert row["acc_rt"] == pytest.approx(scores["eval_acc_rt"]) and job.report.models["original"]
        assert ("eval_acc_ut" in scores) == (row.get("acc_ut") is not None) == (form.kind == "classes")

    @pytest.mark.slow
    @pytest.mark.parametrize("form", [form for form in ON_VIT if form.name == "salun"], ids=str)
    def test_it_is_saved(self, whole, form):
        job = whole(form)[0]
        job.evaluate()
        job.save_model()
        report = UnlearningReport.load(job.args.output_dir)
        assert report.method == form.name and report.method_options["with_retain"] is form.with_retain
        assert report.models["unlearned"] == job.report.models["unlearned"]
        again = type(job.model).from_pretrained(job.args.output_dir).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in job.model.state_dict().items())


def cut_off():
    raise Cut


@pytest.mark.parametrize("first", cases(FIRST, [*FAST, "finetune"]))
def test_retained_data_are_read_where_they_are_asked_for_and_only_there(tmp_path, first):
    name, method = first.name, first.method
    forms = [form for form in ON_VIT if form.name == name and form.kind == method.forgets[0]]
    with_retain = [form for form in forms if form.with_retain]
    for form in forms:
        job = make(tmp_path, form)
        assert (job.run.retained is not None) == form.with_retain == job.method.reads_retained
    for form in with_retain:
        assert len(job.run.retained) == 24
        with pytest.raises(UnlearningError, match=f"{method.__name__} is to read retained data: pass retain_dataset"):
            make(tmp_path, form, retain=None)
        with pytest.raises(AssertionError, match="retained data was touched"):
            make(tmp_path, form, retain=Tripwire())
        assert len(make(tmp_path, form, max_retain_samples=5).run.retained) == 5
    if not with_retain:
        assert not method.needs_retain and not has(name, "with_retain") and not has(name, "max_retain_samples")
    elif not method.needs_retain:
        with pytest.raises(UnlearningError, match="max_retain_samples=5 would change nothing without retained data"):
            method(max_retain_samples=5)


CONFINED = [
    form for form in ON_VIT if issubclass(form.method, Constrained) and form.with_retain is form.method.needs_retain
]


@pytest.mark.parametrize("form", cases(CONFINED, ["zspag_paper", "salun"]))
def test_the_constraint_confines_every_method(tmp_path, form):
    """Under the hard constraint no weight moves along what the proxies use, and nothing but layers' weights moves."""
    options = {"subspace_merge": "gram"} if form.name == "zspag_paper" else {}
    job = make(tmp_path, form, constraint="hard", energy_threshold=0.9, **options)
    before = {key: value.clone() for key, value in job.model.state_dict().items()}
    job.train()
    assert len(job.report.layers) == len(job.run.layers) and (job.report.proxies is None) is (form.name == "unsc")
    assert leak(job) < 1e-4
    free = {f"{layer}.weight" for layer in job.run.layers}
    for key, value in job.model.state_dict().items():
        assert key in free or torch.equal(value, before[key]), key


AIMED = [form for form in FIRST if issubclass(form.method, Targets)]


class TestTargets:
    """What the forget images are trained on is a part that methods share."""

    @pytest.mark.parametrize("targets", ["second_best", "uniform"])
    @pytest.mark.parametrize("form", cases(AIMED, ["salun"]))
    def test_they_can_be_named(self, tmp_path, form, targets):
        job = make(tmp_path, form, targets=targets, tilt="none", max_steps=1)
        logits = job.run.classifier.predict(job.run.forget.pixels)
        job.train()
        plan, count = job.run.plan, len(job.run.forget)
        expected = pseudo_labels(logits, job.run.forget_ids, None, targets).targets
        if form.name == "zspag":  # which keeps some to judge by
            expected = expected[split(count, 0.3, job.args.seed)[0]]
        assert torch.equal(plan.targets[:count], expected)
        if plan.retarget is not None:
            assert torch.equal(plan.retarget(3)[:count], expected), "in later epochs too"

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"targets": "renormalised", "tilt": "influence"}, {"targets": "paper"}])
    def test_by_influence_they_are_the_same_in_every_method_that_makes_them_from_proxies(self, tmp_path, options):
        seen = {}
        for form in AIMED:
            if form.name in ("unsc", "zspag"):
                continue
            asked = options | ({} if "tilt" in options else {"tilt": "none"})
            job = make(tmp_path / form.name, form, max_steps=1, **asked)
            job.train()
            seen[form.name] = job.run.plan.targets[: len(job.run.forget)]
            assert job.report.proxies["count"]
            text, differs = "In place of the method's own targets the forget images had", job.method.given()
            assert (text in str(model_card(job.report))) is bool(differs.keys() & {"targets", "tilt"})
            timings = job.report.timings_s
            assert sum(s for stage, s in timings.items() if stage != "total") <= timings["total"]
        assert seen.keys() == {"random_labels", "salun", "trw", "zspag_paper"}
        del seen["zspag_paper"]  # whose influence is that on eq. 2's proxies alone
        assert all(torch.equal(targets, seen["salun"]) for targets in seen.values())

    @pytest.mark.slow
    def test_unsc_makes_them_from_retained_images(self, tmp_path):
        """No proxy is made, and other labels of theirs are other targets."""
        seen = []
        for shift in (0, 1):
            options = {"targets": "uniform", "tilt": "influence", "max_steps": 1}
            job = make(tmp_path / str(shift), Form("unsc", True, "classes"), **options)
            job.run.retained.labels.copy_(job.run.retained.labels.roll(shift))
            job.train()
            assert job.report.proxies is None
            seen.append(job.run.plan.targets)
        assert not torch.equal(*seen)
