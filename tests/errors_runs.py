"""Bad requests and runs: what to forget, where to write, and what goes wrong on the way."""

import os
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from errors_case import (
    CAT,
    Case,
    a_file,
    a_result,
    constant,
    fixed,
    request,
    run,
    training,
    untrained,
    without,
    writing,
)
from errors_models import Headless
from tiny import NAMES, asked, config, images, tiny_model, tiny_processor, trainer
from torch import nn

from zspag_hf import FastClip, UnlearningTrainer
from zspag_hf.cli.jobs import Job, Setting
from zspag_hf.cli.jobs import run as run_job
from zspag_hf.hub.adapter import ModuleClassifier, ModuleConfig
from zspag_hf.methods import METHODS
from zspag_hf.pipeline.attacks import PGDLinf
from zspag_hf.pipeline.classifier import PixelClassifier
from zspag_hf.pipeline.proxies import make_proxies
from zspag_hf.report.report import PAGE_NAME
from zspag_hf.trainer.output_dir import locked
from zspag_hf.trainer.refusals import INSTEAD, check_processes

RETRAIN = {"method": "retrain", "retain": images([0, 1, 3, 4], seed=9)}
OXEN = ["ox, a", "ox, b", *NAMES[2:]]
ENTRY = {"classes": [CAT], "date": "2026-01-01"}

ONE = torch.ones(1, dtype=torch.long)


def ledger(*entries):
    """A model with a history."""

    def make():
        model = tiny_model()
        model.config.unlearning = list(entries)
        return model

    return make


def all_forgotten(_folder: Path):
    return make_proxies(PixelClassifier(tiny_model(), tiny_processor()), torch.zeros(1, 3, 8, 8), [*range(5)], None)


def of_another_model(folder: Path):
    model = tiny_model()
    optimizer = torch.optim.SGD(tiny_model().parameters(), 0.1)
    return trainer(folder, model=model, optimizers=(optimizer, None), method="random_labels")


def run_once(folder: Path):
    """With an optimizer of its own, after a run."""
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    once = trainer(folder, model=model, optimizers=(optimizer, None), method="random_labels", max_steps=1)
    once.train()
    return once


def theirs():
    """A model whose class a repository brought along."""
    model = tiny_model()
    model.__class__ = type("Theirs", (type(model),), {"__module__": "transformers_modules.user.theirs"})
    return model


class Scale(nn.Module):
    """A layer that does not say how its weight begins."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return x * self.factor


def unclear():
    """A plain module with such a layer."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), Scale())
    return ModuleClassifier(ModuleConfig(id2label=dict(enumerate(NAMES)), image_size=8), network).eval()


def retaining(data, forget=None, **options):
    """A feed: a trainer that is to read retained data."""
    options = {"method": "finetune", "forget": forget} | options
    return lambda folder: trainer(folder, retain=data, **options)


def mapless(folder: Path):
    """A run whose model has nothing but its head, as far as it knows."""
    made = trainer(folder, method="mixunlearn", retain=images([0, 1, 3, 4] * 4, seed=9))
    made.run.layers = {made.run.head: made.run.layers[made.run.head]}
    return made


def compared_without_retain(folder: Path):
    job = Job(tiny_model(), tiny_processor(), images([2] * 12), images([0, 1, 2, 3, 4], seed=5))
    return run_job(job, *asked(folder), {"fine-tuning": Setting(METHODS["finetune"]())}, "quick")


def with_argument(name: str):
    """A feed: the trainer with an argument of Trainer that means nothing here."""
    return lambda folder: UnlearningTrainer(tiny_model(), config(folder), images([2]), **{name: object()})


def backend(kind: str):
    """A feed: what accelerate runs on."""
    return lambda _: check_processes(SimpleNamespace(distributed_type=SimpleNamespace(value=kind)), 1)


def sharded(_folder: Path):
    model = SimpleNamespace(num_processes=1, distributed_type=SimpleNamespace(value="NO"))
    with mock.patch.dict(os.environ, {"ACCELERATE_USE_FSDP": "true"}):
        return check_processes(model, 1)


def into(place: str, **options):
    """A feed: the trainer with ``output_dir`` at a place in the folder."""
    return lambda folder: trainer(folder, output_dir=str(folder / place), **options)


def somebody_s(name: str):
    """A ``given``: ``out`` with one file in it."""

    def prepare(folder: Path) -> str:
        (folder / "out").mkdir()
        (folder / "out" / name).write_text("mine")
        return str(folder / "out")

    return prepare


