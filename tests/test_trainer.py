"""The promises of a whole run, on tiny models with random weights; and a Trainer in every other respect."""

import copy
import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tiny import config, images, tiny_model, tiny_processor, trainer
from tiny_runs import leak
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback
from transformers.integrations import integration_utils

from zspag_hf import UnlearningError, UnlearningReport, UnlearningTrainer
from zspag_hf.data.labels import distinct
from zspag_hf.methods.salun import SalUn
from zspag_hf.methods.zspag import ZSPAG
from zspag_hf.methods.zspag_paper import ZSPAGPaper
from zspag_hf.pipeline.constraint import HardConstraint, SoftConstraint
from zspag_hf.trainer import saving
from zspag_hf.trainer.publishing import copy_public
from zspag_hf.trainer.refusals import INSTEAD, check_launch, check_processes

FIXED = {"method": "zspag_paper", "proxy_policy": "quota", "max_steps": 6, "per_device_train_batch_size": 4}
ROUGH = {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "weight_decay": 0.1, "learning_rate": 0.05}
QUICK = {"method": "random_labels", "max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4}
TEST = images([0, 1, 2, 3, 4] * 4, seed=5)
OTHER = images([4, 3, 2, 1] * 3, seed=6)


def optimizer_for(model, kind):
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(other[key], value) for key, value in one.items())


def untouched(run, before):
    """Every parameter and buffer that is no constrained weight is bit-identical."""
    constrained = {f"{name}.weight" for name in run.run.layers}
    after = run.model.state_dict()
    return same({key: value for key, value in before.items() if key not in constrained}, after)


# ---------------------------------------------------------------------- the constraint, after whole runs

EITHER = [pytest.param("vit", "sgd"), pytest.param("resnet", "adamw", marks=pytest.mark.slow)]
BOTH = [*EITHER, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("vit", "adamw"), ("resnet", "sgd")))]


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_hard_form_leaves_the_proxies_subspace_alone_after_a_whole_run(tmp_path, family, kind):
    for merge, threshold in (("gram", 0.9), ("truncated", 0.9), ("gpm", 0.5)):  # gpm's fills 16 inputs at more
        model = tiny_model(family)
        before = state(model)
        options = {"energy_threshold": threshold, "subspace_merge": merge, **ROUGH}
        run = trainer(tmp_path / merge, model=model, optimizers=(optimizer_for(model, kind), None), **FIXED, **options)
        run.train()
        assert isinstance(run.run.plan.constraint, HardConstraint)
        moved = 0
        for layer, group, u, _, q in run.run.plan.constraint.parts:
            now = layer.matrix(layer.weight.detach()).double()[group]
            w0 = layer.matrix(run.original[f"{layer.name}.weight"]).double()[group]
            basis = torch.linalg.qr(q.double(), mode="complete").Q[:, q.shape[1] :] if u is None else u.double()
            change = now - w0
            if change.norm() > 1e-6:
                assert (change @ basis).norm() / change.norm() < 1e-5, (merge, layer.name)
                moved += 1
        assert moved > len(run.run.layers) / 2
        assert untouched(run, before)


@pytest.mark.parametrize(("family", "kind"), BOTH)
def test_soft_form_is_the_sum_of_the_damped_updates(tmp_path, family, kind):
    model = tiny_model(family)
    before = state(model)
    optimizer = optimizer_for(model, kind)
    held, raw = {}, {}

    def remember(*_):
        held.update({name: p.detach().clone() for name, p in model.named_parameters()})

    def add(*_):
        for name, p in model.named_parameters():
            raw[name] = raw.get(name, 0) + (p.detach() - held[name]).double()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(add)  # registered first, so it sees the step before it is damped
    options = {"constraint": "soft", "subspace_merge": "gram", **ROUGH}
    run = trainer(tmp_path, model=model, optimizers=(optimizer, None), **FIXED, **options)
    run.train()
    assert isinstance(run.run.plan.constraint, SoftConstraint)
    for name, layer in run.run.layers.items():
        change = layer.matrix((layer.weight.detach() - run.original[f"{name}.weight"]).double())
        expected = layer.matrix(raw[f"{name}.weight"]) @ run.run.plan.constraint.dampings[name].double()
        torch.testing.assert_close(change, expected, atol=2e-6, rtol=1e-4)
    assert untouched(run, before)


