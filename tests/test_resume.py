"""A run that is killed at any moment, and begun again with ``resume_from_checkpoint=True``, ends as one left alone.

Weights are compared bit by bit: a stage is read back as it was written, a checkpoint holds float32 weights and the
optimizer's state as they are, and batches are drawn from seed and epoch, so nothing is left to be rounded otherwise.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import children
import pytest
import torch
from safetensors.torch import save_file
from tiny import config, images, tiny_model, tiny_processor, trainer
from transformers import AutoModelForImageClassification, TrainerCallback

from zspag_hf import UnlearningError, UnlearningTrainer, grams, stage_cache
from zspag_hf.cli.jobs import Job, run
from zspag_hf.data.request import proves
from zspag_hf.evaluation import Comparison
from zspag_hf.trainer.publishing import check_result
from zspag_hf.trainer.stage_cache import FOLDER, StageCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")

BEE = {"forget_classes": ["bee"], "per_device_train_batch_size": 4}  # the class that the tiny model sees
FIXED = {**BEE, "adaptive": False, "constraint": "hard", "energy_threshold": 0.9, "max_steps": 30}
JOBS = {
    "adaptive": {**BEE, "max_steps": 20, "proxy_budget": 0.1},
    "steered": {**BEE, "max_steps": 60, "proxy_budget": 0.1, "learning_rate": 0.6},  # too large at first
    "momentum": {**FIXED, "learning_rate": 0.01, "optim_args": "momentum=0.9"},
    "adamw": {**FIXED, "learning_rate": 0.001, "optim": "adamw_torch", "weight_decay": 0.01, "constraint": "soft"},
    "wide": {**FIXED, "learning_rate": 0.01, "max_memory_gb": 1e-9, "max_steps": 9},
    "amun": {"forget_classes": None, "method": "amun", "learning_rate": 0.01, "max_steps": 6},
}
STAGES = {
    "adaptive": ["proxies", "held_out_proxies", "subspaces", "pseudo_labels", "adaptation", "layers"],
    "momentum": ["proxies", "subspaces", "pseudo_labels", "layers"],
    "wide": ["proxies", "frames", "subspaces", "pseudo_labels", "layers"],
    "amun": ["adversaries"],
}
TEST = {"test": images([0, 1, 2, 3, 4] * 3, seed=3)}
EVERY_STAGE = [(job, name) for job in ("adaptive", "wide", "amun") for name in STAGES[job]]
NARROW = 8  # columns of a frame in the job "wide", where layers read up to 48


def make(folder, job, **more):
    if job == "wide":
        grams.FRAME_WIDTH = NARROW
    label = 2 if job == "amun" else 1
    return trainer(folder, forget=images([label] * 12, seed=1), **{**JOBS[job], **more})


@pytest.fixture(autouse=True)
def frame_width(monkeypatch):
    """``make`` may change it; changed back after each test."""
    monkeypatch.setattr(grams, "FRAME_WIDTH", grams.FRAME_WIDTH)


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------ where to die: called in the process that will


def after_storing(run, name):
    store = StageCache.store

    def stored(cache, this, *arguments):
        store(cache, this, *arguments)
        if this == name:
            kill()

    StageCache.store = stored


def while_writing(run, name):
    def half(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if path.name == f"{name}.part":
            os.truncate(path, path.stat().st_size // 2)
            kill()

    stage_cache.save_file = half


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            kill()


def at_step(run, step):
    run.add_callback(KillAt(step))


def in_checkpoint(run, step):
    """While the optimizer's state is written: the weights of this checkpoint are there already."""
    save = torch.save

    def half(value, path, *arguments, **options):
        save(value, path, *arguments, **options)
        if f"checkpoint-{step}{os.sep}" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    torch.save = half


def in_evaluation(run, batch):
    step, seen = run.prediction_step, []

    def counted(*arguments, **options):
        seen.append(1)
        return kill() if len(seen) == batch else step(*arguments, **options)

    run.prediction_step = counted


def in_comparison(run):
    """After the metrics, among the scores of the other models."""
    from zspag_hf.evaluation.comparison import Comparison

    Comparison.relearn = kill


def before_replace(run, number):
    """Before a file is moved into its place for the n-th time, in saving; once after the last one."""
    replace, seen, save = os.replace, [], run.save_model

    def counted(*arguments):
        seen.append(1)
        return kill() if len(seen) == number else replace(*arguments)

    def watched(*arguments, **options):
        os.replace = counted
        return save(*arguments, **options)

    run.save_model = watched


def in_deletion(run):
    """The result is saved, and half of what was kept is deleted."""
    remove = shutil.rmtree

    def half(path, **options):
        if Path(path).name != FOLDER:
            return remove(path, **options)
        for file in Path(path).rglob("*.safetensors"):
            file.unlink()
        return kill()

    shutil.rmtree = half