def beside_another(folder: Path):
    """A training in a folder in which another run is at work."""
    made = trainer(folder)
    with locked(str(folder / "out")):
        made.train()


def restarted(**options):
    """A feed: the trainer over the result that lies in ``out``."""
    return lambda out: trainer(Path(out).parent, **options)


REQUESTS = [
    Case("no class", request(None), "no class to forget", "forget_classes"),
    Case("an unknown class", request(["cats"]), "'cats'", "Did you mean 'cat'"),
    Case("an id too high", request([99]), "'99'", "from 0 to 4"),
    Case("a number that is no id", request(2.5), "'2.5'", "from 0 to 4"),
    Case(
        "an ambiguous class",
        request(["ox"], lambda: tiny_model(names=OXEN), forget=images([2] * 12, OXEN)),
        "'ox'",
        "its id",
    ),
    Case("all classes", request(NAMES), "all 5 classes", "forget_classes"),
    Case("all classes but one", request(NAMES[1:]), "1 of 5 classes", "forget_classes"),
    Case("all classes, of the proxies", all_forgotten, "all 5 classes", "forget_ids"),
    Case("a class that is gone", request(["cat"], ledger(ENTRY)), "'cat' already, by request 1", "forget_classes"),
    Case("classes for a method of images", request(["cat"], method="amun"), "['cat']", "forget_classes unset"),
    Case(
        "a ledger of other classes",
        request(["ant"], ledger(ENTRY | {"classes": [CAT | {"label": "cow"}]})),
        "'cow'",
        "id2label",
    ),
    Case("a damaged ledger", request(["ant"], ledger({})), "'unlearning'", "restore the file"),
]

OUTPUT = [
    Case("a file as output_dir", into("file"), "/file'", "give another folder", lambda f: Path(a_file("")(f)).parent),
    Case(
        "an output_dir below a file",
        into("file/out"),
        "/file/out'",
        "another folder",
        lambda f: Path(a_file("")(f)).parent,
    ),
    *(
        Case(f"somebody's {name} in output_dir", restarted(), f"holds '{name}'", "new folder", somebody_s(name))
        for name in ("model.safetensors", "config.json", "README.md", "preprocessor_config.json", PAGE_NAME)
    ),
    Case("a second run at the same time", beside_another, "/out'", "wait for its end"),
    Case(
        "the beginning of another request's result",
        restarted(forget_classes=["dog"], forget=images([3] * 12)),
        "a request for other images",
        "new folder",
        a_result(without("unlearning_report.json")),
    ),
    Case(
        "a report that cannot be read",
        restarted(),
        "cannot read",
        "new folder",
        a_result(writing("unlearning_report.json", "[]")),
    ),
    Case(
        "a report of an older version",
        restarted(),
        "cannot read",
        "new folder",
        a_result(writing("unlearning_report.json", '{"schema_version": 0}')),
    ),
    Case(
        "the result of another request",
        restarted(forget_classes=["dog"], forget=images([3] * 12)),
        "'dog'",
        "new folder",
        a_result(),
    ),
]

ARGUMENTS = [
    *(Case(f"the argument {name}", with_argument(name), name, mend) for name, mend in INSTEAD.items()),
    Case(
        "the default run with an optimizer",
        run(optimizers=(torch.optim.SGD([torch.zeros(1)], 0.1), None)),
        "SGD",
        "method='zspag_paper'",
    ),
    Case(
        "a closed form with an optimizer",
        run(
            method="fisher",
            retain=images([0, 1, 3, 4], seed=9),
            optimizers=(torch.optim.SGD([torch.zeros(1)], 0.1), None),
        ),
        "Fisher",
        "method='zspag_paper'",
    ),
    Case(
        "a schedule without its optimizer",
        run(
            method="random_labels",
            optimizers=(None, torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 1)),
        ),
        "StepLR comes without its optimizer",
        "give both in optimizers=",
    ),
    Case("another model's optimizer", of_another_model, "SGD", "model.parameters()"),
    Case(
        "clipping past the constraint",
        run(callbacks=[FastClip()]),
        "the constraint of ZSPAG",
        "leave the callback out",
    ),
    Case(
        "clipping past a constraint that was asked for",
        run(callbacks=[FastClip()], method="neggrad", constraint="soft"),
        "the constraint of NegGrad",
        "constraint='none'",
    ),
    *(Case(f"the backend {kind}", backend(kind), kind, "multi_gpu.yaml") for kind in ("DEEPSPEED", "FSDP", "TP")),
    Case("FSDP on the CPU", sharded, "FSDP", "without --use_fsdp"),
]

