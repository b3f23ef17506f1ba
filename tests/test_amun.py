"""AMUN: the smallest radius where it is known, and a run that keeps the classes."""

import pytest
import torch
from cases import linear_classifier
from tiny import images, tiny_model, trainer

from zspag_hf import METHODS, UnlearningReport
from zspag_hf.methods import amun
from zspag_hf.methods.amun import FIRST_EPS, nearest_adversaries
from zspag_hf.pipeline.classifier import to_unit

FIXED = {"method": "amun", "forget_classes": None, "max_steps": 20, "per_device_train_batch_size": 8}


class TestNearestAdversaries:
    """Two classes and a linear model: the boundary is a plane, its distance is known."""

    def case(self, count=24):
        classifier = linear_classifier(num_labels=2, size=4, gain=2.0)
        pixels = 0.3 + 0.4 * torch.rand(count, 1, 4, 4, dtype=torch.float64)  # far from the edges of the box
        logits = classifier.predict(pixels).double()
        weight = classifier.model.layers[1].weight.double()
        distance = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).norm()
        return classifier, pixels, logits.argmax(1), distance

    def test_the_radius_is_the_first_of_the_grid_beyond_the_boundary(self):
        classifier, pixels, labels, distance = self.case()
        _, _, radii = nearest_adversaries(classifier, pixels, labels)
        assert (radii >= distance).all()
        assert ((radii / 2 < distance * 1.001) | (radii == FIRST_EPS)).all()
        assert len(radii.unique()) > 2, "several radii must be needed, or the grid is not tried"

    def test_each_adversary_has_another_answer_within_its_radius(self):
        classifier, pixels, labels, _ = self.case()
        found, answers, radii = nearest_adversaries(classifier, pixels, labels)
        assert len(found) == len(pixels) and (answers != labels).all()
        assert torch.equal(classifier.predict(found).argmax(1), answers)
        assert ((found - pixels).flatten(1).norm(dim=1) <= radii + 1e-6).all()

    def test_an_image_that_the_model_gets_wrong_is_its_own(self):
        classifier, pixels, labels, _ = self.case()
        wrong = 1 - labels
        found, answers, radii = nearest_adversaries(classifier, pixels, wrong)
        assert (radii == 0).all() and torch.equal(found, pixels) and torch.equal(answers, labels)


@pytest.fixture(autouse=True)
def few_attacks(request, monkeypatch):
    """A search over fewer radii, of fewer steps, but where it is the search that is tested."""
    if request.cls is not TestNearestAdversaries:
        monkeypatch.setattr(amun, "FIRST_EPS", 8 * FIRST_EPS)
        monkeypatch.setattr(amun, "STEPS", 15)


@pytest.mark.parametrize("method", ["amun", "amun_advonly"])
@pytest.mark.slow
def test_a_run_lowers_the_confidence(tmp_path, method):
    model = tiny_model()
    model.classifier.weight.data *= 6  # as sure as an over-fitted one
    job = trainer(tmp_path, model=model, forget=images([0, 1, 2, 3, 4] * 4), **{**FIXED, "method": method})
    classifier, forget = job.run.classifier, job.run.forget
    answers = classifier.predict(forget.pixels).argmax(1)
    forget.labels[:] = answers  # as if trained on
    confidence = lambda: classifier.predict(forget.pixels).softmax(1).gather(1, answers[:, None]).mean()  # noqa: E731
    before = confidence()
    job.train()
    assert (job.run.plan.targets[-20:].argmax(1) != answers).all()
    assert confidence() < before
    assert job.report.proxies["attack_success_rate"] == 1