def test_bf16_leaves_the_hard_constraint_exact(tmp_path):
    run = trainer(tmp_path, **FIXED, energy_threshold=0.9, learning_rate=0.05, subspace_merge="gram", bf16=True)
    run.train()
    assert leak(run) < 1e-5


@pytest.mark.slow
def test_bf16_rounds_training_steps_and_nothing_else(tmp_path):
    """What the run chooses by and is judged by stays in float32."""
    plain, half = (trainer(tmp_path / name, max_steps=10, test=TEST, bf16=name == "half") for name in ("plain", "half"))
    before = [run.evaluate()["eval_loss"] for run in (plain, half)]
    assert before[0] == before[1]
    for run in (plain, half):
        run.train()
    assert plain.report.curve[0] == half.report.curve[0] and plain.report.curve[1] != half.report.curve[1]
    assert half.run.classifier(torch.rand(2, 3, 8, 8)).dtype == torch.float32
    logits = half.run.classifier.predict(half.run.forget.pixels)
    again = AutoModelForImageClassification.from_config(half.model.config).eval()
    again.load_state_dict(half.model.state_dict())
    pixels = half.run.classifier.normalize(half.run.forget.pixels.float() / 255)
    torch.testing.assert_close(logits, again(pixel_values=pixels).logits.detach())


