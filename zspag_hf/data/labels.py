"""Label names and ids: of the request, of the data set and of the model, reconciled by name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Value
from torch import Tensor

from ..errors import UnlearningError


def model_labels(config) -> list[str]:
    """The model's label names in the order of their ids; refuses an id without one."""
    names = [config.id2label.get(i) for i in range(config.num_labels)]
    if nameless := [i for i, name in enumerate(names) if not isinstance(name, str)]:
        raise UnlearningError(
            f"the model's id2label has no name for the id {nameless[0]}: give config.id2label all {len(names)} names."
        )
    return names


def check_dataset(dataset, name: str) -> None:
    """Refuse anything but one data set that is read as it was stored; ``name`` is the argument's, for the message."""
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise UnlearningError(f"{name} must be one datasets.Dataset, not {kind}: pass one split, without streaming.")
    if dataset.format["type"] is not None:
        kind = dataset.format["type"]
        raise UnlearningError(f"{name} has the format {kind!r}, which hides images: pass it with_format(None).")


def distinct(names: Sequence[str]) -> list[str]:
    """Names with the id behind those that stand twice, such as ImageNet's two cranes."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def shown(names: Sequence[str], most: int = 30) -> str:
    """Names for an error message, cut after ``most``."""
    return ", ".join(map(repr, names[:most])) + (f", ... ({len(names) - most} more)" if len(names) > most else "")


def resolve_classes(
    requested: Sequence[str | int] | None, names: Sequence[str], data_labels: Mapping[str, int] | None = None
) -> list[int]:
    """Class names or ids -> sorted ids of the model.

    A name matches the whole label or one of its comma-separated synonyms, without regard to case; digits are an id only
    where no label has that name, of the model or of the data.

    Args:
        names: the model's labels. data_labels: of :func:`data_labels`, which a request may use too.

    Raises:
        UnlearningError: an unknown label, one with two readings, no class, or all of them.
    """
    if isinstance(requested, (str, int, float)):
        requested = [requested]
    if not requested:
        raise UnlearningError(
            "no class to forget was given: pass forget_classes, for example forget_classes=['cat'],"
            " or method='amun' for images whose classes stay."
        )
    ids = sorted({_resolve_class(label, names, data_labels or {}) for label in requested})
    if len(ids) == len(names):
        raise UnlearningError(
            f"all {len(names)} classes are to be forgotten: at least two must stay, so take some out of forget_classes."
        )
    return ids


def _resolve_class(given: str | int, names: Sequence[str], data_labels: Mapping[str, int]) -> int:
    label = str(given)
    key, known = label.strip().casefold(), [name.casefold() for name in names]
    ids = [i for i, name in enumerate(known) if name == key]
    ids = ids or [i for i, name in enumerate(known) if key in map(str.strip, name.split(","))]
    number = [int(key)] if not ids and key.isdecimal() and int(key) < len(names) else []
    if len(ids) > 1:
        matches = shown([names[i] for i in ids])
        raise UnlearningError(f"the label {label!r} is ambiguous: it matches {matches}. Give one in full, or its id.")
    in_data = sorted({i for name, i in data_labels.items() if name.strip().casefold() == key})
    own = ids or (number if isinstance(given, int) else [])  # digits in text are the data's label before they are an id
    if in_data and len({*in_data, *own}) > 1:
        readings = [f"{names[i]!r} by the data's labels" for i in in_data]
        readings += [f"{names[i]!r} by the model's" for i in own]
        raise UnlearningError(
            f"the class {given!r} to forget has two readings, {' and '.join(readings)}: give the model's own label."
        )
    if not (ids := ids or in_data or number):
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f" Did you mean {names[known.index(nearest[0])]!r}?" if nearest else ""
        raise UnlearningError(
            f"the model has no label {label!r}.{hint} Give one of its {len(names)} labels or an id from 0 to"
            f" {len(names) - 1}: {shown(names)}."
        )
    return ids[0]


def reconcile_labels(
    dataset_names: Sequence[str] | None, names: Sequence[str], *, offset: int | None = None, mapping: dict | None = None
) -> list[int]:
    """For each label id of the data set, the model's id: by name where every data set label is one of the model's (the
    whole name, without regard to case), by id where a model of as many classes has no names (LABEL_0, LABEL_1, ...).

    Args:
        dataset_names: the data set's ``ClassLabel`` names; None for plain integers, taken as the model's ids.
        offset: added to each data set id, for a model with a background class in front.
        mapping: data set name -> model label or id, for every data set name.

    Raises:
        UnlearningError: labels that do not fit; the message shows both lists.
    """
    if offset is not None and mapping is not None:
        raise UnlearningError(f"both label_offset {offset} and a label mapping were given: give one.")
    if offset is not None and not isinstance(offset, int):
        raise UnlearningError(f"label_offset={offset!r} is no whole number: give one, for example 1.")
    if mapping is not None and not isinstance(mapping, dict):
        raise UnlearningError(f"the label mapping is of type {type(mapping).__name__}: give a dict, label -> label.")
    count = len(names) if dataset_names is None else len(dataset_names)
    ids = [i + (offset or 0) for i in range(count)]
    if dataset_names is None:
        if mapping is not None:
            raise UnlearningError(
                f"a label mapping was given, starting with {next(iter(mapping), None)!r}, and the data set's labels are"
                " numbers without names: cast them with dataset.class_encode_column, or give label_offset."
            )
        return ids
    if offset is not None:
        if outside := sum(not 0 <= i < len(names) for i in ids):
            raise UnlearningError(
                f"label_offset {offset} sends {outside} of {count} data set labels outside the model's {len(names)}"
                " classes: give the model's id of the data set's first label, or leave label_offset unset."
            )
        return ids
    if mapping is not None:
        if missing := [name for name in dataset_names if name not in mapping]:
            raise UnlearningError(
                f"the label mapping lacks the label {missing[0]!r}: give each of its {count} labels one of the model's."
            )
        return [_resolve_class(mapping[name], names, {}) for name in dataset_names]
    keys, known = ([name.strip().casefold() for name in some] for some in (dataset_names, names))
    if keys == known:
        return ids  # also where a name stands twice
    if list(names) == [f"LABEL_{i}" for i in ids]:
        _check_numbers(keys)
        return ids
    by_name = {key: i for i, key in enumerate(known)}
    if unfit := [i for i in ids if keys[i] not in by_name] or [i for i in ids if keys[i] in keys[:i]]:
        problem = "is not one of the model's" if keys[unfit[0]] not in by_name else "stands twice"
        raise UnlearningError(
            f"the data set's label {dataset_names[unfit[0]]!r} {problem}. Data set ({count}):"
            f" {shown(dataset_names, 8)}. Model ({len(names)}): {shown(names, 8)}. Give label_offset (for example 1 for"
            " a background class) or a label mapping."
        )
    return [by_name[key] for key in keys]


def _check_numbers(keys: Sequence[str]) -> None:
    """Refuse labels 0, 1, 10, 11, 2, ... of a model without names, which counts either their places or themselves."""
    numbers = [int(key) if key.isdecimal() else -1 for key in keys]
    if sorted(numbers) == list(range(len(keys))) and numbers != sorted(numbers):
        place, number = next((i, n) for i, n in enumerate(numbers) if i != n)
        raise UnlearningError(
            f"the data set's label {keys[place]!r} has two readings, 'LABEL_{place}' by its place among"
            f" {len(keys)} labels and 'LABEL_{number}' by its number: give label_offset=0 for the place, or a label"
            " mapping."
        )


def data_labels(dataset: Dataset, label_column: str, names: Sequence[str], **reconciled: Any) -> dict[str, int]:
    """The data set's own names of the model's classes, name -> id: empty where its labels are numbers.

    Args:
        names: the model's labels. reconciled: ``offset`` and ``mapping`` of :func:`reconcile_labels`.

    Raises:
        UnlearningError: labels that do not fit the model's.
    """
    held = class_names(dataset, label_column)
    return {} if held is None else dict(zip(held, reconcile_labels(held, names, **reconciled), strict=True))


def class_names(dataset: Dataset, label_column: str, option: str = "label_column_name") -> list[str] | None:
    """The ``ClassLabel`` names of a column, or None for plain integers; refuses any other. ``option`` names it."""
    if label_column not in dataset.column_names:
        columns = dataset.column_names
        raise UnlearningError(f"there is no label column {label_column!r} among {columns}: give {option}.")
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return feature.names
    held = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if not held.startswith(("int", "uint")):
        raise UnlearningError(
            f"the label column {label_column!r} holds {held}: cast it with"
            f" dataset.class_encode_column({label_column!r}), or give another {option}."
        )
    return None


def label_ids(dataset: Dataset, label_column: str, mapping: Sequence[int], num_labels: int) -> Tensor:
    """A label column as the model's ids, ``(N,)``; ``mapping`` is from :func:`reconcile_labels`. Refuses an image
    that has no label, or one outside the model's classes."""
    held = dataset[label_column][:]
    if None in held:
        raise UnlearningError(
            f"image {held.index(None)} has no label in the column {label_column!r}: remove the image, or label it."
        )
    ids = [mapping[label] if 0 <= label < len(mapping) else None for label in held]
    for label, i in zip(held, ids, strict=True):
        if i is None or not 0 <= i < num_labels:
            raise UnlearningError(
                f"the data set's label id {label} {'is' if i is None else f'becomes {i},'} outside the model's"
                f" {num_labels} classes: remove its images, or give another label_offset."
            )
    return torch.tensor(ids, dtype=torch.long)


def wrong_labels(
    dataset: Dataset, column: str, names: Sequence[str], forget_ids: Sequence[int], **reconciled: Any
) -> Tensor:
    """The retained class that each image was trained under, ``(N,)`` in the model's ids; -1 where the column says
    nothing (None or -1), or a class that is forgotten.

    Args:
        names: the model's labels. reconciled: ``offset`` and ``mapping`` of :func:`reconcile_labels`.

    Raises:
        UnlearningError: no such column, or labels that are none of the model's.
    """
    ids = reconcile_labels(class_names(dataset, column, "trained_label_column"), names, **reconciled)
    held = dataset[column][:]
    there = [row for row, label in enumerate(held) if label not in (None, -1)]
    wrong = torch.full((len(held),), -1)
    if there:
        wrong[there] = label_ids(dataset.select(there), column, ids, len(names))
    return wrong.masked_fill(torch.isin(wrong, torch.tensor(list(forget_ids))), -1)


def rows_of_classes(dataset: Dataset, label_column: str, mapping: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Indices of the images whose label maps to one of the model's ``ids``."""
    wanted = {i for i, mapped in enumerate(mapping) if mapped in set(ids)}
    return [row for row, label in enumerate(dataset[label_column][:]) if label in wanted]
