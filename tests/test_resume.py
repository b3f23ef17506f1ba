"""A run that is killed at any moment, and begun again with ``resume_from_checkpoint=True``, ends as one left alone.

Weights are compared bit by bit: a stage is read back as it was written, a checkpoint holds float32 weights and the
optimizer's state as they are, and batches are drawn from seed and epoch, so nothing is left to be rounded otherwise.
"""

import dataclasses
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
from tiny import asked, images, made, tiny_model, tiny_processor, trainer
from transformers import AutoModelForImageClassification, TrainerCallback

from zspag_hf import UnlearningError
from zspag_hf.cli.jobs import Job, Setting, run
from zspag_hf.data.request import proves
from zspag_hf.evaluation import Comparison
from zspag_hf.pipeline import grams
from zspag_hf.report.report import REPORT_NAME, UnlearningReport
from zspag_hf.trainer import stage_cache
from zspag_hf.trainer.output_dir import locked
from zspag_hf.trainer.publishing import check_result
from zspag_hf.trainer.stage_cache import FOLDER, StageCache

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and fork")

BEE = {"forget_classes": ["bee"], "per_device_train_batch_size": 4}  # the class that the tiny model sees
FIXED = {**BEE, "method": "zspag_paper", "proxy_policy": "quota", "subspace_merge": "gram", "energy_threshold": 0.9}
JOBS = {
    "default": {**BEE, "max_steps": 20},
    "momentum": {**FIXED, "learning_rate": 0.01, "optim_args": "momentum=0.9", "max_steps": 20},
    "adamw": {**FIXED, "learning_rate": 0.001, "optim": "adamw_torch", "weight_decay": 0.01, "constraint": "soft"},
    "short": {**FIXED, "learning_rate": 0.01, "max_steps": 3},
    "wide": {**FIXED, "learning_rate": 0.01, "max_memory_gb": 1e-9, "max_steps": 9},
    "amun": {"forget_classes": None, "method": "amun", "learning_rate": 0.01, "max_steps": 6},
}
JOBS["adamw"]["max_steps"] = 30
OF_PAPER = ["trained_labels", "proxies", "second_best_proxies", "subspaces", "pseudo_labels", "layers"]
STAGES = {
    "default": [
        *("trained_labels", "proxies", "held_out_proxies", "confident_proxies", "held_out_confident_proxies"),
        *("targets", "subspaces", "layers"),
    ],
    **dict.fromkeys(("momentum", "short"), OF_PAPER),
    "wide": ["trained_labels", "proxies", "second_best_proxies", "frames", "subspaces", "pseudo_labels", "layers"],
    "amun": ["adversaries"],
}
TEST = images([0, 1, 2, 3, 4] * 3, seed=3)
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


