"""One bad input as a row of a table, and the folders, models and runs that the rows start from.

A row feeds one bad input through the public surface. What has to be there first (a saved model, a trained run) is made
by ``given``, before anything is watched; ``feed`` gets what it returns. ``test_errors`` runs the rows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Image
from tiny import NAMES, asked, config, images, tiny_model, tiny_processor, trainer

from zspag_hf import evaluate_unlearning
from zspag_hf.cli.jobs import DataArguments, load_job
from zspag_hf.hub.datasets import load_split
from zspag_hf.hub.models import HubOptions, load_classifier
from zspag_hf.methods import find_method

TOKEN = "hf_SecretThatNoMessageShows"
KEPT = tempfile.TemporaryDirectory(prefix="errors-")  # what several rows share
SHARED = Path(KEPT.name)
CACHE = str(SHARED / "cache")
CAT = {"id": 2, "label": "cat"}
TEST = images([0, 1, 2, 3, 4], seed=5)


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        feed: gives it to the library, which is to raise.
        value, mend: texts that the message must hold: what was wrong, and what to do.
        given: makes what must be there before, in a folder; by default the folder itself.
        works: the error is about the work itself, so attacks and training steps may run before it.
    """

    name: str
    feed: Callable
    value: str
    mend: str
    given: Callable[[Path], object] = lambda folder: folder
    works: bool = False


# ---------------------------------------------------------------------- starting points


@cache
def trained():
    """A finished run."""
    run = trainer(SHARED / "run", test=TEST, method="random_labels", max_steps=2, hub_token=TOKEN)
    run.train()
    return run


def after_training(_folder: Path):
    return trained()


def untrained(folder: Path):
    return trainer(folder, test=TEST)


def fixed(folder: Path):
    """A run of a fixed number of steps, not yet begun."""
    return trainer(folder, method="random_labels", max_steps=2)


@cache
def saved_model() -> Path:
    tiny_model().save_pretrained(SHARED / "model")
    tiny_processor().save_pretrained(SHARED / "model")
    return SHARED / "model"


@cache
def saved_result() -> Path:
    trained().save_model(str(SHARED / "result"))
    return SHARED / "result"


@cache
def saved_data() -> Path:
    (SHARED / "data").mkdir()
    for split, labels in (("train", [0, 1, 2, 2, 3, 4]), ("test", [0, 2, 3])):
        images(labels).to_parquet(SHARED / "data" / f"{split}.parquet")
    return SHARED / "data"


def copy_of(source: Callable[[], Path], change: Callable[[Path], object] = lambda folder: None, name: str = "out"):
    """A ``given``: a copy of a shared folder with something wrong in it; returns its path as text."""

    def prepare(folder: Path) -> str:
        target = shutil.copytree(source(), folder / name)
        change(target)
        return str(target)

    return prepare


def a_model(change=lambda folder: None):
    return copy_of(saved_model, change, "model")


def a_result(change=lambda folder: None):
    return copy_of(saved_result, change)


def some_data(change=lambda folder: None):
    return copy_of(saved_data, change, "data")


def a_file(text: str, name: str = "file"):
    """A ``given``: one file; returns its path as text."""

    def prepare(folder: Path) -> str:
        (folder / name).write_text(text)
        return str(folder / name)

    return prepare


def constant(cat: float = 9.0):
    """A model of the same logits for every image."""
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, cat, 0.0, 0.0]))
    return model


# ---------------------------------------------------------------------- changes and feeds


def edit(**changes):
    """A change of config.json; None takes an entry out."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return apply


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def writing(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def option(value: str, mend: str, **options) -> Case:
    """A bad option of UnlearningConfig."""
    return Case(f"option {value}", lambda folder: config(folder, hub_token=TOKEN, **options), value, mend)


def of_method(value: str, mend: str, name: str = "zspag", **options) -> Case:
    """A bad option of a method."""
    return Case(f"{name}, {value}", lambda _: find_method(name)(**options), value, mend)


def unheard(value: str, mend: str, name: str, args=(), **options) -> Case:
    """Options of a run, ``args``, that a method with its own options cannot honour."""
    method = find_method(name)(**options)
    return Case(f"{name} in a run, {value}", lambda folder: method.check(config(folder, **dict(args))), value, mend)


def run(**options):
    """A feed: the trainer on tiny inputs, one of them bad."""
    return lambda folder: trainer(folder, **options)


def training(**options):
    return lambda folder: trainer(folder, **options).train()


def request(classes, model=None, **options):
    return lambda folder: trainer(folder, model=model and model(), forget_classes=classes, **options)


def evaluated(**options):
    """A feed: ``evaluate_unlearning`` on tiny inputs, one of them bad."""
    usual = {
        "unlearned": tiny_model(),
        "forget_dataset": images([2, 2]),
        "test_dataset": TEST,
        "forget_classes": ["cat"],
        "processing_class": tiny_processor(),
        "disable_progress": True,
    }
    return lambda _: evaluate_unlearning(tiny_model(), **(usual | options))


def load(**options):
    """A feed: a model by the path that was ``given``."""
    return lambda path: load_classifier(path, hub=HubOptions(token=TOKEN, cache_dir=CACHE, **options))


def read(split: str = "train", **options):
    """A feed: data by the path that was ``given``."""
    hub = HubOptions(options.pop("revision", None), TOKEN, CACHE)
    return lambda path: load_split(path, split, hub=hub, **options)


def job(options=(), **arguments):
    """A feed: a whole job, from names; ``options`` are of the run or its method, None stands for no data."""

    def feed(folder: Path):
        names = {"model_name_or_path": str(saved_model()), **arguments}
        usual = {"dataset_name": str(saved_data()), "cache_dir": CACHE, "hub_token": TOKEN}
        return load_job(DataArguments(**names), *asked(folder, **(usual | dict(options))))

    return feed


def given_data(folder: Path) -> Path:
    """Model and data of a :func:`job`, made before anything is watched."""
    saved_model(), saved_data()
    return folder


def pictures(*held, labels=None, names=NAMES) -> Dataset:
    """A data set of images as they are given: PIL images, or {"bytes", "path"}."""
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": list(held), "label": labels or [2] * len(held)}, features=features)
