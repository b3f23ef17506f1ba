"""Data, models and rows of the tables: what is forgotten from what, and by which methods."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from models import NETWORKS, digits_dataset, digits_model, quiet_config, silence, train_classifier
from pages import PUBLISHED
from transformers import PreTrainedModel

from zspag_hf.cli.jobs import without
from zspag_hf.errors import UnlearningError
from zspag_hf.hub.adapter import ModuleClassifier
from zspag_hf.hub.models import load_classifier
from zspag_hf.methods import (
    AMUN,
    GKT,
    SCRUB,
    SSD,
    UNSC,
    ZSPAG,
    AMUNAdvOnly,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    Delete,
    FineTune,
    Fisher,
    L1Sparse,
    Method,
    MixUnlearn,
    MixupUnlearn,
    NegGrad,
    RandomLabels,
    SalUn,
    Spotter,
    TiltedReweighting,
    ZSPAGPaper,
)

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # a grid of powers of ten left some baselines .2 of acc_rt short
MORE_RATES = (*RATES, 3e-2, 1e-1)  # as far as the grid that AMUN's authors search
STRONG_RATES = (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)  # under a hard constraint, which leaves little of a step
BATCHES: dict[type[Method], int] = {  # images a batch that a published rate goes with (METHODS C, D); here as many as
    AMUN: 128,  # the run says, 32
    AMUNAdvOnly: 128,
    BadTeacher: 256,
    BoundaryExpand: 64,
    BoundaryShrink: 512,  # UNSC's runs
    Delete: 128,
    GKT: 256,
    NegGrad: 512,  # UNSC's runs
    RandomLabels: 512,  # UNSC's runs
    SalUn: 512,  # UNSC's runs; 256 with retained data
    SCRUB: 128,
    Spotter: 128,
    UNSC: 512,
}

Groups = dict[str, dict[str, Method]]  # group -> row -> method; those under "zero-shot" never see retained data
CLASS_ROWS: Groups = {
    "zero-shot": {
        "random labels (FT-zs)": RandomLabels(),
        "NegGrad-zs": NegGrad(),
        "BadT-zs": BadTeacher(),
        "SalUn-zs": SalUn(),
        "boundary shrink": BoundaryShrink(),
        "boundary expand": BoundaryExpand(),
        "SSD-zs": SSD(),
        "TRW-zs": TiltedReweighting(),
        "DELETE": Delete(),
        "Spotter": Spotter(),
        "renormalised": RandomLabels(targets="renormalised"),
        "ZS-PAG, as printed": ZSPAGPaper(),
        "ZS-PAG": ZSPAG(),
        "ZS-PAG, last layer": ZSPAG(scope="head"),
    },
    "with retained data": {
        "random labels (FT)": RandomLabels(with_retain=True),
        "fine-tuning": FineTune(),
        "NegGrad+": NegGrad(with_retain=True),
        "BadT": BadTeacher(with_retain=True),
        "SalUn": SalUn(with_retain=True),
        "SCRUB": SCRUB(),
        "l1-sparse": L1Sparse(),
        "Fisher": Fisher(),
        "SSD": SSD(with_retain=True),
        "UNSC": UNSC(),
        "TRW": TiltedReweighting(with_retain=True),
        "MixUnlearn": MixUnlearn(),
        "mixup": MixupUnlearn(),
    },
    "zero-shot, generated images": {"GKT": GKT()},
}
IMAGE_ROWS: Groups = {
    "zero-shot": {
        "random labels": RandomLabels(),
        "NegGrad": NegGrad(),
        "boundary shrink": BoundaryShrink(),
        "SalUn-zs": SalUn(),
        "AMUN": AMUN(),
        "AMUN, constrained": AMUN(constraint="soft"),
        "AMUN, adversaries only": AMUNAdvOnly(),
    },
    "with retained data": {
        "fine-tuning": FineTune(),
        "random labels + retained": RandomLabels(with_retain=True),
        "AMUN + retained": AMUN(with_retain=True),
        "AMUN, adv. + retained": AMUNAdvOnly(with_retain=True),
        "l1-sparse": L1Sparse(),
        "SalUn + retained": SalUn(with_retain=True),
    },
}

RETRAINED, REFERENCES = (1, 2), (3, 4, 5, 6)  # thousands added to the seed of models without the images
FEW_IMAGES = 10  # of a class in the test split, under which chance could leave a half without any
EPOCHS, SIDE = 50, 32  # of a model that is trained on the spot


@dataclass(frozen=True)
class Bench:
    """One thing to forget.

    Attributes:
        model: seed -> classifier and processor, the original.
        parts: seed -> the images to forget, and the other training images.
        test, validation: halves of the test split: rates are chosen on one and reported on the other.
        classes: what is forgotten, None for images.
        retrained: seed -> models trained without what is forgotten.
        references: seed -> further such models, that RMIA measures a probability against; for images alone.
        saved: folder of a model -> what :func:`zspag_hf.evaluate_unlearning` takes for it.
        published: the data set that this one stands for in the paper's table 1, where there is one.
    """

    name: str
    model: Callable[[int], tuple[PreTrainedModel, object]]
    parts: Callable[[int], tuple[Dataset, Dataset]]
    test: Dataset
    validation: Dataset
    classes: list[str] | None
    retrained: Callable[[int], list] = lambda seed: []
    references: Callable[[int], list] = lambda seed: []
    saved: Callable[[str], str | PreTrainedModel] = lambda folder: folder
    published: str | None = None

    @property
    def rows(self) -> Groups:
        """By what is forgotten."""
        return IMAGE_ROWS if self.classes is None else CLASS_ROWS


def slug(text: str) -> str:
    """As a part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def halves(test: Dataset) -> tuple[Dataset, Dataset]:
    """Two random halves, the same in every run; each class in both where it has few images."""
    order = np.random.default_rng(0).permutation(len(test))
    labels = np.asarray(test["label"][:])
    if np.unique(labels, return_counts=True)[1].min() < FEW_IMAGES:
        order = order[labels[order].argsort(kind="stable")]
        first, second = order[::2], order[1::2]
    else:
        first, second = np.split(order, [len(test) // 2])
    return test.select(sorted(first)), test.select(sorted(second))


def of_classes(data: Dataset, classes: list[str]) -> list[int]:
    """The rows of some classes."""
    names = data.features["label"].names
    return np.flatnonzero(np.isin(data["label"][:], [names.index(name) for name in classes])).tolist()


def rows_hash(rows: Sequence[int]) -> str:
    """Names rows in a folder's name, which could not tell some labels apart."""
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:12]


def of_share(data: Dataset, share: float, seed: int) -> list[int]:
    """A random share of the rows."""
    return np.random.default_rng(seed).permutation(len(data))[: round(share * len(data))].tolist()


# --------------------------------------------------------------------------------------------- models that are there


def class_bench(name: str, data: str, model: str, classes: list[str], retrained: list[str], most: int) -> Bench:
    """Classes of a data set, of a model that is there, both by Hub id or folder."""
    train, test = splits(data)
    rows = of_classes(train, classes)
    forget = train.select(np.random.default_rng(0).permutation(rows)[:most].tolist())
    validation, tested = halves(test)
    return Bench(
        name,
        lambda seed: load_classifier(model),
        lambda seed: (forget, without(train, rows)),
        tested,
        validation,
        classes,
        lambda seed: retrained,
    )


def image_bench(name: str, data: str, model: str, share: float) -> Bench:
    """A random share of the training images of a model that is there, another one for each seed."""
    train, test = splits(data)
    validation, tested = halves(test)

    def parts(seed: int) -> tuple[Dataset, Dataset]:
        rows = of_share(train, share, seed)
        return train.select(rows), without(train, rows)

    return Bench(name, lambda seed: load_classifier(model), parts, tested, validation, None)


# ---------------------------------------------------------------------------------- models that are trained on the spot


@dataclass(frozen=True)
class Training:
    """Classifiers of one kind and data set, each trained once and kept in ``folder``.

    Attributes:
        name: of their folders. data: the training images.
        untrained: label names, seed -> a classifier with first weights, and its processor.
        augment: images are moved a little in training; without it the network learns them by heart.
    """

    name: str
    data: Dataset
    untrained: Callable[[list[str], int], tuple[PreTrainedModel, object]]
    folder: Path
    epochs: int = EPOCHS
    augment: bool = True

    def model(self, seed: int, dropped: Sequence[int] = (), what: str = "0") -> tuple[PreTrainedModel, object]:
        """A classifier with its processor.

        Args:
            dropped: rows that it is trained without. what: names them in the folder's name, "0" for none.
        """
        place = self.folder / f"{self.name}-{seed}-{what}"
        if not place.exists():
            model, processor = self.untrained(self.data.features["label"].names, seed)
            with silence() as scratch:
                config, rows = quiet_config(output_dir=scratch, seed=seed), without(self.data, dropped)
                train_classifier(model, processor, rows, [], config, self.epochs, self.augment)
            part = place.with_name(f"{place.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of a training that was cut off
            model.save_pretrained(part)
            os.replace(part, place)
        return self.saved(str(place)), self.untrained(self.data.features["label"].names, seed)[1]

    def saved(self, folder: str) -> PreTrainedModel:
        """The model that was saved there, in eval mode."""
        fresh, _ = self.untrained(self.data.features["label"].names, 0)
        if isinstance(fresh, ModuleClassifier):
            return ModuleClassifier.from_pretrained(folder, module=fresh.module)
        return type(fresh).from_pretrained(folder)


def trained_bench(
    name: str, training: Training, test: Dataset, rows: Callable[[int], list[int]], classes, what: Callable[[int], str]
) -> Bench:
    """What is forgotten by a model that is trained on the spot, with models retrained without it.

    Args:
        rows: seed -> the training images to forget. classes: those of the rows, None for images.
        what: seed -> a name of those rows, for folders.
    """
    train, (validation, tested) = training.data, halves(test)

    def without_them(thousands: Sequence[int], seed: int) -> list[PreTrainedModel]:
        return [training.model(seed + 1000 * k, rows(seed), what(seed))[0] for k in thousands]

    return Bench(
        name,
        training.model,
        lambda seed: (train.select(rows(seed)), without(train, rows(seed))),
        tested,
        validation,
        classes,
        partial(without_them, RETRAINED),
        partial(without_them, REFERENCES if classes is None else ()),
        training.saved,
    )


def digits_bench(folder: Path) -> Bench:
    """Digits without the 3."""
    train, test = digits_dataset()
    rows = of_classes(train, ["3"])
    training = Training("digits", train, digits_model, folder)
    return trained_bench("digits without the 3", training, test, lambda seed: rows, ["3"], lambda seed: "1")


def random_digits_bench(percent: int, folder: Path) -> Bench:
    """A random share of the digits' training images, another one for each seed."""
    train, test = digits_dataset()
    training = Training("digits", train, digits_model, folder)
    return trained_bench(
        f"digits, {percent} % at random",
        training,
        test,
        lambda seed: of_share(train, percent / 100, seed),
        None,
        lambda seed: f"random-{percent}-{seed}",
    )


OWN_BENCHES: dict[str, Callable[[Path], Bench]] = {  # those that need nothing
    "digits": digits_bench,
    "digits-random-10": partial(random_digits_bench, 10),
    "digits-random-50": partial(random_digits_bench, 50),
}

# ------------------------------------------------------------------------------------------------------------ places


def splits(data: str) -> tuple[Dataset, Dataset]:
    """Training and test images: "digits", a Hub id or a folder."""
    return digits_dataset() if data == "digits" else tuple(load_dataset(data, split=part) for part in ("train", "test"))


def place_with_training(
    name: str,
    folder: Path,
    data: str,
    train: str,
    classes: list[str] | None = None,
    share: float | None = None,
    side: int = SIDE,
    epochs: int = EPOCHS,
    images: int | None = None,
    augment: bool = True,
) -> Bench:
    """An entry of the file of places that says which network to train."""
    if train not in NETWORKS:
        raise UnlearningError(f"{name!r}: there is no network {train!r} to train: give one of {', '.join(NETWORKS)}.")
    data_set, test = splits(data)
    if images is not None:
        data_set = data_set.select(np.random.default_rng(0).permutation(len(data_set))[:images].tolist())
    network = NETWORKS[train]
    kind = slug(f"{train} {data} {side} {epochs} {images or ''} {'' if augment else 'by heart'}")
    training = Training(kind, data_set, lambda names, seed: network(names, seed, side), folder, epochs, augment)
    if classes is None:
        rows, what = lambda seed: of_share(data_set, share, seed), lambda seed: f"random-{100 * share:g}-{seed}"
    else:
        chosen = of_classes(data_set, classes)
        rows, what = lambda seed: chosen, lambda seed: f"without-{rows_hash(chosen)}"
    return trained_bench(name, training, test, rows, classes, what)


def load_benches(names: list[str], places: dict[str, dict], folder: Path) -> list[Bench]:
    """The benches by name: one of OWN_BENCHES, or an entry of the file of places.

    An entry is {"data": ..., "model": ..., "classes": [...] or "share": 0.1, "retrained": [...], "most": 1000}, or for
    a model that is trained on the spot {"data": ..., "train": "resnet", "classes": [...] or "share": 0.1, "side": 32,
    "epochs": 50, "images": 10000, "augment": false}, with one of ``models.NETWORKS``, on so many images drawn at
    random (unset: on all), moved a little unless told otherwise.

    Raises:
        UnlearningError: a name that is neither, or a network that is not there.
    """
    return [load_bench(name, places, folder) for name in names]


def load_bench(name: str, places: dict[str, dict], folder: Path) -> Bench:
    """One of them; any entry may say which data set of the paper it stands for: "published": "CIFAR-10"."""
    if name in OWN_BENCHES:
        return OWN_BENCHES[name](folder)
    if name not in places:
        known = ", ".join([*OWN_BENCHES, *places])
        raise UnlearningError(f"there is no bench {name!r}: give one of {known}, or an entry of that name in --places.")
    place = dict(places[name])
    if ("classes" in place) == ("share" in place):
        raise UnlearningError(f'{name!r}: give "classes", a list of labels, or "share", of the training images.')
    published = place.pop("published", None)
    if published not in (None, *PUBLISHED):
        raise UnlearningError(f"{name!r}: nothing was published of {published!r}: give one of {', '.join(PUBLISHED)}.")
    if "train" in place:
        return replace(place_with_training(name, folder, **place), published=published)
    if "share" in place:
        return image_bench(name, place["data"], place["model"], place["share"])
    most, retrained = place.get("most", 1000), place.get("retrained", [])
    bench = class_bench(name, place["data"], place["model"], place["classes"], retrained, most)
    return replace(bench, published=published)


def read_places(path: Path | None) -> dict[str, dict]:
    """The file of places; empty without one."""
    return {} if path is None else json.loads(path.read_text())
