"""What is to be forgotten: the rows of a data set that a request means, and the ledger of all requests on a model.

The ledger is ``config.unlearning`` of the model, a list of entries, oldest first, so it travels with the weights. A
later request keeps what the earlier ones forgot: their classes get no proxies and no share of any target.

An entry commits to the images without telling which they were: ``commitment`` is a SHA-256 over a secret nonce, the
classes and the images. The nonce stays in ``_request.json`` beside the model, which no push uploads. Who holds it and
the images can prove later what the request was; who holds the images alone cannot even test a guess.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral

from accelerate.utils import broadcast_object_list
from datasets import ClassLabel, Dataset, Value
from torch import Tensor

from ..errors import UnlearningError
from ..methods import METHODS
from ..report.report import REPORT_NAME, UnlearningReport
from .labels import resolve_classes, rows_of_classes, shown

LEDGER = "unlearning"  # attribute of the model's config
PRIVATE_NAME = "_request.json"


@dataclass(frozen=True)
class Request:
    """Ids are the model's, sorted.

    Attributes:
        class_ids: the classes that this request forgets.
        forgotten_ids: those and the classes of every earlier request: none is a target, none counts as retained.
        history: the ledger's entries before this request.
    """

    class_ids: list[int]
    forgotten_ids: list[int]
    history: list[dict]


def resolve_request(
    forget_classes: Sequence[str | int] | None, names: Sequence[str], config, method: str = "zspag"
) -> Request:
    """What a request asks of a model, by what the model has forgotten already.

    Raises:
        UnlearningError: an unknown class, one that is gone already, or fewer than two classes that would stay; classes
            for a method that forgets images, or none for one that forgets classes.
    """
    history = earlier_requests(config)
    kinds = METHODS[method].forgets
    if forget_classes and "classes" not in kinds:
        raise UnlearningError(
            f"method={method!r} forgets images and keeps their classes, so it cannot forget {forget_classes}: leave"
            " forget_classes unset, or give method='zspag'."
        )
    if not forget_classes and "images" in kinds:
        return Request([], forgotten_ids(history), history)
    class_ids = resolve_classes(forget_classes, names)
    check_new(class_ids, history, names)
    gone = sorted({*class_ids, *forgotten_ids(history)})
    if len(names) - len(gone) < 2:
        raise UnlearningError(
            f"forgetting {forget_classes} would leave {len(names) - len(gone)} of {len(names)} classes, and a model"
            " with one answer at most: at least two must stay, so take some out of forget_classes."
        )
    return Request(class_ids, gone, history)


def select_rows(
    dataset: Dataset,
    *,
    class_ids: Sequence[int],
    mapping: Sequence[int],
    label_column: str = "label",
    indices: Sequence[int] | None = None,
    column: str | None = None,
    values: Sequence[str | int] | None = None,
) -> list[int]:
    """The rows of a data set that a request means: by index, by a column's values, or else all images of its classes.

    Args:
        class_ids: the classes to forget, as the model's ids.
        mapping: data set label id -> model label id, from :func:`zspag_hf.data.labels.reconcile_labels`.
        indices: rows of the data set, from 0.
        column, values: rows whose column holds one of the values, for example a person's name.

    Raises:
        UnlearningError: both ways at once, an index outside the data set or given twice, an unknown column or value, or
            no row.
    """
    if indices is not None and (column or values):
        raise UnlearningError(
            f"images were named both by forget_indices and by forget_column={column!r}: give one of the two."
        )
    if bool(column) != bool(values):
        raise UnlearningError(f"forget_column={column!r} and forget_values={values!r} belong together: give both.")
    for name, given in (("forget_indices", indices), ("forget_values", values)):
        if isinstance(given, (str, int, float)):
            raise UnlearningError(f"{name}={given!r} is no list: give {name}=[{given!r}].")
    if indices is not None:
        return rows_by_index(len(dataset), indices)
    if column:
        return rows_by_value(dataset, column, values)
    if not class_ids:
        raise UnlearningError("no image to forget was named: give forget_indices, or forget_column with forget_values.")
    rows = rows_of_classes(dataset, label_column, mapping, class_ids)
    if not rows:
        raise UnlearningError(
            f"none of the data set's {len(dataset)} images is of the classes {list(class_ids)} to forget: give as"
            " train_split the one that holds them."
        )
    return rows


def rows_by_index(count: int, indices: Sequence[int]) -> list[int]:
    if not len(indices):
        raise UnlearningError(
            "forget_indices=[] names no image: give at least one row, or leave it out for all images of the classes."
        )
    outside = [i for i in indices if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= i < count]
    if outside:
        raise UnlearningError(
            f"there is no image {outside[0]!r}: the data set's rows run from 0 to {count - 1}. Mend forget_indices."
        )
    if len(set(indices)) < len(indices):
        twice = next(i for i in indices if list(indices).count(i) > 1)
        raise UnlearningError(f"image {twice} is named twice in forget_indices: name each image once.")
    return sorted(indices)


def rows_by_value(dataset: Dataset, column: str, values: Sequence[str | int]) -> list[int]:
    if column not in dataset.column_names:
        raise UnlearningError(
            f"the data set has no column {column!r}; its columns are {dataset.column_names}. Give forget_column."
        )
    feature = dataset.features[column]
    if not isinstance(feature, (ClassLabel, Value)):
        raise UnlearningError(
            f"the column {column!r} holds {type(feature).__name__}: give as forget_column one of text or numbers."
        )
    found = dataset[column][:]
    if isinstance(feature, ClassLabel):  # None or -1 stands for an image without a label
        held = ["" if item is None or item < 0 else feature.int2str(item) for item in found]
    else:
        held = [str(item) for item in found]
    wanted, there = {str(value) for value in values}, set(held)
    for value in sorted(wanted - there):
        near = difflib.get_close_matches(value, there, n=1, cutoff=0.0)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnlearningError(f"no row of the column {column!r} holds {value!r}.{hint} Give a value that stands in it.")
    return [row for row, item in enumerate(held) if item in wanted]


def earlier_requests(config) -> list[dict]:
    """The ledger of a model, oldest request first; empty for a model that never forgot anything.

    Raises:
        UnlearningError: entries that are not this library's, or classes that the model no longer has.
    """
    ledger = getattr(config, LEDGER, None) or []
    try:
        for entry in ledger:
            for known in entry["classes"]:
                if config.id2label[known["id"]] != known["label"]:
                    raise UnlearningError(
                        f"the model's ledger says that class {known['id']}, {known['label']!r}, was forgotten, but that"
                        f" class is called {config.id2label[known['id']]!r}: restore id2label, or mend"
                        f" {LEDGER!r} in config.json."
                    )
    except (KeyError, TypeError) as error:
        raise UnlearningError(
            f"{LEDGER!r} in the model's config.json is no ledger of requests ({type(error).__name__}: {error}): restore"
            " the file, or remove the entry and name all forgotten classes anew."
        ) from error
    return list(ledger)


def forgotten_ids(history: Sequence[dict]) -> list[int]:
    """The classes that the requests of a ledger forgot, sorted."""
    return sorted({known["id"] for entry in history for known in entry["classes"]})


def check_new(ids: Sequence[int], history: Sequence[dict], names: Sequence[str]) -> None:
    """Refuse a class that the model has forgotten already.

    Raises:
        UnlearningError: it names the class and the request.
    """
    for number, entry in enumerate(history, 1):
        gone = {known["id"] for known in entry["classes"]} & set(ids)
        if gone:
            raise UnlearningError(
                f"the model has forgotten {shown([names[i] for i in sorted(gone)])} already, by request {number} of"
                f" {entry.get('date', 'an unknown date')}: leave it out of forget_classes."
            )


def new_entry(
    classes: list[dict], images: Tensor, nonce: str, *, base_model: str, base_revision: str | None, args
) -> dict:
    """The ledger's entry of one request.

    Args:
        classes: id and label of each class; empty where only images are forgotten.
        images: ``(N, channels, H, W)`` uint8, the images of the request.
        nonce: from :func:`draw_nonce`.
    """
    return {
        "classes": classes,
        "images": len(images),
        "method": args.method,
        "seed": args.seed,
        "base_model": base_model,
        "base_revision": base_revision,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commitment": commitment(nonce, classes, images),
        "zspag_hf": version("zspag-hf"),
    }


def described(entry: dict) -> str:
    """What an entry forgot, in a few words, for a commit message."""
    labels = [known["label"] for known in entry["classes"]]
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" * (len(labels) > 5)) or f"{entry['images']} images"


def draw_nonce() -> str:
    """32 random bytes in hexadecimal, the same in every process: not from the run's seed, which is published."""
    return broadcast_object_list([secrets.token_hex(32)])[0]


