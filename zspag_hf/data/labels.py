"""Label names and ids: of the request, of the data set and of the model, reconciled by name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Value
from torch import Tensor

from ..errors import UnlearningError
from .names import Lookup, comparable, shown, written
from .sources import TEXT, columns_of, replaced, row_of


def model_labels(config) -> list[str]:
    """The model's label names in the order of their ids; refuses an id without one."""
    names = [config.id2label.get(i) for i in range(config.num_labels)]
    if not names:
        raise UnlearningError("the model's id2label is empty: give config.id2label a name for each of its classes.")
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
    lookup = Lookup(names)
    ids = sorted({_resolve_class(label, names, lookup, data_labels or {}) for label in requested})
    if len(ids) == len(names):
        raise UnlearningError(
            f"all {len(names)} classes are to be forgotten: at least two must stay, so take some out of forget_classes."
        )
    return ids


def _resolve_class(given: str | int, names: Sequence[str], lookup: Lookup, data_labels: Mapping[str, int]) -> int:
    label = str(given)
    key = comparable(label)
    ids = lookup.ids(label) or lookup.synonyms(label)
    digits = key.isascii() and key.isdecimal() and len(key) < 10
    number = [int(key)] if not ids and digits and int(key) < len(names) else []
    if len(ids) > 1:
        matches = shown([names[i] for i in ids])
        raise UnlearningError(
            f"the label {written(label)} is ambiguous: it matches {matches}. Give one in full, or its id."
        )
    in_data = sorted({i for name, i in data_labels.items() if comparable(name) == key})
    own = ids or (number if isinstance(given, int) else [])  # digits in text are the data's label before they are an id
    if in_data and len({*in_data, *own}) > 1:
        readings = [f"{written(names[i])} by the data's labels" for i in in_data]
        readings += [f"{written(names[i])} by the model's" for i in own]
        raise UnlearningError(
            f"the class {given!r} to forget has two readings, {' and '.join(readings)}: give the model's own label."
        )
    if not (ids := ids or in_data or number):
        known = list(map(comparable, names))
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f" Did you mean {written(names[known.index(nearest[0])])}?" if nearest else ""
        raise UnlearningError(
            f"the model has no label {written(label)}.{hint} Give one of its {len(names)} labels or an id from 0 to"
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
        alike = {comparable(str(name)): name for name in mapping}
        own = [name if name in mapping else alike.get(comparable(name)) for name in dataset_names]
        if None in own:
            missing = written(dataset_names[own.index(None)])
            raise UnlearningError(
                f"the label mapping lacks the label {missing}: give each of its {count} labels one of the model's."
            )
        lookup = Lookup(names)
        return [_resolve_class(mapping[key], names, lookup, {}) for key in own]
    keys = list(map(comparable, dataset_names))
    if keys == list(map(comparable, names)):
        return ids  # also where a name stands twice
    if list(names) == [f"LABEL_{i}" for i in ids]:
        _check_numbers(keys)
        return ids
    return _by_name(dataset_names, names)


def _by_name(dataset_names: Sequence[str], names: Sequence[str]) -> list[int]:
    """The model's id of each name; refuses one that is none of the model's, or that two classes of either share."""
    lookup, problem, seen = Lookup(names), "", set[int]()
    found = [lookup.ids(name) for name in dataset_names]
    for name, ids in sorted(zip(dataset_names, found, strict=True), key=lambda pair: len(pair[1]) == 1):
        if len(ids) != 1:
            problem = "names several of the model's classes" if ids else "is not one of the model's"
        elif ids[0] in seen:
            problem = "stands twice"
        if problem:
            raise UnlearningError(
                f"the data set's label {written(name)} {problem}. Data set ({len(dataset_names)}):"
                f" {shown(dataset_names, 8)}. Model ({len(names)}): {shown(names, 8)}. Give label_offset (for example 1"
                " for a background class) or a label mapping."
            )
        seen.add(ids[0])
    return [ids[0] for ids in found]


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
        columns = columns_of(dataset)
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
        row = row_of(dataset, held.index(None))
        raise UnlearningError(
            f"image {row} has no label in the column {label_column!r}: remove the image, or label it."
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


def with_named_labels(splits: Sequence[Dataset], column: str) -> list[Dataset]:
    """Splits whose labels are texts with the ids of these names instead, sorted and the same in all; names that differ
    in case, in blanks around them or in the coding of accents are one. An empty text is no label, nor is a missing one
    among ids, which pandas writes as numbers with a point. Other labels stay as they are."""
    splits = [_whole(split, column) for split in splits]
    texts = [isinstance(f := d.features.get(column), Value) and f.dtype in TEXT for d in splits]
    found = {text for d, is_text in zip(splits, texts, strict=True) if is_text for text in d.unique(column) if text}
    first: dict[str, str] = {}
    for text in sorted(found):
        first.setdefault(comparable(text), text)
    names = list(first.values())
    ids = {key: i for i, key in enumerate(first)}
    place = {text: ids[comparable(text)] for text in found}
    return [
        replaced(d, column, [place.get(text) for text in d[column][:]], ClassLabel(names=names)) if is_text else d
        for d, is_text in zip(splits, texts, strict=True)
    ]


def _whole(dataset: Dataset, column: str) -> Dataset:
    feature = dataset.features.get(column)
    if not isinstance(feature, Value) or feature.dtype not in ("float32", "float64"):
        return dataset
    held = [None if value is None or value != value else value for value in dataset[column][:]]
    if not all(value is None or float(value).is_integer() for value in held):
        return dataset
    return replaced(dataset, column, [None if value is None else int(value) for value in held], Value("int64"))


def rows_of_classes(dataset: Dataset, label_column: str, mapping: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Indices of the images whose label maps to one of the model's ``ids``."""
    wanted = {i for i, mapped in enumerate(mapping) if mapped in set(ids)}
    return [row for row, label in enumerate(dataset[label_column][:]) if label in wanted]
