"""Data, models and rows of the tables: what is forgotten from what, and by which methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from models import digits_dataset, digits_model, quiet_config, train_classifier
from transformers import PreTrainedModel

from zspag_hf.jobs import without
from zspag_hf.loading import load_classifier

FREE = {"adaptive": False, "constraint": "none"}
RATES = (1e-4, 1e-3, 1e-2)  # of the grid that AMUN's authors search, 1e-5 to 1e-1, as far as two cores go
MORE_RATES = (1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1)

# row -> options; those under "zero-shot" never see retained data
CLASS_ROWS = {
    "zero-shot": {
        "random labels (FT-zs)": {"method": "random_labels"},
        "NegGrad-zs": {"method": "neggrad"},
        "BadT-zs": {"method": "badt"},
        "SalUn-zs": {"method": "salun"},
        "boundary shrink": {"method": "boundary_shrink"},
        "boundary expand": {"method": "boundary_expand"},
        "SSD-zs": {"method": "ssd"},
        "TRW-zs": {"method": "trw"},
        "renormalised": {"method": "zspag", "tilt": "none", **FREE},
        "ZS-PAG, literal": {"method": "zspag", "variant": "paper"},
        "ZS-PAG": {"method": "zspag"},
    },
    "with retained data": {
        "random labels (FT)": {"method": "random_labels", "with_retain": True},
        "fine-tuning": {"method": "finetune"},
        "NegGrad+": {"method": "neggrad", "with_retain": True},
        "BadT": {"method": "badt", "with_retain": True},
        "SalUn": {"method": "salun", "with_retain": True},
        "SCRUB": {"method": "scrub"},
        "l1-sparse": {"method": "l1_sparse"},
        "Fisher": {"method": "fisher"},
        "SSD": {"method": "ssd", "with_retain": True},
        "UNSC": {"method": "unsc"},
        "TRW": {"method": "trw", "with_retain": True},
        "MixUnlearn": {"method": "mixunlearn"},
        "mixup": {"method": "mixup_unlearn"},
    },
}
IMAGE_ROWS = {
    "zero-shot": {
        "random labels": {"method": "random_labels"},
        "NegGrad": {"method": "neggrad"},
        "SalUn-zs": {"method": "salun"},
        "AMUN": {"method": "amun"},
        "AMUN, constrained": {"method": "amun", "constraint": "soft"},
        "AMUN, adversaries only": {"method": "amun_advonly"},
    },
    "with retained data": {
        "fine-tuning": {"method": "finetune"},
        "random labels + retained": {"method": "random_labels", "with_retain": True},
        "AMUN + retained": {"method": "amun", "with_retain": True},
        "AMUN, adv. + retained": {"method": "amun_advonly", "with_retain": True},
    },
}
NO_RATE = ("fisher", "ssd")  # closed forms
OWN_RATE = {"ZS-PAG"}  # chosen within the run


@dataclass(frozen=True)
class Bench:
    """One thing to forget.

    Attributes:
        model: seed -> classifier and processor, the original.
        parts: seed -> the images to forget, and the other training images.
        test, validation: halves of the test split: rates are chosen on one and reported on the other.
        retrained: seed -> models trained without what is forgotten.
        classes: what is forgotten, None for images.
    """

    name: str
    model: Callable[[int], tuple[PreTrainedModel, object]]
    parts: Callable[[int], tuple[Dataset, Dataset]]
    test: Dataset
    validation: Dataset
    classes: list[str] | None
    retrained: Callable[[int], list] = lambda seed: []

    @property
    def rows(self) -> dict[str, dict[str, dict]]:
        return IMAGE_ROWS if self.classes is None else CLASS_ROWS


def halves(test: Dataset) -> tuple[Dataset, Dataset]:
    """Two random halves, the same in every run."""
    order = np.random.default_rng(0).permutation(len(test))
    middle = len(test) // 2
    return test.select(sorted(order[:middle])), test.select(sorted(order[middle:]))


def of_classes(data: Dataset, classes: list[str]) -> list[int]:
    names = data.features["label"].names
    return np.flatnonzero(np.isin(data["label"][:], [names.index(name) for name in classes])).tolist()


def class_bench(name: str, data: str, model: str, classes: list[str], retrained: list[str], most: int) -> Bench:
    """Classes of a data set, of a model that is there, both by Hub id or folder."""
    train, test = (load_dataset(data, split=split) for split in ("train", "test"))
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
    train, test = (load_dataset(data, split=split) for split in ("train", "test"))
    validation, tested = halves(test)

    def parts(seed: int) -> tuple[Dataset, Dataset]:
        rows = np.random.default_rng(seed).permutation(len(train))[: round(share * len(train))].tolist()
        return train.select(rows), without(train, rows)

    return Bench(name, lambda seed: load_classifier(model), parts, tested, validation, None)


def digits_bench(folder: Path) -> Bench:
    """Digits without the 3: models are trained once for each seed and kept in ``folder``."""
    train, test = digits_dataset()
    names = train.features["label"].names
    rows = of_classes(train, ["3"])
    validation, tested = halves(test)

    def trained(seed: int, drop: list[int]):
        place = folder / f"digits-{seed}-{len(drop)}"
        model, processor = digits_model(names, seed)
        if not place.exists():
            config = quiet_config(output_dir=str(folder / "training"), seed=seed)
            train_classifier(model, processor, train, drop, config).save_pretrained(place)
        return type(model).from_pretrained(place), processor

    return Bench(
        "digits without the 3",
        lambda seed: trained(seed, []),
        lambda seed: (train.select(rows), without(train, rows)),
        tested,
        validation,
        ["3"],
        lambda seed: [trained(seed + 1000 * k, [3])[0] for k in (1, 2)],
    )


def load_benches(names: list[str], places: dict[str, dict], folder: Path) -> list[Bench]:
    """The benches by name: "digits", which needs nothing, or an entry of the file of places.

    An entry is {"data": ..., "model": ..., "classes": [...] or "share": 0.1, "retrained": [...], "most": 1000}.
    """
    found = []
    for name in names:
        if name == "digits":
            found.append(digits_bench(folder))
            continue
        place = dict(places[name])
        if "share" in place:
            found.append(image_bench(name, place["data"], place["model"], place["share"]))
        else:
            most = place.get("most", 1000)
            retrained = place.get("retrained", [])
            found.append(class_bench(name, place["data"], place["model"], place["classes"], retrained, most))
    return found


def read_places(path: Path | None) -> dict[str, dict]:
    return {} if path is None else json.loads(path.read_text())
