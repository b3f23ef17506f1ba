"""The promises of a whole run, on tiny models with random weights."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny import NAMES, config, images, tiny_model, tiny_processor, trainer
from tiny_runs import leak
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback

from zspag_hf import UnlearningError, UnlearningReport, UnlearningTrainer
from zspag_hf.data.labels import distinct
from zspag_hf.pipeline.constraint import HardConstraint, SoftConstraint
from zspag_hf.trainer.checks import check_backend, check_launch, check_parallel

FIXED = {"adaptive": False, "max_steps": 6, "per_device_train_batch_size": 4, "proxy_policy": "quota"}
ROUGH = {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "weight_decay": 0.1}


def optimizer_for(model, kind):
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)


def untouched(run, before):
    """Every parameter and buffer that is no constrained weight is bit-identical."""
    constrained = {f"{name}.weight" for name in run.layers}
    after = run.model.state_dict()
    return all(torch.equal(after[key], value) for key, value in before.items() if key not in constrained)


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("merge", ["gram", "literal"])
def test_hard_form_leaves_the_proxies_subspace_alone_after_a_whole_run(tmp_path, family, kind, merge):
    model = tiny_model(family)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    threshold = 0.9 if merge == "gram" else 0.5  # the union over classes fills layers of 16 inputs at more
    options = {"constraint": "hard", "energy_threshold": threshold, "subspace_merge": merge, "learning_rate": 0.05}
    run = trainer(tmp_path, model=model, optimizers=(optimizer_for(model, kind), None), **FIXED, **ROUGH, **options)
    run.train()
    assert isinstance(run.plan.constraint, HardConstraint)
    moved = 0
    for layer, group, u, _, q in run.plan.constraint.parts:
        now = layer.matrix(layer.weight.detach()).double()[group]
        w0 = layer.matrix(run.original_weights[layer.name]).double()[group]
        basis = torch.linalg.qr(q.double(), mode="complete").Q[:, q.shape[1] :] if u is None else u.double()
        change = now - w0
        if change.norm() > 1e-6:
            assert (change @ basis).norm() / change.norm() < 1e-5, layer.name
            moved += 1
    assert moved > len(run.layers) / 2
    assert untouched(run, before)


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_soft_form_is_the_sum_of_the_damped_updates(tmp_path, family, kind):
    model = tiny_model(family)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = optimizer_for(model, kind)
    held, raw = {}, {}

    def remember(*_):
        held.update({name: p.detach().clone() for name, p in model.named_parameters()})

    def add(*_):
        for name, p in model.named_parameters():
            raw[name] = raw.get(name, 0) + (p.detach() - held[name]).double()

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(add)  # registered first, so it sees the step before it is damped
    run = trainer(tmp_path, model=model, optimizers=(optimizer, None), **FIXED, **ROUGH, learning_rate=0.05)
    run.train()
    assert isinstance(run.plan.constraint, SoftConstraint)
    for name, layer in run.layers.items():
        change = layer.matrix((layer.weight.detach() - run.original_weights[name]).double())
        expected = layer.matrix(raw[f"{name}.weight"]) @ run.plan.constraint.dampings[name].double()
        torch.testing.assert_close(change, expected, atol=2e-6, rtol=1e-4)
    assert untouched(run, before)


def test_an_adaptive_run_lowers_the_forgotten_probability_within_the_proxy_budget(tmp_path):
    run = trainer(tmp_path, forget=images([2] * 20), max_steps=200)
    pixels = run.forget.pixels
    before = run.classifier.predict(pixels).softmax(1)[:, 2].mean()
    run.train()
    after = run.classifier.predict(pixels).softmax(1)[:, 2].mean()
    choice = run.report.choice
    assert after < before
    assert choice["proxy_kl"] <= choice["proxy_budget"]
    assert run.report.curve[0]["step"] == 0 and run.report.curve[-1]["step"] == choice["steps"]
    assert run.args.learning_rate == choice["learning_rate"]


def test_two_runs_with_one_seed_are_equal(tmp_path):
    weights = []
    for attempt in ("a", "b"):
        run = trainer(tmp_path / attempt, max_steps=40)
        run.train()
        weights.append(run.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("options", "drawn"), [({}, True), ({"feature_weight": 0.0}, False), ({"scope": "head"}, False)]
)
def test_the_report_says_whether_features_were_drawn(tmp_path, options, drawn):
    run = trainer(tmp_path, max_steps=10, **options)
    run.train()
    assert run.report.choice["features_drawn"] is drawn
    assert run.report.choice["target_js"] == run.report.curve[-1]["target_js"]


def test_a_second_training_starts_afresh_and_leaves_no_hooks_behind(tmp_path):
    run = trainer(tmp_path, max_steps=20)
    run.train()
    first = run.constraint_hooks[0]
    rate = run.report.choice["learning_rate"]
    run.train()
    assert first.id not in run.optimizer.optimizer._optimizer_step_pre_hooks
    assert run.report.choice["steps"] <= 20 and rate > 0


def test_the_callers_configuration_keeps_its_open_choices(tmp_path):
    options = config(tmp_path, max_steps=10)
    run = UnlearningTrainer(tiny_model(), options, images([2] * 12), processing_class=tiny_processor())
    run.train()
    assert options.learning_rate is None and options.energy_threshold is None
    assert run.args.learning_rate > 0 and run.args.energy_threshold


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_resumed_fixed_run_equals_an_uninterrupted_one(tmp_path, family):
    options = {"constraint": "hard", "learning_rate": 0.02, "num_train_epochs": 4, "per_device_train_batch_size": 4}
    whole = trainer(tmp_path / "whole", family, **options)
    whole.train()
    parts = {**options, "save_strategy": "epoch"}
    first = trainer(tmp_path / "parts", family, **parts)
    first.train()
    checkpoint = sorted((tmp_path / "parts" / "out").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[1]
    second = trainer(tmp_path / "parts", family, **parts)
    second.train(resume_from_checkpoint=str(checkpoint))
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, atol=1e-6, rtol=0, msg=key)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_best_checkpoint_comes_back(tmp_path, family):
    """By what the evaluations logged, and by the weights that the checkpoint holds."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}
    run = trainer(
        tmp_path,
        family,
        test=images([0, 1, 2, 3, 4] * 4, seed=5),
        **{"constraint": "none", "adaptive": False, "learning_rate": 0.02, "num_train_epochs": 4},
        **{"eval_strategy": "epoch", "save_strategy": "epoch", "per_device_train_batch_size": 4, **best},
    )
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.state.best_global_step < run.state.global_step, "or nothing had to come back"
    saved = AutoModelForImageClassification.from_pretrained(run.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in run.model.state_dict().items())
    assert run.evaluate()["eval_loss"] == min(losses)


