"""What is to be forgotten: the rows of a data set that a request means, and the ledger of all requests on a model.

The ledger is ``config.unlearning`` of the model, a list of entries, oldest first, so it travels with the weights. A
later request keeps what the earlier ones forgot: their classes get no proxies and no share of any target.

An entry commits to the images without telling which they were: ``commitment`` is a SHA-256 over a secret nonce, the
classes and the images. The nonce stays in ``_request.json`` beside the model, which no push uploads. Who holds it and
the images can prove later what the request was; who holds the images alone cannot even test a guess.
"""

import datetime
import difflib
import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral
from pathlib import Path

from datasets import ClassLabel, Dataset, Value
from torch import Tensor

from ..errors import UnlearningError
from ..parallel.processes import from_first
from .labels import resolve_classes, rows_of_classes
from .names import composed, shown, written
from .sources import columns_of

LEDGER = "unlearning"  # attribute of the model's config
PRIVATE_NAME = "_request.json"


@dataclass(frozen=True)
class Request:
    """The classes that a request forgets, ``class_ids``, and with those of every earlier request, ``forgotten_ids``:
    none is a target, none counts as retained. Ids are the model's, sorted; ``history`` is the ledger before it."""

    class_ids: list[int]
    forgotten_ids: list[int]
    history: list[dict]