def commitment(nonce: str, classes: list[dict], images: Tensor) -> str:
    """SHA-256, in hexadecimal, over nonce, classes and images (pixels as the model sees them, in any order)."""
    digests = sorted(hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images)
    text = json.dumps({"nonce": nonce, "classes": classes, "images": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_nonce(folder: str, nonce: str, found: str) -> None:
    """Keep the nonce beside the model, with those of earlier runs in the folder, readable by its owner alone."""
    path = os.path.join(folder, PRIVATE_NAME)
    with open(os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(nonces(folder) | {found: nonce}, file, indent=1)
    os.replace(path + ".part", path)


def nonces(folder: str) -> dict[str, str]:
    """commitment -> nonce of every run that was saved in a folder."""
    path = os.path.join(folder, PRIVATE_NAME)
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def proves(folder: str, entry: dict, images: Tensor) -> bool:
    """Whether these images are those that an entry commits to, by the nonce in ``folder``.

    Args:
        entry: of the ledger or of the report. images: ``(N, channels, H, W)`` uint8, in any order.

    Raises:
        UnlearningError: the folder does not hold the nonce of this entry.
    """
    nonce = nonces(folder).get(entry["commitment"])
    if nonce is None:
        raise UnlearningError(
            f"{folder!r} holds no {PRIVATE_NAME} with the nonce of this request, which no push uploads: give the"
            " output_dir of the run itself."
        )
    return commitment(nonce, entry["classes"], images) == entry["commitment"]


def check_same_images(folder: str, images: Tensor) -> None:
    """Refuse a folder that holds the result of a request for other images: where no class is named, nothing else tells
    two requests apart.

    Args:
        images: ``(N, channels, H, W)`` uint8.

    Raises:
        UnlearningError: other images, or no nonce to tell by.
    """
    if os.path.isfile(os.path.join(folder, REPORT_NAME)):
        earlier = UnlearningReport.load(folder).request
        if earlier is None or not proves(folder, earlier, images):
            raise UnlearningError(
                f"output_dir {folder!r} holds the result of a request for other images: give an empty or a new folder."
            )