class TestMixes:
    """The four of the published code: D_u + D_A, D_A, and each with D_r."""

    LABELS, KEPT = [0, 1, 2, 3, 4] * 4, [4, 3, 2, 1, 0, 0]

    def run(self, tmp_path, method, with_retain, **options):
        model = tiny_model()
        model.classifier.weight.data *= 6
        given = {"retain": images(self.KEPT, seed=9), "with_retain": with_retain, "max_steps": 1, "learning_rate": 1e-6}
        job = trainer(
            tmp_path, model=model, forget=images(self.LABELS), **{**FIXED, **given, **options, "method": method}
        )
        found = nearest_adversaries(job.run.classifier, job.run.forget.pixels, job.run.forget.labels)
        job.train()
        return job, found

    @pytest.mark.parametrize("method", ["amun", "amun_advonly"])
    @pytest.mark.parametrize("with_retain", [False, True])
    def test_rows_and_labels(self, tmp_path, method, with_retain):
        job, (found, answers, _) = self.run(tmp_path, method, with_retain)
        forget, retain, plan = job.run.forget, job.run.retained, job.run.plan
        assert (retain is None) is not with_retain
        pixels, labels = [found], [answers]
        if method == "amun":
            pixels, labels = [to_unit(forget.pixels, "cpu"), *pixels], [forget.labels, *labels]
        if with_retain:
            pixels, labels = [*pixels, to_unit(retain.pixels, "cpu")], [*labels, torch.tensor(self.KEPT)]
        assert torch.equal(plan.pixels, torch.cat(pixels)) and len(found) == 20
        assert plan.targets.argmax(1).equal(torch.cat(labels)) and plan.targets.max(1).values.eq(1).all()
        assert plan.blocks is None, "one shuffle"
        assert (answers != forget.labels).all(), "no adversary has the label of its image"
        assert job.report.proxies["count"] == 20 and job.report.method_options["with_retain"] is with_retain

    def test_an_epoch_reads_every_row_once(self, tmp_path):
        job, _ = self.run(tmp_path, "amun", True, max_steps=-1, num_train_epochs=1)
        loader = job.get_train_dataloader()
        assert job.state.global_step == len(loader) == -(-(20 + 20 + 6) // 8)
        counts = torch.cat([batch["targets"].argmax(1) for batch in loader]).bincount(minlength=5)
        assert counts.equal(job.run.plan.targets.argmax(1).bincount(minlength=5))

    @pytest.mark.parametrize("method", ["amun", "amun_advonly"])
    def test_published_settings(self, method):
        made = METHODS[method]()
        assert (made.learning_rate, made.num_train_epochs, made.weight_decay) == (0.01, 10, 5e-4)
        assert made.optim == "sgd" and made.optim_args == "momentum=0.9" and not made.with_retain
        assert made.forgets == ("images",) and not made.needs_retain

    def test_the_published_optimizer_is_the_one_that_runs(self, tmp_path):
        job = trainer(tmp_path, forget=images([0, 1] * 4), method="amun_advonly", forget_classes=None, max_steps=1)
        job.train()
        groups = job.optimizer.param_groups
        assert all(group["momentum"] == 0.9 and group["lr"] == 0.01 for group in groups)
        assert {group["weight_decay"] for group in groups} == {5e-4, 0.0}, (
            "none on biases and norms, as transformers do"
        )
        held = {id(parameter) for group in groups for parameter in group["params"]}
        assert held >= {id(parameter) for parameter in job.model.parameters()}, "every parameter trains"


@pytest.mark.slow
def test_the_report_of_an_image_request_has_no_forgotten_class_and_no_masked_row(tmp_path):
    job = trainer(tmp_path, forget=images([0, 1, 2, 3] * 3), test=images([0, 1, 2, 3, 4] * 4), **FIXED)
    job.train()
    metrics = job.evaluate(retain=images([0, 1, 2, 3, 4] * 4, seed=3))
    job.save_model()
    assert "eval_acc_rt" in metrics and "eval_acc_ut" not in metrics
    report = UnlearningReport.load(job.args.output_dir)
    assert report.forget_classes == [] and report.request["classes"] == [] and report.request["images"] == 12
    assert report.models["masked"] is None and "masked" not in report.table()
    for score in ("ua", "ra", "ta", "mia_confidence"):
        assert report.models["unlearned"][score] is not None, score
    assert "acc_ut" in report.reasons


@pytest.mark.slow
def test_images_can_be_forgotten_after_a_class(tmp_path):
    model = tiny_model()
    first = trainer(tmp_path / "a", model=model, forget=images([2] * 20), max_steps=20)
    first.train()
    second = trainer(tmp_path / "b", model=model, forget=images([0, 1] * 4), **FIXED)
    second.train()
    assert second.run.forget_ids == [2] and second.request.class_ids == []
    assert [len(entry["classes"]) for entry in model.config.unlearning] == [1, 0]


def test_what_a_class_request_forgot_is_no_target_of_a_later_image_request(tmp_path):
    model = tiny_model()
    probe = trainer(tmp_path / "probe", model=model, forget=images([2] * 4)).run
    # the class that adversaries would often end in
    gone = int(probe.classifier.predict(probe.forget.pixels).argmax(1).mode().values)
    model.config.unlearning = [{"classes": [{"id": gone, "label": model.config.id2label[gone]}], "date": "2026-01-01"}]
    job = trainer(tmp_path / "run", model=model, forget=images([k for k in range(5) if k != gone] * 4), **FIXED)
    job.train()
    assert (job.run.plan.targets[:, gone] == 0).all()