def resolve_request(
    forget_classes: Sequence[str | int] | None,
    names: Sequence[str],
    config,
    forgets: Sequence[str] = ("classes",),
    data_labels: Mapping[str, int] | None = None,
) -> Request:
    """What a request asks of a model, by what the model has forgotten already.

    Args:
        names: the model's labels. config: its config, which holds the ledger.
        forgets: what the method can forget: "classes", "images" (whose classes stay), or both.
        data_labels: the data's own names of the classes, of :func:`zspag_hf.data.labels.data_labels`.

    Raises:
        UnlearningError: an unknown class, one with two readings, one that is gone already, fewer than two classes that
            would stay, or what the method cannot forget.
    """
    history = earlier_requests(config)
    if forget_classes and "classes" not in forgets:
        raise UnlearningError(
            f"the method forgets images and keeps their classes, so it cannot forget {forget_classes}: leave"
            " forget_classes unset, or give a method that forgets classes, such as method='zspag'."
        )
    earlier = forgotten_ids(history)
    if not forget_classes and "images" in forgets:
        return Request([], earlier, history)
    class_ids = resolve_classes(forget_classes, names, data_labels)
    for number, entry in enumerate(history, 1):
        if again := sorted(set(forgotten_ids([entry])) & set(class_ids)):
            raise UnlearningError(
                f"the model has forgotten {shown([names[i] for i in again])} already, by request {number} of"
                f" {entry.get('date', 'an unknown date')}: leave it out of forget_classes."
            )
    gone = sorted({*class_ids, *earlier})
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
        class_ids: the classes to forget, as the model's ids; ``mapping`` from the data set's label ids to those.
        indices: rows of the data set, from 0.
        column, values: rows whose column holds one of the values, for example a person's name.

    Raises:
        UnlearningError: both ways at once, an index outside the data set or twice, an unknown column or value, no row.
    """
    if indices is not None and (column or values):
        raise UnlearningError(
            f"images were named both by forget_indices and by forget_column={column!r}: give one of the two."
        )
    for name, given in (("forget_indices", indices), ("forget_values", values)):
        if isinstance(given, (str, int, float)):
            raise UnlearningError(f"{name}={given!r} is no list: give {name}=[{given!r}].")
    if indices is not None:
        return _rows_by_index(len(dataset), indices)
    if column and values:
        return _rows_by_value(dataset, column, values)
    if column or values:
        raise UnlearningError(f"forget_column={column!r} and forget_values={values!r} belong together: give both.")
    if not class_ids:
        raise UnlearningError("no image to forget was named: give forget_indices, or forget_column with forget_values.")
    rows = rows_of_classes(dataset, label_column, mapping, class_ids)
    if not rows:
        raise UnlearningError(
            f"none of the data set's {len(dataset)} images is of the classes {list(class_ids)} to forget: give as"
            " train_split the one that holds them."
        )
    return rows


def _rows_by_index(count: int, indices: Sequence[int]) -> list[int]:
    if not len(indices):
        raise UnlearningError(
            "forget_indices=[] names no image: give at least one row, or leave it out for all images of the classes."
        )
    if strange := [i for i in indices if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= i < count]:
        raise UnlearningError(
            f"there is no image {strange[0]!r}: the data set's rows run from 0 to {count - 1}. Mend forget_indices."
        )
    rows = sorted(indices)
    if twice := [row for row, following in itertools.pairwise(rows) if row == following]:
        raise UnlearningError(f"image {twice[0]} is named twice in forget_indices: name each image once.")
    return rows


def _rows_by_value(dataset: Dataset, column: str, values: Sequence[str | int]) -> list[int]:
    if column not in dataset.column_names:
        columns = columns_of(dataset)
        raise UnlearningError(f"there is no column {column!r} among {columns}: give one of them as forget_column.")
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):  # None or -1 stands for an image without a label
        texts = ["" if item is None or item < 0 else feature.int2str(item) for item in dataset[column][:]]
    elif isinstance(feature, Value):
        texts = [str(item) for item in dataset[column][:]]
    else:
        held = type(feature).__name__
        raise UnlearningError(f"the column {column!r} holds {held}: give as forget_column one of text or numbers.")
    texts, wanted = [composed(text) for text in texts], {composed(str(value)) for value in values}
    for value in sorted(wanted.difference(texts)):
        near = difflib.get_close_matches(value, set(texts), n=1, cutoff=0.0)
        hint = f" Did you mean {written(near[0])}?" if near else ""
        told = f"no row of the column {column!r} holds {written(value)}.{hint}"
        raise UnlearningError(f"{told} Give a value that stands in it.")
    return [row for row, text in enumerate(texts) if text in wanted]


def earlier_requests(config) -> list[dict]:
    """The ledger of a model, oldest request first; empty for a model that never forgot anything. Refuses entries that
    are not this library's, or of classes that the model no longer has."""
    ledger = getattr(config, LEDGER, None) or []
    try:
        for known in (known for entry in ledger for known in entry["classes"]):
            if config.id2label[known["id"]] != known["label"]:
                raise UnlearningError(
                    f"the model's ledger says that class {known['id']}, {known['label']!r}, was forgotten, but that"
                    f" class is called {config.id2label[known['id']]!r}: mend id2label or {LEDGER!r} in config.json."
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


def new_entry(
    classes: list[dict], images: Tensor, nonce: str, method: str, seed: int, base_model: str, base_revision: str | None
) -> dict:
    """The ledger's entry of one request: for ``classes`` (id and label of each, none where only images are forgotten)
    and ``images``, uint8 ``(N, channels, H, W)``, with the nonce of :func:`draw_nonce`."""
    return {
        "classes": classes,
        "images": len(images),
        "method": method,
        "seed": seed,
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
    return from_first(secrets.token_hex(32))


def commitment(nonce: str, classes: list[dict], images: Tensor) -> str:
    """SHA-256, in hexadecimal, over nonce, classes and images (pixels as the model sees them, in any order)."""
    digests = sorted(hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images)
    text = json.dumps({"nonce": nonce, "classes": classes, "images": digests}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_nonce(folder: str, nonce: str, sealed: str) -> None:
    """Keep the nonce of a commitment, ``sealed``, beside the model, with those of earlier runs in the folder, readable
    by its owner alone."""
    path = os.path.join(folder, PRIVATE_NAME)
    with open(os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(_nonces(folder) | {sealed: nonce}, file, indent=1)
    os.replace(path + ".part", path)


def _nonces(folder: str) -> dict[str, str]:
    """commitment -> nonce of every run that was saved in a folder."""
    path = Path(folder, PRIVATE_NAME)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def was_begun(folder: str, classes: list[dict], images: Tensor) -> bool:
    """Whether every nonce that a folder holds is of a request for these classes and images; True for none."""
    return all(commitment(nonce, classes, images) == sealed for sealed, nonce in _nonces(folder).items())


def proves(folder: str, entry: dict, images: Tensor) -> bool:
    """Whether these images, uint8 ``(N, channels, H, W)`` in any order, are those that an entry of ledger or report
    commits to, by the nonce in ``folder``; refuses a folder that holds none of this entry."""
    nonce = _nonces(folder).get(entry["commitment"])
    if nonce is None:
        raise UnlearningError(
            f"{folder!r} holds no {PRIVATE_NAME} with the nonce of this request, which no push uploads: give the"
            " output_dir of the run itself."
        )
    return commitment(nonce, entry["classes"], images) == entry["commitment"]
