"""Bad requests and runs: what to forget, where to write, and what goes wrong on the way."""

from pathlib import Path

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
from tiny import NAMES, images, tiny_model, tiny_processor, trainer

from zspag_hf.classifier import PixelClassifier
from zspag_hf.proxies import make_proxies

ENTRY = {"classes": [CAT], "date": "2026-01-01"}


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
    return trainer(folder, model=model, optimizers=(optimizer, None), adaptive=False)


def run_once(folder: Path):
    """With an optimizer of its own, after a run."""
    model = tiny_model()
    options = {"adaptive": False, "learning_rate": 0.01, "max_steps": 1}
    once = trainer(folder, model=model, optimizers=(torch.optim.SGD(model.parameters(), 0.01), None), **options)
    once.train()
    return once


def into(place: str, **options):
    """A feed: the trainer with ``output_dir`` at a place in the folder."""
    return lambda folder: trainer(folder, output_dir=str(folder / place), **options)


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
        request(["ox"], lambda: tiny_model(names=["ox, a", "ox, b", *NAMES[2:]])),
        "'ox'",
        "its id",
    ),
    Case("all classes", request(NAMES), "all 5 classes", "forget_classes"),
    Case("all classes but one", request(NAMES[1:]), "1 of 5 classes", "forget_classes"),
    Case("all classes, of the proxies", all_forgotten, "all 5 classes", "forget_ids"),
    Case("a class that is gone", request(["cat"], ledger(ENTRY)), "'cat' already, by request 1", "forget_classes"),
    Case("classes for a method of images", request(["cat"], method="amun", adaptive=False), "method='amun'", "unset"),
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
    Case(
        "another model in output_dir",
        restarted(),
        "holds another model",
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
        "the result of another request",
        restarted(forget_classes=["dog"], forget=images([3] * 12)),
        "'dog'",
        "new folder",
        a_result(),
    ),
]

TRAINING = [
    Case(
        "an adaptive run with an optimizer",
        run(optimizers=(torch.optim.SGD([torch.zeros(1)], 0.1), None)),
        "SGD",
        "adaptive=False",
    ),
    Case("another model's optimizer", of_another_model, "SGD", "model.parameters()"),
    Case("a second run", lambda run: run.train(), "SGD has been used", "new trainer", run_once, works=True),
    Case("nothing to resume", lambda run: run.train(True), "resume_from_checkpoint=True", "output_dir", untrained),
    Case("a checkpoint elsewhere", lambda run: run.train("gone"), "'gone'", "save_strategy='epoch'", fixed),
    Case("too few images to judge by", training(forget=images([2])), "1 forget images too few", "forget_views=48"),
    Case(
        "a loss that is not finite",
        training(constraint="none", learning_rate=1e30, num_train_epochs=5),
        "vit.layers.0.layernorm_before",
        "Lower learning_rate",
        works=True,
    ),
    Case(
        "a last step that is not finite",
        training(constraint="none", learning_rate=1e38, weight_decay=1e3, max_steps=1),
        "after step 1",
        "lower learning_rate",
        works=True,
    ),
    Case(
        "targets that are not finite",
        training(tilt_temperature=1e-320),
        "energy_threshold 0.9",
        "learning_rate",
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
        training(model=ledger(ENTRY)(), forget=images([2, 2]), method="amun", forget_classes=None, adaptive=False),
        "2 forget images",
        "take them out of forget_dataset",
    ),
    Case(
        "a model of one answer",
        training(model=constant(), forget=images([2]), method="amun", forget_classes=None, adaptive=False),
        "within 20.5",
        "the same answer everywhere",
        works=True,
    ),
]

CASES = [*REQUESTS, *OUTPUT, *TRAINING]