TRAINING = [
    Case(
        "a method by the likeness of classes without a head",
        run(model=Headless(tiny_model().config).eval(), method="trw"),
        "5 labels",
        "method='trw'",
    ),
    Case("masks without a map", lambda run: run.train(), "'mixunlearn'", "method='mixup_unlearn'", mapless),
    Case(
        "clipping of sharded weights",
        lambda _: FastClip().on_train_begin(SimpleNamespace(fsdp="full_shard", deepspeed=None), model=nn.Linear(2, 2)),
        "which fsdp shards",
        "leave fsdp out",
    ),
    Case("a comparison that retained data are missing for", compared_without_retain, "'fine-tuning'", "leave it out"),
    Case(
        "no head to reset the rows of",
        run(model=Headless(tiny_model().config).eval(), method="fisher", retain=images([0, 1, 3, 4], seed=9)),
        "5 labels",
        "another method",
    ),
    Case(
        "no head to add a row to",
        run(model=Headless(tiny_model().config).eval(), method="boundary_expand"),
        "its 5 labels",
        "boundary_shrink",
    ),
    Case(
        "nothing but the forgotten class",
        training(model=constant(50.0), method="gkt"),
        "of 100 batches",
        "raise per_device_train_batch_size",
        works=True,
    ),
    Case(
        "a transfer that is not finite",
        training(method="gkt", learning_rate=1e30, max_steps=3),
        "1e+30",
        "lower learning_rate",
        works=True,
    ),
    Case(
        "weights of a repository's own code",
        training(model=theirs(), **RETRAIN),
        "Theirs",
        "a model that transformers knows",
    ),
    Case(
        "a layer that cannot begin anew",
        training(model=unclear(), **RETRAIN),
        "'2' (Scale)",
        "method called reset_parameters",
    ),
    Case("forgotten classes among the retained", retaining(images([0, 1, 2])), "1 images of forgotten", "Leave them"),
    Case(
        "images to forget among the retained",
        retaining(images([0, 1, 2, 3], seed=4), images([0, 1], seed=4), forget_classes=None),
        "2 of the images to forget",
        "leave them out",
    ),
    Case(
        "nothing to damp",
        training(model=constant(50.0), method="ssd", retain=images([0, 1, 3, 4], seed=9), with_retain=True),
        "10 times",
        "another method",
    ),
    Case(
        "floats of 0..255 to an attack",
        lambda _: PGDLinf()(
            PixelClassifier(tiny_model(), tiny_processor()), 255 * torch.rand(2, 3, 8, 8), torch.ones(2).long()
        ),
        "pixels from",
        "floats in [0, 1]",
        works=True,
    ),
    Case("a second run", lambda run: run.train(), "SGD has been used", "new trainer", run_once, works=True),
    Case("nothing to resume", lambda run: run.train(True), "resume_from_checkpoint=True", "output_dir", untrained),
    Case("a checkpoint elsewhere", lambda run: run.train("gone"), "'gone'", "save_strategy='epoch'", fixed),
    Case("too few images to judge by", training(forget=images([2])), "1 forget images too few", "forget_views=48"),
    Case(
        "a loss that is not finite",
        training(method="random_labels", learning_rate=1e30, num_train_epochs=5),
        "at step 1",
        "lower learning_rate (1e+30)",
        works=True,
    ),
    Case(
        "a last step that is not finite",
        training(method="random_labels", learning_rate=1e38, weight_decay=1e3, max_steps=1),
        "at step 1",
        "lower learning_rate",
        works=True,
    ),
    Case(
        "attacks that never cross",
        training(model=constant(), attack_eps=1e-6),
        "eps 4e-06",
        "raise attack_eps or attack_steps",
        works=True,
    ),
    Case(
        "images of a class that is gone",
        training(model=ledger(ENTRY)(), forget=images([2, 2]), method="amun", forget_classes=None),
        "2 forget images",
        "take them out of forget_dataset",
    ),
    Case(
        "a model of one answer",
        training(model=constant(), forget=images([2]), method="amun", forget_classes=None),
        "within 20.5",
        "the same answer everywhere",
        works=True,
    ),
]

CASES = [*REQUESTS, *OUTPUT, *ARGUMENTS, *TRAINING]
