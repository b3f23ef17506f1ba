"""Bad evaluations, results and jobs: what is compared, saved and published."""

import tempfile
from pathlib import Path

import PIL.Image
import torch
from errors_case import (
    CAT,
    TEST,
    Case,
    a_file,
    a_result,
    after_training,
    constant,
    evaluated,
    given_data,
    job,
    pictures,
    saved_data,
    untrained,
    without,
    writing,
)
from tiny import asked, images, tiny_model, tiny_processor, trainer

from zspag_hf import UnlearningReport
from zspag_hf.cli.jobs import BASELINES, Setting, run
from zspag_hf.data.request import proves
from zspag_hf.methods import METHODS
from zspag_hf.report.card import model_card
from zspag_hf.trainer.publishing import copy_public, push_folder


def request_for_images(folder, seed):
    return trainer(folder, forget=images([0, 1, 2], seed=seed), method="amun", forget_classes=None, max_steps=1)


def saved_request_for_images(folder):
    run = request_for_images(folder, seed=1)
    run.train()
    run.save_model()
    return folder


FEW = {name: Setting(method) for name, method in BASELINES["few"].items()}
BLANK = PIL.Image.new("RGB", (8, 8))


def blank_is_nan():
    """A model that divides by the contrast of its image."""
    model = tiny_model()

    def hook(_module, _inputs, kwargs, output):
        output.logits = output.logits / kwargs["pixel_values"].flatten(1).std(1, keepdim=True)

    model.register_forward_hook(hook, with_kwargs=True)
    return model


def evaluation_only(folder: Path) -> str:
    UnlearningReport("given", "base", [CAT], 10, 0).save(str(folder / "out"))
    return str(folder / "out")


def another_size(folder: Path) -> Path:
    processor = tiny_processor()
    processor.size = {"height": 16, "width": 16}
    tiny_model().save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def indexed(text: str):
    """A change: the weights are in parts, as this index says."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def linked(folder: Path) -> None:
    """A change: the weights lie elsewhere."""
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere")


def push_copied(out: str):
    """What a push does before it asks the Hub for anything but the user's name."""
    with tempfile.TemporaryDirectory() as public:
        copy_public(out, public, "user/out")


def push(repo_id="user/out", **options):
    return lambda out: push_folder(out, repo_id, **options)


def evaluate(**options):
    return lambda run: run.evaluate(**options)


EVALUATION = [
    Case("nothing to evaluate on", lambda folder: trainer(folder).evaluate(), "nothing to evaluate on", "eval_dataset"),
    Case("a level misspelt", evaluate(level="fulll"), "level='fulll'", "'full'", untrained),
    Case("a comparison too early", evaluate(retrained=tiny_model()), "with retrained models", "train()", untrained),
    Case("predict on nothing", lambda run: run.predict(None), "NoneType", "pass one split", untrained),
    Case(
        "retain data of a forgotten class",
        evaluate(retain=images([0, 2])),
        "first image 1",
        "keep only",
        after_training,
    ),
    Case(
        "no retained class to test",
        evaluate(eval_dataset=images([2])),
        "only 1 of forgotten",
        "test_dataset",
        after_training,
    ),
    Case("a row that is taken", evaluate(beside={"masked": tiny_model()}), "'masked'", "another name", after_training),
    Case("rows without names", evaluate(beside=[tiny_model()]), "not list", "name each model", after_training),
    Case("a row called 1", evaluate(beside={1: tiny_model()}), "names [1]", "name each model", after_training),
    Case(
        "other labels", evaluate(retrained=tiny_model(names=[*"abcde"])), "'a', 'b'", "config.id2label", after_training
    ),
    Case(
        "another image size",
        lambda folder: evaluated(retrained=str(folder / "model"))(folder),
        "'height': 16",
        "image processor",
        another_size,
    ),
    Case("a level misspelt, without a trainer", evaluated(level="fulll"), "level='fulll'", "'full'"),
    Case("a seed that is text", evaluated(seed="x"), "seed='x'", "is not a whole number"),
    Case("a class that the model lacks", evaluated(forget_classes="cot"), "'cot'", "Did you mean 'cat'"),
    Case(
        "a model with a mask",
        evaluated(beside={"hidden": constant(-torch.inf)}),
        "the hidden model's outputs",
        "no mask",
    ),
    Case(
        "outputs that are not finite on one image",
        evaluated(unlearned=blank_is_nan(), test_dataset=pictures(*TEST["image"][:], BLANK, labels=[0, 1, 2, 3, 4, 0])),
        "the unlearned model's outputs",
        "lower learning_rate",
        works=True,
    ),
]