def test_bf16_rounds_training_steps_and_nothing_else(tmp_path):
    """Readings, scores and the constraint stay in float32, under accelerate's own setting too."""
    test = images([0, 1, 2, 3, 4] * 4, seed=5)
    plain, half = (trainer(tmp_path / name, max_steps=10, test=test, bf16=name == "half") for name in ("plain", "half"))
    before = [run.evaluate()["eval_loss"] for run in (plain, half)]
    assert before[0] == before[1]
    for run in (plain, half):
        run.train()
    assert plain.report.choice["probe"] == half.report.choice["probe"]
    assert plain.report.curve[0] == half.report.curve[0] and plain.report.curve[1] != half.report.curve[1]
    assert half.classifier(torch.rand(2, 3, 8, 8)).dtype == torch.float32
    logits = half.classifier.predict(half.forget.pixels)
    again = AutoModelForImageClassification.from_config(half.model.config).eval()
    again.load_state_dict(half.model.state_dict())
    pixels = half.classifier.normalize(half.forget.pixels.float() / 255)
    torch.testing.assert_close(logits, again(pixel_values=pixels).logits.detach())


def test_bf16_leaves_the_hard_constraint_exact(tmp_path):
    options = {"constraint": "hard", "energy_threshold": 0.9, "learning_rate": 0.05, "bf16": True}
    run = trainer(tmp_path, **FIXED, **options)
    run.train()
    assert leak(run) < 1e-5


def test_an_adaptive_run_makes_its_own_optimizer(tmp_path):
    model = tiny_model()
    with pytest.raises(UnlearningError, match="give adaptive=False with optimizers"):
        trainer(tmp_path, model=model, optimizers=(optimizer_for(model, "sgd"), None))


def test_predict_reads_a_data_set_as_evaluate_does(tmp_path):
    output = trainer(tmp_path).predict(images([0, 1, 2, 3]))
    assert output.predictions.shape == (4, 5) and output.label_ids.tolist() == [0, 1, 2, 3]
    assert "test_acc_rt" in output.metrics


def test_drift_and_change_are_reported_for_every_layer(tmp_path):
    run = trainer(tmp_path, max_steps=20)
    run.train()
    assert [layer["name"] for layer in run.report.layers] == list(run.layers)
    for layer in run.report.layers:
        moved = not torch.equal(run.layers[layer["name"]].weight, run.original_weights[layer["name"]])
        assert moved == (layer["weight_change"] > 0)
        assert layer["proxy_drift"] >= 0 and 0 <= layer["free_forget_energy"] <= 1