def while_writing(run, name):
    def half(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if path.name == f"{name}.part":
            os.truncate(path, path.stat().st_size // 2)
            kill()

    stage_cache.save_file = half


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.do()


def at_step(run, step):
    run.add_callback(At(step, kill))


def in_checkpoint(run, step):
    """While the optimizer's state is written: the weights of this checkpoint are there already."""
    save = torch.save

    def half(value, path, *arguments, **options):
        save(value, path, *arguments, **options)
        if f"checkpoint-{step}{os.sep}" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            kill()

    torch.save = half


def in_comparison(run):
    """After the metrics, among the scores of the models."""
    Comparison.relearn = kill


def before_replace(run, number):
    """Before a file is moved into its place for the n-th time, in saving."""
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


def go_on(folder, job, resume=True, **options):
    """The same job with ``resume_from_checkpoint=True``: the trainer, the stages that it made, the steps it took."""
    run, stages, steps = make(folder, job, **options), [], []
    stage, step = StageCache.stage, run.training_step

    def counted_stage(cache, name, work):
        return stage(cache, name, lambda: stages.append(name) or work())

    def counted_step(*arguments):
        steps.append(run.state.global_step + 1)
        return step(*arguments)

    run.training_step = counted_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageCache, "stage", counted_stage)
        run.train(resume_from_checkpoint=resume)
    return run, stages, steps


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
    """Job -> weights, report and number of steps of a run left alone; made when first asked for."""
    held, width = {}, grams.FRAME_WIDTH

    def get(job):
        if job not in held:
            run = make(tmp_path_factory.mktemp(job), job)
            start = state(run.model)
            run.train()
            grams.FRAME_WIDTH = width
            held[job] = state(run.model), told(run), run.state.global_step, run.report
            assert not is_equal(held[job][0], start)
        return held[job]

    return get


def check(run, expected):
    weights, report, steps, _ = expected
    mine = state(run.model)
    assert is_equal(mine, weights), max(float((mine[name] - weights[name]).abs().max()) for name in mine)
    assert told(run) == report and run.state.global_step == steps


def written(folder):
    """Stage -> when it was written."""
    return {path.stem: path.stat().st_mtime_ns for path in Path(folder, "out", FOLDER).rglob("*.safetensors")}


# ------------------------------------------------------------------ cut off in this process: what needs no kill


class TestCutOff:
    @pytest.mark.slow
    def test_a_run_goes_on_in_the_same_object(self, tmp_path, whole):
        """Not from the weights and choices that it had come to."""

        def stop():
            raise KeyboardInterrupt

        run, interrupt = make(tmp_path, "default"), At(15, stop)
        run.add_callback(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.train()
        run.remove_callback(interrupt)
        run.train(resume_from_checkpoint=True)
        check(run, whole("default"))
        for name in ("learning_rate", "energy_threshold"):
            assert getattr(run.method, name) == run.report.choice[name] > 0

    def test_another_request_in_the_folder_takes_none_of_its_stages_and_leaves_them(self, tmp_path, whole):
        """Nor does one that begins anew."""
        make(tmp_path, "short").train()
        run, stages, _ = go_on(tmp_path, "short", seed=1)
        assert stages == OF_PAPER and not is_equal(state(run.model), whole("short")[0])
        run, stages, _ = go_on(tmp_path, "short")
        assert stages == [], "the first one's are still there"
        check(run, whole("short"))
        run, stages, _ = go_on(tmp_path, "short", resume=False)
        assert stages == OF_PAPER
        check(run, whole("short"))

    def test_nothing_is_left_to_go_on_from_once_it_is_saved(self, tmp_path):
        run = make(tmp_path, "short")
        run.train()
        run.save_model()
        with pytest.raises(UnlearningError, match="no run was cut off"):
            make(tmp_path, "short").train(resume_from_checkpoint=True)

    @pytest.mark.parametrize("family", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
    def test_from_the_folder_of_a_checkpoint(self, tmp_path, family):
        """Weights by the names that transformers saves them under, batch norm's buffers, optimizer and place."""
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "family": family}
        first = make(tmp_path, "momentum", **options)
        first.train()
        weights = state(first.model)
        checkpoint = str(tmp_path / "out" / "checkpoint-4")
        second, _, steps = go_on(tmp_path, "momentum", resume=checkpoint, **options)
        assert steps == [5, 6] and is_equal(state(second.model), weights)
        other = make(tmp_path, "momentum", **options, seed=1)
        with pytest.raises(UnlearningError, match="its run had another seed"):
            other.train(resume_from_checkpoint=checkpoint)
        _, stages, steps = go_on(tmp_path, "momentum", **options, seed=2)
        assert stages == OF_PAPER and steps[0] == 1, "a checkpoint of another run is left alone"


# ------------------------------------------------------------------ killed


@needs_kill
@pytest.mark.slow
class TestStages:
    @pytest.mark.parametrize("job", ["default", "wide", "amun"])
    def test_killed_again_and_again_while_a_stage_is_written(self, tmp_path, whole, job):
        """Each process but the last dies in writing the next stage; those before it are read and not made again."""
        before = {}
        for i, name in enumerate(STAGES[job]):
            cut(tmp_path, job, while_writing, name, resume=i > 0)
            (part,) = Path(tmp_path, "out", FOLDER).rglob("*.part")
            now = written(tmp_path)
            assert part.stem == name and now.keys() == set(STAGES[job][:i])
            assert all(now[stage] == time for stage, time in before.items()), name
            before = now
        run, stages, steps = go_on(tmp_path, job)
        assert stages == STAGES[job][-1:] and steps[0] == 1
        check(run, whole(job))


@needs_kill
@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize(
        ("job", "every", "deaths", "first"),
        [
            ("momentum", None, [(at_step, 15)], 1),  # without checkpoints: all steps anew, from stages that are there
            ("momentum", 7, [(at_step, 5), (in_checkpoint, 14), (at_step, 18)], 15),  # within epochs of three steps
            ("default", 7, [(at_step, 5), (in_checkpoint, 14), (at_step, 18)], 15),
            ("adamw", 10, [(at_step, 10), (at_step, 25)], 21),  # the first one before a checkpoint is written
        ],
    )
    def test_killed_in_training(self, tmp_path, whole, job, every, deaths, first):
        """In a row. At the end of the default the head is fitted, and the end not stored."""
        options = {"save_strategy": "steps", "save_steps": every} if every else {}
        for i, (die, step) in enumerate(deaths):
            cut(tmp_path, job, die, step, resume=i > 0, **options)
        run, stages, steps = go_on(tmp_path, job, **options)
        assert stages == [] and steps[0] == first
        check(run, whole(job))

    def test_killed_in_evaluation(self, tmp_path, whole):
        """Its training is repeated, from stages that are there, and the evaluation is the same."""
        cut(tmp_path, "short", in_comparison, test=TEST)
        run, stages, steps = go_on(tmp_path, "short", test=TEST)
        assert stages == [] and steps == [1, 2, 3]
        check(run, whole("short"))
        assert run.evaluate()["eval_acc_rt"] == run.report.models["unlearned"]["acc_rt"]


@needs_kill
@pytest.mark.slow
class TestSaving:
    """A second run of the same request, with another seed, saves over the first one's result."""

    OPTIONS = {"seed": 1}

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory):
        """A folder with a saved result and a finished second training; the weights of both; how many files move."""
        folder = tmp_path_factory.mktemp("saved")
        first = make(folder, "short")
        first.train()
        first.save_model()
        second = make(folder, "short", **self.OPTIONS)
        second.train()
        whole = tmp_path_factory.mktemp("whole") / "whole"
        shutil.copytree(folder, whole)
        run, _, _ = go_on(whole, "short", **self.OPTIONS)
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
        mine = state(model)
        assert is_equal(mine, weights[0]) or is_equal(mine, weights[1])
        assert model.config.unlearning[-1]["seed"] != 1 or is_equal(mine, weights[1])
        assert (folder / "preprocessor_config.json").is_file()
        json.loads((folder / "_request.json").read_text())
        return is_equal(mine, weights[1])

    def check_resumed(self, folder, weights, names):
        run, stages, _ = go_on(folder, "short", **self.OPTIONS)
        run.save_model()
        out = folder / "out"
        assert is_equal(state(AutoModelForImageClassification.from_pretrained(out)), weights[1])
        assert sorted(path.name for path in out.iterdir()) == names, "and nothing half-written is left"
        report = check_result(str(out))
        assert proves(str(out), report.request, run.run.forget.images)
        return stages

    def test_killed_before_each_file_is_moved_into_place(self, tmp_path, trained):
        """Either result is whole; nothing that the old one says stands beside the new one's weights, and half of each
        is not published."""
        source, weights, count, names = trained
        new, refused = [], []
        for number in range(1, count + 1):
            folder = tmp_path / str(number)
            shutil.copytree(source, folder)
            cut(folder, "short", before_replace, number, resume=True, **self.OPTIONS)
            new.append(self.check_folder(folder / "out", weights))
            out = folder / "out"
            said = [name for name in (REPORT_NAME, "README.md") if (out / name).is_file()]
            assert not new[-1] or all(UnlearningReport.load(out).seed == 1 for name in said if name == REPORT_NAME)
            try:
                check_result(str(out))
            except UnlearningError as error:
                assert "holds no unlearning_report.json" in str(error)
                refused.append(number)
        assert not new[0] and new[-1] and new == sorted(new), "some before the weights, some after"
        assert refused, "or nothing was half of each"
        for number in (1, *refused[:1], count):
            assert self.check_resumed(tmp_path / str(number), weights, names) == []

    def test_killed_in_a_first_save_it_can_be_resumed_or_repeated(self, tmp_path):
        run = make(tmp_path / "whole", "short")
        run.train()
        expected = state(run.model)
        for number in range(1, 6):
            folder = tmp_path / str(number)
            cut(folder, "short", before_replace, number)
            for resume in (number % 2 == 0, False):
                again, _, _ = go_on(folder, "short", resume=resume)
                again.save_model()
                assert is_equal(state(AutoModelForImageClassification.from_pretrained(folder / "out")), expected)
                check_result(str(folder / "out"))

    def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(self, tmp_path):
        run = make(tmp_path, "short")
        with locked(str(tmp_path / "out")), pytest.raises(UnlearningError, match="another run is at work"):
            run.train()
        run.train()
        with locked(str(tmp_path / "out")), pytest.raises(UnlearningError, match="another run is at work"):
            run.save_model()
        run.save_model()

    def test_killed_while_what_was_kept_is_deleted(self, tmp_path, trained):
        """The result is whole by then; resumed, the run is made anew."""
        source, weights, _, names = trained
        folder = tmp_path / "deletion"
        shutil.copytree(source, folder)
        cut(folder, "short", in_deletion, resume=True, **self.OPTIONS)
        assert is_equal(state(AutoModelForImageClassification.from_pretrained(folder / "out")), weights[1])
        check_result(str(folder / "out"))
        assert self.check_resumed(folder, weights, names) == OF_PAPER


@pytest.mark.slow
def test_a_comparison_that_was_cut_off_makes_no_stage_again(tmp_path, monkeypatch):
    """Of none of its settings; and what it kept is deleted at the end."""

    def interrupted(*_):
        raise KeyboardInterrupt

    def compared(resume):
        job = Job(tiny_model(), tiny_processor(), images([1] * 12, seed=1), TEST)
        args, method = asked(tmp_path, **JOBS["default"], resume_from_checkpoint=resume)
        settings = {"paper": Setting(made("zspag_paper", proxy_policy="quota"), {"num_train_epochs": 2})}
        return run(job, args, method, settings, "quick", save=False)

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compared(None)
    with monkeypatch.context() as patch:
        patch.setattr("zspag_hf.methods.stages.make_proxies", lambda *_, **__: pytest.fail("made again"))
        trained = compared("true")
    assert set(trained.report.models) >= {"original", "paper", "unlearned"}
    assert not (Path(trained.args.output_dir) / FOLDER).exists()
    assert dataclasses.asdict(trained.report)["models"]["paper"]["seconds"] > 0