# ---------------------------------------------------------------------- the default run, and others


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The default run, trained; the options and the method that it was given, and the probability that it began at."""
    folder = tmp_path_factory.mktemp("default")
    args, method = config(folder, max_steps=20, logging_steps=5), make_default()
    run = UnlearningTrainer(
        tiny_model(), args, images([2] * 20), TEST, method=method, processing_class=tiny_processor()
    )
    before = run.run.classifier.predict(run.run.forget.pixels).softmax(1)[:, 2].mean()
    run.train()
    return SimpleNamespace(run=run, args=args, method=method, before=before, weights=state(run.model))


def make_default():
    return ZSPAG(proxies_per_class=4, attack_eps=0.5)


class TestDefaultRun:
    def test_it_lowers_the_forgotten_probability_within_the_proxy_budget(self, default):
        run = default.run
        after = run.run.classifier.predict(run.run.forget.pixels).softmax(1)[:, 2].mean()
        choice = run.report.choice
        assert after < default.before
        assert choice["whole_proxy_kl"] <= choice["proxy_budget"]
        assert run.report.curve[0]["step"] == 0 and run.report.curve[-1]["step"] == choice["steps"]

    def test_what_it_chose_stands_in_its_own_copies_and_in_the_report_alone(self, default):
        run, choice = default.run, default.run.report.choice
        assert run.args.learning_rate == run.method.learning_rate == choice["learning_rate"] > 0
        assert run.method.energy_threshold == choice["energy_threshold"] > 0
        assert default.args == config(Path(default.args.output_dir).parent, max_steps=20, logging_steps=5)
        assert default.method == make_default()

    def test_drift_and_change_are_reported_for_every_layer(self, default):
        run = default.run
        assert [layer["name"] for layer in run.report.layers] == list(run.run.layers)
        for layer in run.report.layers:
            name = layer["name"]
            moved = not torch.equal(run.run.layers[name].weight, run.original[f"{name}.weight"])
            assert moved == (layer["weight_change"] > 0)
            assert layer["proxy_drift"] >= 0 and 0 <= layer["free_forget_energy"] <= 1

    def test_the_choice_is_what_was_read_last(self, default):
        assert default.run.report.choice["target_js"] == default.run.report.curve[-1]["target_js"]

    def test_the_log_has_loss_and_learning_rate_as_any_trainer_s(self, default):
        steps = [entry for entry in default.run.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in steps] == [5, 10, 15, 20]
        assert all(np.isfinite(entry["loss"]) and entry["learning_rate"] > 0 for entry in steps)
        assert any("train_loss" in entry for entry in default.run.state.log_history)

    def test_the_report_names_what_was_given(self, default):
        report = default.run.report
        assert report.given == {
            **{"max_steps": 20, "logging_steps": 5, "use_cpu": True, "forget_classes": ["cat"]},
            **{"proxies_per_class": 4, "attack_eps": 0.5},
        }
        assert report.method == "zspag" and report.method_options["proxies_per_class"] == 4
        assert report.config["max_steps"] == 20 and report.zero_shot

    def test_a_saved_model_reloads_equal_beside_its_processor_and_report(self, default, tmp_path):
        default.run.save_model(str(tmp_path))
        assert sorted(os.listdir(tmp_path)) == [
            ".lock",
            "README.md",
            "_request.json",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "unlearning_report.json",
        ]
        again = AutoModelForImageClassification.from_pretrained(tmp_path)
        AutoImageProcessor.from_pretrained(tmp_path)
        assert same(default.weights, again.state_dict())
        report = UnlearningReport.load(str(tmp_path))
        assert dataclasses.asdict(report) == json.loads(json.dumps(dataclasses.asdict(default.run.report)))
        assert report.forget_classes == [{"id": 2, "label": "cat"}]
        text = Path(tmp_path, "unlearning_report.json").read_text()
        assert str(tmp_path) not in text and default.args.output_dir not in text, "no local path in the report"

    def test_neither_images_nor_proxies_reach_the_output(self, default, tmp_path):
        run = default.run
        run.save_model(str(tmp_path))
        needles = [image.numpy().tobytes() for image in run.run.forget.pixels]
        needles += [proxy.numpy().tobytes() for proxy in run.run.plan.proxies.pixels]
        for name in os.listdir(tmp_path):
            data = Path(tmp_path, name).read_bytes()
            assert not any(needle in data for needle in needles), name
        assert not any(needle in pickle.dumps(run.args) for needle in needles)

    def test_a_failed_save_leaves_the_good_model_whole(self, default, tmp_path, monkeypatch):
        folder = str(tmp_path)
        default.run.save_model(folder)
        before = {name: Path(folder, name).read_bytes() for name in os.listdir(folder)}

        def broken(*_, **__):
            next(Path(folder).glob("_part-*")).joinpath("x").touch()
            raise OSError("no space left on device")

        monkeypatch.setattr(default.run.processing_class, "save_pretrained", broken)
        with pytest.raises(OSError, match="no space"):
            default.run.save_model(folder)
        assert {name: Path(folder, name).read_bytes() for name in os.listdir(folder)} == before

    @pytest.mark.slow
    def test_two_runs_with_one_seed_are_equal(self, default, tmp_path):
        again = trainer(tmp_path, forget=images([2] * 20), max_steps=20, logging_steps=5)
        again.train()
        assert same(default.weights, again.model.state_dict())


def test_scope_head_moves_only_the_head(tmp_path):
    run = trainer(tmp_path, scope="head")
    run.train()
    head = run.run.head
    assert head == "classifier"
    for name, layer in run.run.layers.items():
        assert torch.equal(layer.weight, run.original[f"{name}.weight"]) == (name != head), name
    assert run.state.global_step == 1 and run.report.choice["whole_network_steps"] == 0


def test_several_classes_are_forgotten_at_once_by_the_paper_s_form_in_its_steps(tmp_path):
    run = trainer(tmp_path, method="zspag_paper", forget=images([1, 2] * 8), forget_classes=["cat", "bee"])
    run.train()
    assert run.run.forget_ids == [1, 2]
    assert (run.run.plan.targets[:, [1, 2]] == 0).all()
    assert set(run.report.proxies["per_class"]) == {"ant", "dog", "elk"}
    assert run.report.choice is None and run.state.global_step == 160 and run.args.learning_rate == 0.12
    assert all(layer["rank"] >= 1 for layer in run.report.layers)


@pytest.mark.slow
def test_a_second_training_starts_afresh_and_leaves_no_hooks_behind(tmp_path):
    run = trainer(tmp_path, max_steps=20)
    run.train()
    first = run.constraint_hooks[0]
    weights = state(run.model)
    run.train()
    assert first.id not in run.optimizer.optimizer._optimizer_step_pre_hooks
    assert 0 < run.report.choice["steps"] <= 20 and run.report.choice["learning_rate"] > 0
    assert not same(weights, run.model.state_dict()), "it goes on from the weights of the first"
    assert sum(isinstance(one, type(run.run.plan.callbacks[0])) for one in run.callback_handler.callbacks) == 0


class TestRecipe:
    """Of learning rate, epochs, optimizer and weight decay: the config's, or else the method's own."""

    def test_the_method_s_own(self, tmp_path):
        run = trainer(tmp_path, method="random_labels")
        held = run.completed_method
        assert (run.args.learning_rate, run.args.num_train_epochs) == (held.learning_rate, held.num_train_epochs)
        assert run.args.optim == held.optim and run.given.keys() == {"use_cpu", "forget_classes"}

    def test_the_config_s_goes_first_and_into_the_method_s_copy(self, tmp_path):
        method = ZSPAGPaper()
        run = trainer(tmp_path, method=method, learning_rate=0.5, optim="adamw_torch", num_train_epochs=2)
        assert run.args.learning_rate == run.completed_method.learning_rate == 0.5
        assert run.args.num_train_epochs == run.completed_method.num_train_epochs == 2
        assert run.args.optim == run.completed_method.optim == "adamw_torch"
        assert method == ZSPAGPaper()

    def test_the_method_s_where_it_was_given_there(self, tmp_path):
        run = trainer(tmp_path, method=SalUn(learning_rate=0.25))
        assert run.args.learning_rate == 0.25 and run.given["learning_rate"] == 0.25

    def test_a_method_by_import_path(self, tmp_path):
        run = trainer(tmp_path, method="zspag_hf.methods.salun:SalUn")
        assert isinstance(run.method, SalUn) and run.method_name == "salun"


# ---------------------------------------------------------------------- a Trainer in every other respect


class Watch(TrainerCallback):
    """Writes down what it is told of."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **_):
        self.seen.append(state.global_step)

    def on_log(self, args, state, control, logs, **_):
        self.seen.append(set(logs))

    def on_evaluate(self, args, state, control, metrics, **_):
        self.seen.append(metrics)

    def on_push_begin(self, *_, **__):
        self.seen.append("push")

    def of(self, kind):
        return [one for one in self.seen if isinstance(one, kind)]