RESULTS = [
    Case("saving before training", lambda run: run.save_model(), "save_model()", "train()", untrained),
    Case("a card before training", lambda run: run.create_model_card(), "create_model_card()", "train()", untrained),
    Case("a push before training", lambda run: run.push_to_hub(), "push_to_hub()", "train()", untrained),
    Case(
        "a push in the background",
        lambda run: run.push_to_hub(blocking=False),
        "blocking=False",
        "leave it True",
        after_training,
    ),
    Case(
        "saving into a file", lambda path: after_training(None).save_model(path), "/file'", "another folder", a_file("")
    ),
    Case("pushing nothing", lambda folder: push()(str(folder / "gone")), "/gone'", "output_dir"),
    Case("no folder", lambda _: push_folder(None, "user/out"), "None", "output_dir"),
    Case("no report", push(), "unlearning_report.json", "output_dir", a_result(without("unlearning_report.json"))),
    Case(
        "a broken report",
        push(),
        "unlearning_report.json",
        "unlearn anew",
        a_result(writing("unlearning_report.json", "{")),
    ),
    Case("a report of an evaluation", push(), "of an evaluation alone", "output_dir", evaluation_only),
    Case("no config", push(), "no config.json", "output_dir", a_result(without("config.json"))),
    Case("a broken config", push(), "config.json that cannot", "unlearn anew", a_result(writing("config.json", "{"))),
    Case("two runs mixed", push(), "different runs", "unlearn anew", a_result(writing("config.json", "{}"))),
    Case("no weights", push(), "no model.safetensors", "output_dir", a_result(without("model.safetensors"))),
    Case("weights cut off", push(), "cannot be read", "unlearn anew", a_result(writing("model.safetensors", "half"))),
    Case("weights that are a link", push_copied, "is a link", "the file itself", a_result(linked)),
    Case("an index that is none", push(), "index.json that cannot", "unlearn anew", a_result(indexed("[]"))),
    Case(
        "an index of other files",
        push(),
        "'../secret.safetensors'",
        "unlearn anew",
        a_result(indexed('{"weight_map": {"x": "../secret.safetensors"}}')),
    ),
    Case("a pull request to a branch", push(revision="v2", create_pr=True), "'v2'", "leave revision", a_result()),
    Case("no id to push to", push("a/b/c"), "'a/b/c'", "user/name", a_result()),
    Case(
        "classes beside images",
        lambda folder: run(None, *asked(folder, "amun", forget_classes=None), FEW, "quick"),
        "ZS-PAG, paper's form",
        "baselines='none'",
    ),
    Case(
        "a row that no run would take",
        lambda folder: run(None, *asked(folder), {"fast": Setting(METHODS["ssd"](), {"max_steps": 3})}, "quick"),
        "the setting 'fast': max_steps=3",
        "leave it out",
    ),
    Case(
        "other images in the folder of a request for images",
        lambda out: request_for_images(out, seed=2),
        "other images",
        "a new folder",
        lambda folder: saved_request_for_images(folder),
    ),
    Case(
        "a proof without its nonce",
        lambda out: proves(out, {"commitment": "0", "classes": []}, None),
        "_request.json",
        "output_dir",
        a_result(without("_request.json")),
    ),
    Case(
        "a card of an evaluation",
        lambda out: model_card(UnlearningReport.load(out)),
        "an evaluation alone",
        "an unlearning",
        evaluation_only,
    ),
]

JOBS = [
    Case("no model named", job(model_name_or_path=None), "no model", "model_name_or_path", given_data),
    Case("no data named", job({"dataset_name": None}), "no data", "dataset_name", given_data),
    Case("a job's level misspelt", job(level="fulll"), "level='fulll'", "'full'", given_data),
    Case("no forget image allowed", job(max_forget_samples=0), "max_forget_samples=0", "at least 1", given_data),
    Case(
        "retain data to train and test",
        job(retain_in_evaluation=True, test_split="train"),
        "'train'",
        "test_split",
        given_data,
    ),
    Case(
        "unlabelled data for a method that cannot use them",
        job({"method": "salun"}, public_dataset_name="there"),
        "SalUn",
        "leave public_dataset_name='there' out",
        given_data,
    ),
    Case(
        "the training split as unlabelled data",
        lambda folder: job({"method": "zspag"}, public_dataset_name=str(saved_data()))(folder),
        "public_split='train'",
        "give another",
        given_data,
    ),
    Case(
        "a split of no unlabelled data",
        job({"method": "zspag"}, public_split="validation"),
        "public_split='validation'",
        "give public_dataset_name",
        given_data,
    ),
    Case("a mapping that is gone", job(label_mapping_file="gone.json"), "'gone.json'", "Give a JSON file", given_data),
    Case(
        "a mapping that is a list",
        lambda path: job(label_mapping_file=path)(Path(path).parent),
        "/file'",
        "give an object",
        a_file("[]"),
    ),
    Case(
        "a retrained model that is gone", job(retrained_models=["no/model"]), "'no/model'", "give a folder", given_data
    ),
    Case("a row that is not there", job(forget_indices=[99]), "no image 99", "forget_indices", given_data),
]

CASES = [*EVALUATION, *RESULTS, *JOBS]
