"""What the library relies on in transformers and accelerate beyond their documented interface, a test each.

An upgrade that changes one of these fails here, with the behaviour in the test's name, and not in a run.
"""

import argparse
import dataclasses
import inspect
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tiny import images, tiny_model, trainer
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from zspag_hf import UnlearningConfig, UnlearningTrainer
from zspag_hf.config import Option, option
from zspag_hf.trainer.refusals import INSTEAD
from zspag_hf.trainer.saving import SavingTrainer


class Tiny(torch.nn.Module):
    """One weight, which a step moves."""

    main_input_name = "x"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x=None, labels=None, added=None):
        logits = x * self.weight
        return {"loss": (logits - labels).square().mean(), "logits": logits}


class Recording(Trainer):
    """Writes down which private methods are called, with what, and does in them what Trainer does, or nothing."""

    def __init__(self, **options):
        self.calls, self.folders = [], []
        super().__init__(**options)

    def note(self, name, *arguments):
        self.calls.append((name, *arguments))

    def of(self, name):
        return [call[1:] for call in self.calls if call[0] == name]

    def init_hf_repo(self, *_, **__):
        self.note("init_hf_repo")
        self.hub_model_id, self.push_in_progress = "user/name", None

    def _save(self, output_dir=None, state_dict=None):
        self.note("_save", output_dir)
        os.makedirs(output_dir, exist_ok=True)

    def _push_from_checkpoint(self, checkpoint_folder):
        self.note("_push_from_checkpoint", checkpoint_folder)
        self.folders.append(sorted(os.listdir(checkpoint_folder)))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.note("_load_from_checkpoint", resume_from_checkpoint, model)

    def _load_best_model(self):
        self.note("_load_best_model", self.state.best_model_checkpoint)

    def _prepare_inputs(self, inputs):
        prepared = super()._prepare_inputs(inputs)
        self.note("_prepare_inputs", inputs, prepared)
        return prepared

    def compute_loss(self, *arguments, **options):
        loss = super().compute_loss(*arguments, **options)
        self.note("compute_loss", loss)
        return loss

    def training_step(self, *arguments):
        loss = super().training_step(*arguments)
        self.note("training_step", loss)
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self.note("prediction_step", self.is_in_train, model)
        inputs["added"] = inputs["x"] + 1
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def get_train_dataloader(self):
        self.loader = super().get_train_dataloader()
        return self.loader

    def create_optimizer(self, model=None):
        self.note("create_optimizer", self.optimizer)
        return super().create_optimizer(model)

    def push_to_hub(self, *_, **__):
        self.note("push_to_hub")


class Look(TrainerCallback):
    """What a callback is told, and what it may change."""

    def __init__(self):
        self.loaders, self.due = [], []

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **_):
        self.loaders.append(train_dataloader)

    def on_step_end(self, args, state, control, **_):
        self.due.append(control.should_log)

    def on_log(self, args, state, control, **_):
        control.should_log = True  # on_log's caller has the last word