def counted(prediction):
    """The user's own metric: over whole logits and labels."""
    assert prediction.predictions.shape == (len(prediction.label_ids), 5)
    return {"seen": float(len(prediction.label_ids)), "top": float(prediction.predictions.max())}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run with everything that a Trainer takes beside it, evaluated after each of two epochs on two data sets."""
    watch, reports = Watch(), []
    reporting = type("Reporting", (Watch,), {"__init__": lambda self: (Watch.__init__(self), reports.append(self))[0]})
    args = config(
        tmp_path_factory.mktemp("watched"),
        **{"eval_strategy": "epoch", "num_train_epochs": 2, "learning_rate": 0.01, "logging_steps": 1},
        **{"per_device_train_batch_size": 4, "report_to": "mine"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mine", reporting)
        run = UnlearningTrainer(
            tiny_model(),
            args,
            images([2] * 8),
            {"first": TEST, "second": OTHER},
            method="random_labels",
            processing_class=tiny_processor(),
            compute_metrics=counted,
            callbacks=[watch],
        )
    first = run.run.classifier.predict(pixels_of(run.eval_dataset["first"]))
    by_name, handed = run.evaluate(eval_dataset="second"), run.evaluate(OTHER, metric_key_prefix="mine")
    watch.seen.clear()
    output = run.train()
    during = list(watch.seen)
    return SimpleNamespace(**{name: value for name, value in locals().items() if name not in ("patch", "args")})


def pixels_of(dataset):
    return torch.stack([item["pixels"] for item in dataset.__getitems__(range(len(dataset)))])


class TestTrainer:
    def test_callbacks_see_the_steps_and_the_evaluations(self, watched):
        steps = [one for one in watched.during if isinstance(one, int)]
        assert steps == [1, 2, 3, 4] and watched.output.global_step == watched.run.state.global_step == 4
        evaluations = [one for one in watched.during if isinstance(one, dict)]
        kinds = [{key.split("_")[1] for key in one if key.startswith("eval_")} for one in evaluations]
        assert kinds == [{"first"}, {"second"}] * 2

    def test_report_to_is_told_all_that_is_logged(self, watched):
        (report,) = watched.reports
        assert watched.watch.of(set) and report.of(set)[-len(watched.watch.of(set)) :] == watched.watch.of(set)
        assert {"loss", "learning_rate", "grad_norm", "epoch"} in report.of(set)

    def test_the_log_has_loss_and_learning_rate(self, watched):
        steps = [entry for entry in watched.run.state.log_history if "loss" in entry]
        assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
        assert {entry["learning_rate"] for entry in steps} == {0.01}
        assert watched.output.training_loss == pytest.approx(sum(entry["loss"] for entry in steps) / 4)
        assert watched.output.metrics["train_loss"] == watched.output.training_loss

    def test_a_data_set_by_its_name_or_another_one(self, watched):
        assert watched.by_name["eval_seen"] == watched.handed["mine_seen"] == 12
        assert watched.handed["mine_acc_rt"] == watched.by_name["eval_acc_rt"]
        with pytest.raises(UnlearningError, match="not str: pass one split"):
            watched.run.evaluate(eval_dataset="third")

    def test_predict_reads_a_data_set_as_evaluate_does_and_the_user_s_metrics_see_whole_logits(self, watched):
        output = watched.run.predict(TEST)
        assert output.predictions.shape == (20, 5) and output.label_ids.tolist() == TEST["label"][:]
        assert {"test_acc_rt", "test_seen", "test_loss"} <= output.metrics.keys()
        assert output.metrics["test_top"] == pytest.approx(float(output.predictions.max()))
        right = (output.predictions.argmax(1) == output.label_ids)[output.label_ids != 2]
        assert output.metrics["test_acc_rt_micro"] == pytest.approx(right.mean())

    def test_metrics_and_state_are_saved_as_any_trainer_s(self, watched):
        run = watched.run
        run.save_metrics("eval", {"eval_acc_rt": 0.5})
        run.save_state()
        folder = Path(run.args.output_dir)
        assert json.loads((folder / "all_results.json").read_text())["eval_acc_rt"] == 0.5
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 4

    def test_a_card_says_what_it_is_told(self, watched):
        run = watched.run
        run.create_model_card(
            language="de",
            license="mit",
            tags=["mine", "machine-unlearning"],
            model_name="forgetful",
            finetuned_from="user/base",
            dataset="user/data",
        )
        data = ModelCard.load(Path(run.args.output_dir, "README.md")).data
        assert (data.language, data.license) == ("de", "mit")
        assert (data.base_model, data.datasets) == ("user/base", ["user/data"])
        assert "mine" in data.tags and data.tags.count("machine-unlearning") == 1
        run.create_model_card(tags="one", dataset_tags="tag", dataset="user/data")
        data = ModelCard.load(Path(run.args.output_dir, "README.md")).data
        assert "one" in data.tags and data.datasets == ["tag"] and data.license is None
        with pytest.raises(TypeError, match="colour"):
            run.create_model_card(colour="red")

    def test_a_push_takes_the_card_s_arguments_and_its_own(self, watched, tmp_path, monkeypatch):
        pushed, before = {}, len(watched.watch.seen)

        def push(folder, repo_id, card, **options):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            copy_public(folder, str(tmp_path), repo_id, card)
            pushed.update(options, repo_id=repo_id)
            return "the commit"

        monkeypatch.setattr(saving, "push_folder", push)
        monkeypatch.setattr(saving, "full_id", lambda name, token: f"user/{name}")
        commit = watched.run.push_to_hub("a message", token="hf_x", private=True, license="mit", tags="mine")
        assert commit == "the commit" and pushed["repo_id"] == "user/out"
        assert (pushed["commit_message"], pushed["token"], pushed["private"]) == ("a message", "hf_x", True)
        assert (pushed["revision"], pushed["create_pr"]) == (None, False)
        data = ModelCard.load(tmp_path / "README.md").data
        assert data.license == "mit" and "mine" in data.tags
        assert watched.watch.seen[before:] == ["push"], "callbacks are told"
        watched.run.push_to_hub()
        assert pushed["commit_message"] == "Forget cat"

    def test_several_data_sets_have_metrics_by_name_and_the_report_is_on_the_first(self, watched):
        """And tells of the original, the masked, the unlearned and the retrained model."""
        run = watched.run
        metrics = run.evaluate(retrained=tiny_model())
        for name, count in (("first", 20), ("second", 12)):
            own = {"acc_rt", "acc_ut", "acc_rt_micro", "acc_ut_micro", "acc_cat", "loss", "runtime", "seen", "top"}
            assert {f"eval_{name}_{key}" for key in own} <= metrics.keys()
            assert metrics[f"eval_{name}_seen"] == count
        models, held = run.report.models, run.report.images
        assert (held["test_retained"], held["test_forgotten"]) == (16, 4)
        labels = torch.tensor(TEST["label"][:])
        right = (watched.first.argmax(1) == labels).float()
        assert models["original"]["acc_rt_micro"] == pytest.approx(float(right[labels != 2].mean()))
        assert models["masked"]["acc_ut"] == 0
        assert models["unlearned"]["acc_rt"] == pytest.approx(metrics["eval_first_acc_rt"])
        assert models["retrained"]["js_ut"] is None, "no other retrained model to be measured from"
        assert models["original"]["js_ut"] < 1e-6, "the retrained model here is the original"

    @pytest.mark.parametrize("name", INSTEAD)
    def test_an_argument_that_means_nothing_here_is_refused_by_name(self, tmp_path, name):
        with pytest.raises(UnlearningError, match=f"^{name} has no meaning here: "):
            UnlearningTrainer(tiny_model(), config(tmp_path), images([2]), **{name: object()})

    def test_an_argument_that_trainer_has_not_either_is_a_type_error(self, tmp_path):
        with pytest.raises(TypeError, match="no argument 'forget_datasets'"):
            UnlearningTrainer(tiny_model(), config(tmp_path), images([2]), forget_datasets=images([2]))


def test_what_compute_metrics_asks_for_reaches_it(tmp_path):
    """``include_for_metrics`` and ``eval_accumulation_steps``, as in Trainer."""
    seen = {}
    run = UnlearningTrainer(
        tiny_model(),
        config(
            tmp_path, include_for_metrics=["inputs", "loss"], eval_accumulation_steps=1, per_device_eval_batch_size=8
        ),
        images([2] * 12),
        TEST,
        processing_class=tiny_processor(),
        compute_metrics=lambda prediction: seen.update(vars(prediction)) or {},
    )
    run.evaluate()
    assert seen["predictions"].shape == (20, 5) and len(seen["losses"]) == 20
    assert seen["inputs"].shape == (20, 3, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_best_checkpoint_comes_back(tmp_path, family):
    """By what the evaluations logged, and by the weights that the checkpoint holds."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    run = trainer(
        tmp_path,
        family,
        method="random_labels",
        test=TEST,
        **{"learning_rate": 0.02, "num_train_epochs": 4, "per_device_train_batch_size": 4},
        **{"eval_strategy": "epoch", "save_strategy": "epoch", **best},
    )
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.state.best_global_step < run.state.global_step, "or nothing had to come back"
    saved = AutoModelForImageClassification.from_pretrained(run.state.best_model_checkpoint).state_dict()
    assert same(saved, run.model.state_dict())
    assert run.evaluate()["eval_loss"] == min(losses)