def test_scope_head_moves_only_the_forgotten_rows_of_the_head(tmp_path):
    run = trainer(tmp_path, scope="head", max_steps=40)
    run.train()
    assert run.head == "classifier"
    for name, layer in run.layers.items():
        same = torch.equal(layer.weight, run.original_weights[name])
        assert same == (name != run.head), name
    change = (run.layers[run.head].weight - run.original_weights[run.head]).abs().sum(1)
    assert change[2] > 0 and change[[0, 1, 3, 4]].eq(0).all()


def test_several_classes_are_forgotten_at_once(tmp_path):
    run = trainer(tmp_path, forget=images([1, 2] * 10), forget_classes=["cat", "bee"], max_steps=60)
    run.train()
    assert run.forget_ids == [1, 2]
    assert (run.plan.targets[:, [1, 2]] == 0).all()
    assert set(run.report.proxies["per_class"]) == {"ant", "dog", "elk"}


def test_the_paper_form_runs_with_fixed_rate_and_epochs(tmp_path):
    run = trainer(tmp_path, variant="paper", learning_rate=0.001)
    run.train()
    assert run.report.choice is None and run.state.epoch == 10
    assert all(layer["rank"] >= 1 for layer in run.report.layers)


def test_it_is_a_trainer(tmp_path):
    """Callbacks, logging, evaluation during training, saving and loading as any Trainer's."""
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics)

    options = {"eval_strategy": "epoch", "num_train_epochs": 2, "learning_rate": 0.01, "constraint": "hard"}
    run = UnlearningTrainer(
        tiny_model(),
        config(tmp_path, **options),
        images([2] * 8),
        images([0, 1, 2, 3, 4, 2]),
        processing_class=tiny_processor(),
        callbacks=[Watch()],
    )
    output = run.train()
    assert output.global_step == run.state.global_step == len([s for s in seen if isinstance(s, int)])
    metrics = [s for s in seen if isinstance(s, dict)]
    assert len(metrics) == 2 and {"eval_acc_rt", "eval_acc_ut", "eval_acc_cat", "eval_loss"} <= set(metrics[0])
    assert any("loss" in entry for entry in run.state.log_history) or run.state.log_history


def test_evaluate_reports_original_masked_unlearned_and_retrained(tmp_path):
    test = images([0, 1, 2, 3, 4] * 4, seed=5)
    run = trainer(tmp_path, test=test, max_steps=30)
    before = run.classifier.predict(torch.stack([item["pixels"] for item in run.eval_dataset.__getitems__(range(20))]))
    run.train()
    metrics = run.evaluate(retrained=tiny_model())
    models = run.report.models
    labels = torch.tensor(test["label"][:])
    right = (before.argmax(1) == labels).float()
    assert models["original"]["acc_rt_micro"] == pytest.approx(float(right[labels != 2].mean()))
    assert models["masked"]["acc_ut"] == 0
    assert models["unlearned"]["acc_rt"] == pytest.approx(metrics["eval_acc_rt"])
    assert models["retrained"]["js_ut"] is None, "no other retrained model to be measured from"
    assert models["original"]["js_ut"] < 1e-6, "the retrained model here is the original"


def test_evaluation_without_data_says_so(tmp_path):
    with pytest.raises(UnlearningError, match="pass eval_dataset"):
        trainer(tmp_path).evaluate()


def test_a_saved_model_reloads_equal_beside_its_processor_and_report(tmp_path):
    run = trainer(tmp_path, max_steps=20)
    run.train()
    run.save_model()
    folder = run.args.output_dir
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "_request.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "unlearning_report.json",
    ]
    again = AutoModelForImageClassification.from_pretrained(folder)
    AutoImageProcessor.from_pretrained(folder)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in run.model.state_dict().items())
    report = UnlearningReport.load(folder)
    assert report.forget_classes == [{"id": 2, "label": "cat"}] and report.schema_version == 3
    text = Path(folder, "unlearning_report.json").read_text()
    assert str(tmp_path) not in text, "no local path in the report"


def test_neither_images_nor_proxies_reach_the_output(tmp_path):
    run = trainer(tmp_path, max_steps=20)
    run.train()
    run.save_model()
    needles = [image.numpy().tobytes() for image in run.forget.pixels]
    needles += [proxy.numpy().tobytes() for proxy in run.plan.proxies.pixels]
    for name in os.listdir(run.args.output_dir):
        data = Path(run.args.output_dir, name).read_bytes()
        assert not any(needle in data for needle in needles), name
    assert not any(needle in pickle.dumps(run.args) for needle in needles)


def test_a_failed_save_leaves_the_good_model_whole(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=20)
    run.train()
    run.save_model()
    folder = run.args.output_dir
    before = {name: Path(folder, name).read_bytes() for name in os.listdir(folder)}

    def broken(*_, **__):
        next(Path(folder).glob("_part-*")).joinpath("x").touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(run.processing_class, "save_pretrained", broken)
    with pytest.raises(OSError, match="no space"):
        run.save_model()
    assert {name: Path(folder, name).read_bytes() for name in os.listdir(folder)} == before