def make(folder, model=None, **options):
    model = model or Tiny()
    usual = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "report_to": "none"}
    usual |= {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 2, "learning_rate": 0.1}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rows = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([1.0])} for i in range(8)]
    made = {"model": model, "train_dataset": rows, "eval_dataset": rows, "optimizers": (optimizer, None)}
    return Recording(**made, args=TrainingArguments(str(folder), **(usual | options)))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A plain Trainer that trains two steps, evaluates in each, and has all of its private methods recorded."""
    folder = tmp_path_factory.mktemp("upstream")
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    run = make(folder, push_to_hub=True, hub_strategy="every_save", gradient_accumulation_steps=2, **best)
    run.loss_is_scaled_for_ga = False
    look = Look()
    run.add_callback(look)
    given = run.optimizer
    run.train()
    return SimpleNamespace(run=run, look=look, folder=folder, given=given)


# ---------------------------------------------------------------------- the trainer's overrides


def test_every_argument_of_trainer_is_taken_or_refused_by_name():
    upstream = set(inspect.signature(Trainer).parameters)
    mine = {name for name in inspect.signature(UnlearningTrainer).parameters if name != "unsupported"}
    assert upstream - mine == INSTEAD.keys(), "give what is new a place in the constructor, or in refusals.INSTEAD"
    assert INSTEAD.keys() <= upstream


def test_every_overridden_method_is_still_there_and_takes_what_trainer_passes():
    overridden = [
        (kind, name)
        for kind in (UnlearningTrainer, SavingTrainer)
        for name, held in vars(kind).items()
        if inspect.isfunction(held) and name != "__init__" and hasattr(Trainer, name)
    ]
    names = {name for _, name in overridden}
    private = {"_load_from_checkpoint", "_load_best_model", "_push_from_checkpoint", "_save"}
    assert private <= names and {name for name in names if name.startswith("_")} == private
    for kind, name in overridden:
        theirs, mine = (inspect.signature(getattr(one, name)).parameters for one in (Trainer, kind))
        extra = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in mine.values())
        assert extra or theirs.keys() <= mine.keys(), f"{name} has new parameters {theirs.keys() - mine.keys()}"
        positions = [one for one in theirs if one in mine and mine[one].kind is not inspect.Parameter.VAR_KEYWORD]
        assert positions == [one for one in mine if one in positions], f"{name} has its parameters in another order"


def test_save_writes_all_that_a_checkpoint_and_a_result_hold_of_model_and_arguments(ran, tmp_path):
    """``_save``: with it replaced there are no weights and no ``training_args.bin``. It makes the folder too."""
    assert ran.run.of("_save") == [(str(ran.folder / f"checkpoint-{step}"),) for step in (1, 2)]
    assert ran.run.folders[0] == ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
    before = len(ran.run.calls)
    ran.run.save_model(str(tmp_path), _internal_call=True)
    assert ran.run.calls[before:] == [("_save", str(tmp_path))] and not os.listdir(tmp_path)
    ran.run.save_model(str(tmp_path))
    assert ran.run.calls[-1] == ("push_to_hub",), "without _internal_call it pushes"


def test_push_from_checkpoint_is_all_that_pushes_in_training(ran):
    """``_push_from_checkpoint``: called after each checkpoint is whole; with it replaced nothing is pushed."""
    assert ran.run.of("_push_from_checkpoint") == [(str(ran.folder / f"checkpoint-{step}"),) for step in (1, 2)]
    assert all(TRAINER_STATE_NAME in names for names in ran.run.folders)


def test_init_hf_repo_is_called_by_the_constructor_before_any_work(ran):
    assert ran.run.calls[0] == ("init_hf_repo",) and ran.run.hub_model_id == "user/name"


def test_load_best_model_is_called_at_the_end_with_the_best_checkpoint_in_the_state(ran):
    """``_load_best_model``: with it replaced the weights stay those of the last step."""
    (best,) = ran.run.of("_load_best_model")
    assert Path(best[0]).parent == ran.folder and ran.run.calls[-1][0] != "_load_from_checkpoint"


def test_load_from_checkpoint_is_all_that_restores_weights_on_resuming(ran):
    """``_load_from_checkpoint``: called once with the folder, before optimizer and state are read from it."""
    checkpoint = str(ran.folder / "checkpoint-1")
    resumed = make(ran.folder, gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.of("_load_from_checkpoint") == [(checkpoint, None)]
    assert resumed.state.global_step == 2 and len(resumed.of("training_step")) == 2, "one step more, of two batches"


def test_the_state_is_written_last_into_a_checkpoint(tmp_path):
    """So a checkpoint without it is not whole."""
    run = make(tmp_path, max_steps=1)
    save = run._save_optimizer_and_scheduler
    seen = []
    run._save_optimizer_and_scheduler = lambda folder: (save(folder), seen.append(sorted(os.listdir(folder))))
    run.train()
    assert seen == [["optimizer.pt", "scheduler.pt"]]
    assert TRAINER_STATE_NAME in os.listdir(tmp_path / "checkpoint-1")


def test_prepare_inputs_moves_a_batch_and_keeps_its_names(ran):
    """``_prepare_inputs``."""
    given, prepared = ran.run.of("_prepare_inputs")[0]
    assert given.keys() == prepared.keys() == {"x", "labels"}
    assert all(tensor.device == ran.run.args.device for tensor in prepared.values())


def test_a_loss_that_is_not_scaled_for_accumulation_is_divided_by_its_number_of_batches(ran):
    """``loss_is_scaled_for_ga``: None unless a subclass says so; False for a mean over the batch."""
    assert Trainer.loss_is_scaled_for_ga is None
    computed = [loss for (loss,) in ran.run.of("compute_loss") if not isinstance(loss, tuple)]
    steps = [loss for (loss,) in ran.run.of("training_step")]
    assert len(computed) == len(steps) == 4
    torch.testing.assert_close(torch.stack(steps), torch.stack(computed).detach() / 2)


def test_an_evaluation_in_training_says_that_it_is_in_one(ran):
    """``is_in_train``; and the model that is handed over is the model itself, where one process runs."""
    inside = [call for call in ran.run.of("prediction_step") if call[0]]
    assert inside and all(model is ran.run.model for _, model in inside) and not ran.run.is_in_train


def test_compute_metrics_is_given_the_inputs_by_the_model_s_main_input_name_after_the_prediction_step(tmp_path):
    """So the step may put them there."""
    seen = {}
    model = Tiny()
    model.main_input_name = "added"
    run = make(tmp_path, model, include_for_metrics=["inputs"])
    run.compute_metrics = lambda prediction: seen.update(inputs=prediction.inputs) or {}
    run.evaluate()
    assert seen["inputs"].reshape(-1).tolist() == [float(i) + 1 for i in range(8)]


def test_metrics_are_asked_of_the_attribute_compute_metrics_with_whole_arrays(tmp_path):
    run, seen = make(tmp_path), {}
    run.compute_metrics = lambda prediction: seen.update(vars(prediction)) or {"mine": 1.0}
    assert run.evaluate()["eval_mine"] == 1.0
    assert seen["predictions"].shape == seen["label_ids"].shape == (8, 1)


def test_the_training_loader_is_taken_as_it_is(ran):
    """What ``get_train_dataloader`` returns is not wrapped once more, which would share it out twice; callbacks get
    it."""
    assert ran.look.loaders == [ran.run.loader] * len(ran.look.loaders) and ran.look.loaders


def test_writing_a_log_clears_that_one_is_due(ran):
    """``control.should_log``, which ``inputs.log_of`` puts back for a log in the middle of a step."""
    assert ran.look.due == [True, True]
    ran.run.control.should_log = True
    ran.run.log({"mine": 1.0})
    assert ran.run.control.should_log is True, "a callback's on_log may set it again"
    ran.run.remove_callback(ran.look)
    ran.run.log({"mine": 1.0})
    assert ran.run.control.should_log is False
    ran.run.add_callback(ran.look)


# ---------------------------------------------------------------------- accelerate


def test_an_optimizer_that_was_given_is_wrapped_once_it_runs_and_keeps_its_hooks(ran):
    """``AcceleratedOptimizer``, by which a used one is known; ``create_optimizer`` is called for a given one too."""
    assert ran.run.of("create_optimizer") == [(ran.given,)]
    assert isinstance(ran.run.optimizer, AcceleratedOptimizer) and ran.run.optimizer.optimizer is ran.given
    calls = []
    ran.given.register_step_pre_hook(lambda *_: calls.append("before"))
    ran.given.register_step_post_hook(lambda *_: calls.append("after"))
    ran.run.optimizer.step()
    assert calls == ["before", "after"]


def test_trainer_asks_mixed_precision_of_the_arguments_once_they_are_made(tmp_path, monkeypatch):
    """``args.mixed_precision``, by which UnlearningConfig keeps accelerate from wrapping the model in autocast."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert TrainingArguments(str(tmp_path), use_cpu=True).mixed_precision == "bf16"
    args = UnlearningConfig(str(tmp_path), use_cpu=True)
    assert args.bf16 and make_with(args).accelerator.mixed_precision == "no"