@pytest.mark.slow
def test_transformers_own_debugging_tells_where_numbers_stop_being_finite(tmp_path, capsys):
    """As the error of a loss that is not finite says."""
    with pytest.raises(ValueError, match="inf/nan detected"):
        trainer(tmp_path, method="random_labels", learning_rate=1e30, debug="underflow_overflow").train()
    told = capsys.readouterr().out
    before = told[: told.index(" nan ")]
    assert before[before.rindex("vit.") :].startswith("vit.layers.0.layernorm_before LayerNorm")


def test_an_output_folder_with_an_earlier_result_of_the_request_is_taken(tmp_path):
    for seed in (0, 1):
        run = trainer(tmp_path, seed=seed, **QUICK)
        run.train()
        run.save_model()
    assert UnlearningReport.load(run.args.output_dir).seed == 1


# ---------------------------------------------------------------------- where it runs


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA", "TP"])
def test_a_backend_that_hides_the_weights_is_refused(kind):
    with pytest.raises(UnlearningError, match=f"the backend {kind} is not supported"):
        check_processes(SimpleNamespace(distributed_type=SimpleNamespace(value=kind)), 1)


def test_a_launch_is_taken_where_as_many_processes_run_as_were_asked_for(monkeypatch):
    alone, pair = SimpleNamespace(num_processes=1), SimpleNamespace(num_processes=2)
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    check_launch(alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(pair)
    with pytest.raises(UnlearningError, match="2 processes were asked for and 1 runs"):
        check_launch(alone)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UnlearningError, match="FSDP shards the weights"):
        check_launch(pair)


def test_classes_of_one_name_are_told_apart():
    assert distinct(["crane", "bee", "crane"]) == ["crane (0)", "bee", "crane (2)"]


def test_a_trainer_keeps_the_weights_as_they_came(tmp_path):
    """Buffers too, and each once."""
    model = tiny_model("resnet")
    before = copy.deepcopy(model)
    run = trainer(tmp_path, model=model, **QUICK)
    run.train()
    held = dict(before.named_parameters()) | dict(before.named_buffers())
    assert run.original.keys() == held.keys() and same(run.original, held)