def work(folder, job, die, arguments, options, resume):
    run = make(folder, job, **options)
    die(run, *arguments)
    run.train(resume_from_checkpoint=resume)
    if "test" in options:
        run.evaluate()
    run.save_model()


# ------------------------------------------------------------------ a run that dies, and one that goes on


def cut(folder, job, die, *arguments, resume=False, **options):
    """A job that kills itself on the way."""
    children.run(work, folder, job, die, arguments, options, resume, status=-signal.SIGKILL)


def go_on(folder, job, **options):
    """The same job with ``resume_from_checkpoint=True``: the trainer, the stages that it made, the steps it took."""
    run, made, steps = make(folder, job, **options), [], []
    stage, step = StageCache.stage, run.training_step

    def counted_stage(cache, name, make):
        return stage(cache, name, lambda: made.append(name) or make())

    def counted_step(*arguments):
        steps.append(run.state.global_step + 1)
        return step(*arguments)

    run.training_step = counted_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCache, "stage", counted_stage)
        run.train(resume_from_checkpoint=True)
    return run, made, steps


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def told(run):
    """What a report says of a training, without times and without the date and nonce of the request."""
    report = run.report
    return json.dumps([report.proxies, report.layers, report.choice, report.curve], sort_keys=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Job -> weights and report of a run left alone; made when first asked for."""
    found, width = {}, grams.FRAME_WIDTH

    def get(job):
        if job not in found:
            run = make(tmp_path_factory.mktemp(job), job)
            start = state(run.model)
            run.train()
            grams.FRAME_WIDTH = width
            found[job] = state(run.model), told(run), run.state.global_step
            assert not is_equal(found[job][0], start)
        return found[job]

    return get


def check(run, expected):
    weights, report, steps = expected
    found = state(run.model)
    assert is_equal(found, weights), max(float((found[name] - weights[name]).abs().max()) for name in found)
    assert told(run) == report and run.state.global_step == steps


class TestStages:
    @pytest.mark.parametrize(("job", "name"), EVERY_STAGE)
    def test_killed_after_a_stage(self, tmp_path, whole, job, name):
        cut(tmp_path, job, after_storing, name)
        run, made, _ = go_on(tmp_path, job)
        assert made == STAGES[job][STAGES[job].index(name) + 1 :]
        check(run, whole(job))

    @pytest.mark.parametrize("job", ["adaptive", "wide"])
    def test_killed_again_and_again_while_a_stage_is_written(self, tmp_path, whole, job):
        """Each process but the last dies in writing the next stage, or its result."""
        for i, name in enumerate((*STAGES[job], "training")):
            cut(tmp_path, job, while_writing, name, resume=bool(i))
            (part,) = Path(tmp_path, "out", FOLDER).rglob("*.part")
            assert part.stem == name
        run, made, steps = go_on(tmp_path, job)
        assert made == [] and steps
        check(run, whole(job))

    def test_without_resuming_everything_is_made_anew(self, tmp_path, whole):
        cut(tmp_path, "momentum", after_storing, "subspaces")
        made, stage = [], StageCache.stage
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                StageCache, "stage", lambda c, name, make: stage(c, name, lambda: made.append(name) or make())
            )
            run = make(tmp_path, "momentum")
            run.train()
        assert made == STAGES["momentum"]
        check(run, whole("momentum"))

    def test_another_request_in_the_folder_does_not_take_its_stages(self, tmp_path, whole):
        cut(tmp_path, "momentum", after_storing, "layers")
        run, made, _ = go_on(tmp_path, "momentum", seed=1)
        assert made == STAGES["momentum"]
        assert not is_equal(state(run.model), whole("momentum")[0])
        run, made, _ = go_on(tmp_path, "momentum")
        assert made == [], "the first one's are still there"
        check(run, whole("momentum"))


class TestTraining:
    @pytest.mark.parametrize("job", ["steered", "momentum"])
    def test_killed_without_checkpoints(self, tmp_path, whole, job):
        """All steps anew, from stages that are there."""
        cut(tmp_path, job, at_step, 15)
        run, made, steps = go_on(tmp_path, job)
        assert made == [] and steps[0] == 1
        check(run, whole(job))

    @pytest.mark.parametrize(
        ("job", "every", "step", "first"),
        [
            ("momentum", 10, 25, 21),
            ("momentum", 7, 20, 15),  # within an epoch of three steps
            ("adamw", 10, 25, 21),
            ("adamw", 10, 10, 1),  # before the first checkpoint is written
            ("steered", 10, 15, 11),  # after a round that was rolled back
            ("steered", 7, 25, 21),  # put off to the end of the round, steps 10 and 20
            ("steered", 10, 60, 51),  # in the last step: the head is fitted, the end not stored
        ],
    )
    def test_killed_between_checkpoints(self, tmp_path, whole, job, every, step, first):
        options = {"save_strategy": "steps", "save_steps": every}
        cut(tmp_path, job, at_step, step, **options)
        run, made, steps = go_on(tmp_path, job, **options)
        assert made == [] and steps[0] == first
        check(run, whole(job))

    @pytest.mark.parametrize("job", ["momentum", "steered"])
    def test_killed_while_a_checkpoint_is_written(self, tmp_path, whole, job):
        """Gone on with from the one before, which is whole."""
        options = {"save_strategy": "steps", "save_steps": 10}
        cut(tmp_path, job, in_checkpoint, 20, **options)
        assert (tmp_path / "out" / "checkpoint-20" / "model.safetensors").is_file()
        run, made, steps = go_on(tmp_path, job, **options)
        assert made == [] and steps[0] == 11
        check(run, whole(job))

    def test_killed_twice_in_training(self, tmp_path, whole):
        options = {"save_strategy": "steps", "save_steps": 10}
        cut(tmp_path, "steered", at_step, 15, **options)
        cut(tmp_path, "steered", at_step, 35, resume=True, **options)
        run, made, steps = go_on(tmp_path, "steered", **options)
        assert made == [] and steps[0] == 31
        check(run, whole("steered"))

    def test_the_run_that_these_are_compared_to_was_rolled_back_and_sped_up(self, tmp_path):
        """What a checkpoint has to hold of the control shows in what comes after it."""
        run = make(tmp_path, "steered")
        run.train()
        rates = [round(entry["learning_rate"], 3) for entry in run.report.curve]
        assert [entry["kept"] for entry in run.report.curve[:4]] == [True, False, False, True]
        assert rates[1:4] == [0.6, 0.3, 0.15] and max(rates[3:]) == 0.3 == rates[-1]

    def test_a_checkpoint_of_another_run_is_left_alone(self, tmp_path, whole):
        options = {"save_strategy": "steps", "save_steps": 10}
        cut(tmp_path, "momentum", at_step, 25, **options, seed=1)
        other = sorted(path.name for path in Path(tmp_path, "out").glob("checkpoint-*"))
        assert other == ["checkpoint-10", "checkpoint-20"]
        run, made, steps = go_on(tmp_path, "momentum")
        assert made == STAGES["momentum"] and steps[0] == 1
        check(run, whole("momentum"))
        run = make(tmp_path, "momentum")
        with pytest.raises(UnlearningError, match="its run had another seed"):
            run.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-20"))

    @pytest.mark.parametrize("job", ["adaptive", "momentum", "amun"])
    def test_killed_after_training(self, tmp_path, whole, job):
        cut(tmp_path, job, after_storing, "training")
        run, made, steps = go_on(tmp_path, job)
        assert made == steps == []
        check(run, whole(job))
        for name in ("learning_rate", "energy_threshold"):
            assert run.report.choice is None or getattr(run.args, name) == run.report.choice[name] > 0


class TestEvaluation:
    @pytest.fixture(scope="class")
    def evaluated(self, tmp_path_factory):
        run = make(tmp_path_factory.mktemp("evaluated"), "adaptive", **TEST)
        run.train()
        return run.evaluate(), run.report

    @pytest.mark.parametrize(("die", "arguments"), [(in_evaluation, (2,)), (in_comparison, ())])
    def test_killed_in_evaluation(self, tmp_path, whole, evaluated, die, arguments):
        options = {**TEST, "per_device_eval_batch_size": 8}
        cut(tmp_path, "adaptive", die, *arguments, **options)
        run, made, steps = go_on(tmp_path, "adaptive", **options)
        assert made == steps == []
        check(run, whole("adaptive"))
        metrics, report = evaluated
        mine = run.evaluate()
        assert {k: v for k, v in mine.items() if "acc" in k} == {k: v for k, v in metrics.items() if "acc" in k}
        for model, row in report.models.items():
            for score, value in (row or {}).items():
                assert run.report.models[model][score] == pytest.approx(value, abs=1e-6), (model, score)


class TestSaving:
    """A second run of the same request, with another seed, saves over the first one's result."""

    OPTIONS = {"seed": 1}

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory):
        """A folder with a saved result and a finished second training; the weights of both; how many files move."""
        folder = tmp_path_factory.mktemp("saved")
        first = make(folder, "momentum")
        first.train()
        first.save_model()
        second = make(folder, "momentum", **self.OPTIONS)
        second.train()
        whole = tmp_path_factory.mktemp("whole") / "whole"
        shutil.copytree(folder, whole)
        run, _, _ = go_on(whole, "momentum", **self.OPTIONS)
        moved, replace = [], os.replace
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", lambda one, other: moved.append(Path(other).name) or replace(one, other))
            run.save_model()
        names = sorted(path.name for path in (whole / "out").iterdir())
        assert set(moved) <= set(names) and "model.safetensors" in moved and len(moved) >= 6
        return folder, (state(first.model), state(second.model)), len(moved), names

    def check_folder(self, folder, weights):
        """Either model, whole, with an image processor; no config that says more than the weights have forgotten."""
        model = AutoModelForImageClassification.from_pretrained(folder)
        found = state(model)
        assert is_equal(found, weights[0]) or is_equal(found, weights[1])
        assert model.config.unlearning[-1]["seed"] != 1 or is_equal(found, weights[1])
        assert (folder / "preprocessor_config.json").is_file()
        json.loads((folder / "_request.json").read_text())

    def check_resumed(self, folder, weights, names):
        run, made, _ = go_on(folder, "momentum", **self.OPTIONS)
        run.save_model()
        out = folder / "out"
        assert is_equal(state(AutoModelForImageClassification.from_pretrained(out)), weights[1])
        assert sorted(path.name for path in out.iterdir()) == names, "and nothing half-written is left"
        report = check_result(str(out))
        assert proves(str(out), report.request, run.forget.images)
        return made

    def test_killed_before_each_file_is_moved_into_place(self, tmp_path, trained):
        source, weights, count, names = trained
        new = 0
        for number in range(1, count + 1):
            folder = tmp_path / str(number)
            shutil.copytree(source, folder)
            cut(folder, "momentum", before_replace, number, resume=True, **self.OPTIONS)
            self.check_folder(folder / "out", weights)
            new += is_equal(state(AutoModelForImageClassification.from_pretrained(folder / "out")), weights[1])
            assert self.check_resumed(folder, weights, names) == []
        assert 0 < new < count, "some before the weights, some after"

    def test_killed_while_what_was_kept_is_deleted(self, tmp_path, trained):
        """The result is whole by then; resumed, the run is made anew."""
        source, weights, _, names = trained
        folder = tmp_path / "deletion"
        shutil.copytree(source, folder)
        cut(folder, "momentum", in_deletion, resume=True, **self.OPTIONS)
        assert is_equal(state(AutoModelForImageClassification.from_pretrained(folder / "out")), weights[1])
        check_result(str(folder / "out"))
        assert self.check_resumed(folder, weights, names) == STAGES["momentum"]

    def test_a_folder_that_is_half_of_each_run_is_not_published(self, tmp_path, trained):
        """Weights and config of the new run beside the report of the old one: a push says so."""
        source, weights, count, _ = trained
        shutil.copytree(source, tmp_path / "cut")
        cut(tmp_path / "cut", "momentum", before_replace, count - 1, resume=True, **self.OPTIONS)
        out = tmp_path / "cut" / "out"
        assert is_equal(state(AutoModelForImageClassification.from_pretrained(out)), weights[1])
        with pytest.raises(UnlearningError, match="of different runs, one of which was cut off"):
            check_result(str(out))