def make_with(args):
    return Trainer(model=Tiny(), args=args)


def test_autocast_is_entered_through_a_method_of_the_trainer(tmp_path):
    """``autocast_smart_context_manager``, around the loss of a training step alone."""
    inside = []
    run = trainer(tmp_path, method="random_labels", max_steps=1, bf16=True)
    run.model.register_forward_pre_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    run.train()
    assert inside.count(True) == 1 and inside[-1:] == [True], "the training step; what was measured before it is not"
    inside.clear()
    run.predict(images([0, 1, 2]))
    assert inside and not any(inside)


# ---------------------------------------------------------------------- the parser


@dataclasses.dataclass
class Options:
    many: list[str] | None = option(None, "Several.", metavar="NAME")
    flag: bool = option(False, "On.")
    state: bool | None = option(None, "On, off or as it is.")
    either: str | bool = dataclasses.field(default="no", metadata={"help": "A word, or on."})


def test_the_parser_shows_the_help_of_a_field_s_metadata_as_the_object_that_it_is():
    """A subclass of str, which carries what else is known of the option."""
    actions = {action.dest: action for action in HfArgumentParser(Options)._actions}
    assert isinstance(actions["many"].help, Option) and actions["many"].help.metavar == "NAME"
    assert actions["flag"].help == "On."


def test_the_parser_is_argparse_s_and_knows_its_options_by_their_words():
    """``_actions``, ``_option_string_actions`` and the shape of flags."""
    parser = HfArgumentParser(Options)
    assert isinstance(parser, argparse.ArgumentParser)
    assert parser._option_string_actions["--flag"] in parser._actions
    assert parser._option_string_actions["--flag"].nargs == "?"
    assert parser._option_string_actions["--state"].nargs is None, "cli/parsing.py makes it take no value too"
    assert parser._option_string_actions["--many"].nargs == "+"


def test_the_parser_reads_no_as_false_of_an_option_that_takes_both():
    """So False stands for "no" among the options that are refused."""
    (options,) = HfArgumentParser(Options).parse_args_into_dataclasses([])
    assert options.either is False
    assert UnlearningConfig(include_num_input_tokens_seen=False).include_num_input_tokens_seen == "no"


def test_arguments_are_written_without_the_token_s_text():
    """``to_dict`` puts a placeholder in its place, which ``UnlearningConfig.to_dict`` leaves out."""
    args = TrainingArguments("x", use_cpu=True, hub_token="hf_secret")
    assert args.to_dict()["hub_token"] == "<HUB_TOKEN>"


def test_the_models_of_the_hub_name_their_main_input():
    assert tiny_model().main_input_name == "pixel_values"