# ---------------------------------------------------------------------- bad input


def test_no_such_model(tmp_path):
    with pytest.raises(UnlearningError, match="cannot load an image classifier from 'nowhere/at-all'"):
        UnlearningTrainer("nowhere/at-all", config(tmp_path), images([2]))
    with pytest.raises(UnlearningError, match="cannot load"):
        UnlearningTrainer(str(tmp_path), config(tmp_path), images([2]))


def test_a_model_object_needs_its_processor(tmp_path):
    with pytest.raises(UnlearningError, match="pass processing_class"):
        UnlearningTrainer(tiny_model(), config(tmp_path), images([2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_refused(tmp_path, dtype):
    with pytest.raises(UnlearningError, match=f"stored as {dtype}"):
        trainer(tmp_path, model=tiny_model().to(dtype))


def test_unknown_label_and_all_classes(tmp_path):
    with pytest.raises(UnlearningError, match="Did you mean 'cat'"):
        trainer(tmp_path, forget_classes=["cats"])
    with pytest.raises(UnlearningError, match="all 5 classes"):
        trainer(tmp_path, forget_classes=NAMES)


def test_labels_that_do_not_fit(tmp_path):
    with pytest.raises(UnlearningError, match="label_offset"):
        trainer(tmp_path, forget=images([0], names=["lynx"]))


def test_an_output_folder_with_another_model_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "out"
    tiny_model().save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UnlearningError, match="holds another model"):
        trainer(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_output_folder_with_another_request_is_refused(tmp_path):
    run = trainer(tmp_path, max_steps=10)
    run.train()
    run.save_model()
    with pytest.raises(UnlearningError, match=r"result of another request \(forget_classes .*'cat'.*'dog'"):
        trainer(tmp_path, forget=images([3] * 12), forget_classes=["dog"])


@pytest.mark.parametrize("text", ["{", '{"schema_version": 0}'])
def test_an_output_folder_with_an_unreadable_report_is_refused(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unlearning_report.json").write_text(text)
    with pytest.raises(UnlearningError, match="cannot read"):
        trainer(tmp_path)


def test_an_output_folder_with_an_earlier_result_is_taken(tmp_path):
    for _ in range(2):
        run = trainer(tmp_path, max_steps=10)
        run.train()
        run.save_model()


def test_too_few_images_to_judge_by(tmp_path):
    with pytest.raises(UnlearningError, match="forget_views=48"):
        trainer(tmp_path, forget=images([2])).train()


def test_a_loss_that_is_not_finite_stops_a_fixed_run_and_names_step_and_layer(tmp_path):
    message = (
        r"not finite at step 1: the output of its layer 'vit.layers.0.layernorm_before' is not. Lower learning_rate"
    )
    with pytest.raises(UnlearningError, match=message):
        trainer(tmp_path, constraint="none", adaptive=False, learning_rate=1e30, num_train_epochs=5).train()


def test_a_model_with_broken_weights_is_refused(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("nan")
    with pytest.raises(UnlearningError, match="not finite"):
        trainer(tmp_path, model=model)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_a_backend_that_hides_the_weights_is_refused(kind):
    from types import SimpleNamespace

    with pytest.raises(UnlearningError, match=f"the backend {kind} is not supported"):
        check_backend(SimpleNamespace(distributed_type=SimpleNamespace(value=kind)))


def test_a_launch_that_started_too_few_processes_is_refused(tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnlearningError, match="2 processes were asked for and 1 run"):
        check_launch(SimpleNamespace(num_processes=1))


def test_a_retrained_model_with_other_labels_is_refused(tmp_path):
    run = trainer(tmp_path, test=images([0, 2]), max_steps=10)
    run.train()
    with pytest.raises(UnlearningError, match="labels of a model to compare with differ"):
        run.evaluate(retrained=tiny_model(names=["a", "b", "c", "d", "e"]))


def test_a_request_that_leaves_one_class_is_refused(tmp_path):
    with pytest.raises(UnlearningError, match=r"would leave 1 of 2 classes"):
        trainer(tmp_path, model=tiny_model(names=["ant", "cat"]), forget=images([1, 1], names=["ant", "cat"]))


def test_one_process_with_several_gpus_is_refused():
    check_parallel(1)
    with pytest.raises(UnlearningError, match="one process sees 2 GPUs"):
        check_parallel(2)


def test_classes_of_one_name_are_told_apart():
    assert distinct(["crane", "bee", "crane"]) == ["crane (0)", "bee", "crane (2)"]