def test_nothing_is_left_to_go_on_from_once_it_is_saved(tmp_path):
    run = make(tmp_path, "momentum")
    run.train()
    run.save_model()
    with pytest.raises(UnlearningError, match="no run was cut off"):
        make(tmp_path, "momentum").train(resume_from_checkpoint=True)


def test_a_run_that_was_cut_off_goes_on_in_the_same_object(tmp_path):
    """Not from the weights and choices that it had come to."""

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 15:
                raise KeyboardInterrupt

    whole, cut = (make(tmp_path / name, "adaptive") for name in ("whole", "cut"))
    whole.train()
    stop = Interrupt()
    cut.add_callback(stop)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    cut.remove_callback(stop)
    cut.train(resume_from_checkpoint=True)
    after = cut.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in whole.model.state_dict().items())
    assert cut.report.choice == whole.report.choice


def test_settings_that_ran_beside_it_are_not_run_again(tmp_path, monkeypatch):
    """A comparison that was cut off in its evaluation goes on there, and what it kept is deleted at the end."""

    def interrupted(*_):
        raise KeyboardInterrupt

    def compared(resume):
        job = Job(tiny_model(), tiny_processor(), images([1] * 12, seed=1), TEST["test"])
        options = {**JOBS["adaptive"], "resume_from_checkpoint": resume}
        settings = {"random labels": {"method": "random_labels", "adaptive": False, "num_train_epochs": 2}}
        return run(job, config(tmp_path, **options), settings, "quick", save=False)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compared(None)
    with monkeypatch.context() as patch:
        patch.setattr(UnlearningTrainer, "run_training", lambda *_: pytest.fail("trained again"))
        trained = compared("true")
    assert set(trained.report.models) >= {"original", "random labels", "unlearned"}
    assert not (Path(trained.args.output_dir) / FOLDER).exists()
