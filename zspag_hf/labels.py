"""Label names and ids: of the request, of the data set and of the model, reconciled by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from .errors import UnlearningError


def model_labels(config) -> list[str]:
    """The model's label names in the order of their ids."""
    try:
        return [config.id2label[i] for i in range(config.num_labels)]
    except KeyError as error:
        raise UnlearningError(f"the model's id2label lacks the id {error}: ids must run from 0.") from error


def distinct(names: Sequence[str]) -> list[str]:
    """Names with the id behind those that stand twice, such as ImageNet's two cranes."""
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def resolve_classes(requested: Sequence[str | int], names: Sequence[str]) -> list[int]:
    """Class names or ids -> sorted ids of the model.

    A name matches the whole label or one of its comma-separated synonyms, without regard to case; digits are an id only
    where no label has that name.

    Raises:
        UnlearningError: unknown or ambiguous label, none requested, or every class requested.
    """
    if not requested:
        raise UnlearningError("no class to forget was given: pass forget_classes, for example forget_classes=['cat'].")
    ids = set()
    for label in requested:
        key = str(label).strip().casefold()
        found = [i for i, name in enumerate(names) if name.casefold() == key]
        found = found or [i for i, name in enumerate(names) if key in [p.strip() for p in name.casefold().split(",")]]
        if not found and key.isdigit() and int(key) < len(names):
            found = [int(key)]
        if len(found) != 1:
            raise UnlearningError(unknown_label(str(label), names, found))
        ids.add(found[0])
    if len(ids) == len(names):
        raise UnlearningError(f"all {len(names)} classes are to be forgotten: at least one must stay.")
    return sorted(ids)


def unknown_label(label: str, names: Sequence[str], found: list[int]) -> str:
    if found:
        matches = shown([names[i] for i in found])
        return f"the label {label!r} is ambiguous: it matches {matches}. Give one in full, or its id."
    lowered = {name.casefold(): name for name in names}
    nearest = difflib.get_close_matches(label.casefold(), lowered, n=1, cutoff=0.0)
    return (
        f"the model has no label {label!r}. Did you mean {lowered[nearest[0]]!r}? Give one of its {len(names)} labels"
        f" or an id from 0 to {len(names) - 1}: {shown(names)}."
    )


def shown(names: Sequence[str], most: int = 30) -> str:
    """Names for an error message, cut after ``most``."""
    listed = ", ".join(repr(name) for name in names[:most])
    return listed + (f", ... ({len(names) - most} more)" if len(names) > most else "")


def reconcile_labels(
    dataset_names: Sequence[str] | None,
    names: Sequence[str],
    *,
    offset: int | None = None,
    mapping: dict[str, str | int] | None = None,
) -> list[int]:
    """For each label id of the data set, the model's id.

    By name where every data set label is one of the model's (whole name, without regard to case). A model that was
    saved without names (LABEL_0, LABEL_1, ...) is matched by id where the counts agree.

    Args:
        dataset_names: the data set's ``ClassLabel`` names; None for plain integers, taken as the model's ids.
        names: the model's labels.
        offset: added to each data set id, for a model with a background class in front.
        mapping: data set name -> model label or id, for every data set name.

    Raises:
        UnlearningError: labels that do not fit; the message shows both lists.
    """
    if offset is not None and mapping is not None:
        raise UnlearningError("both label_offset and a label mapping were given: give one.")
    count = len(names) if dataset_names is None else len(dataset_names)
    if offset is not None:
        ids = [i + offset for i in range(count)]
        kept = [i for i in ids if 0 <= i < len(names)]
        if dataset_names is not None and len(kept) < count:
            raise UnlearningError(
                f"label_offset {offset} sends {count - len(kept)} of {count} data set labels outside the model's"
                f" {len(names)} classes."
            )
        return ids
    if dataset_names is None:
        return list(range(count))
    if mapping is not None:
        missing = [name for name in dataset_names if name not in mapping]
        if missing:
            raise UnlearningError(f"the label mapping lacks the data set's label {missing[0]!r}.")
        return [resolve_classes([mapping[name]], [*names, "\0"])[0] for name in dataset_names]
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)) and count == len(names):
        return list(range(count))
    if [name.strip().casefold() for name in dataset_names] == [name.strip().casefold() for name in names]:
        return list(range(count))  # the same list, even where a name stands in it twice
    by_name = {name.strip().casefold(): i for i, name in enumerate(names)}
    ids = [by_name.get(name.strip().casefold()) for name in dataset_names]
    if None in ids or len(set(ids)) < len(ids):
        unfit = [n for n, i in zip(dataset_names, ids, strict=True) if i is None or ids.count(i) > 1]
        stray = dataset_names[ids.index(None)] if None in ids else unfit[0]
        problem = "is not one of the model's" if None in ids else "stands twice"
        raise UnlearningError(
            f"the data set's label {stray!r} {problem}. Data set ({count}): {shown(dataset_names, 8)}."
            f" Model ({len(names)}): {shown(names, 8)}. Give label_offset (for example 1 for a background class) or a"
            " label mapping."
        )
    return ids


def class_names(dataset: Dataset, label_column: str) -> list[str] | None:
    """The ``ClassLabel`` names of a column, or None for plain integers.

    Raises:
        UnlearningError: the column is missing, or holds neither.
    """
    if label_column not in dataset.column_names:
        raise UnlearningError(
            f"the data set has no label column {label_column!r}; its columns are {dataset.column_names}."
            " Give label_column_name."
        )
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return feature.names
    if not str(feature.dtype).startswith(("int", "uint")):
        raise UnlearningError(
            f"the label column {label_column!r} holds {feature.dtype}: cast it with"
            f" dataset.class_encode_column({label_column!r})."
        )
    return None


def label_ids(dataset: Dataset, label_column: str, mapping: Sequence[int], num_labels: int) -> Tensor:
    """A label column as the model's ids, ``(N,)``.

    Raises:
        UnlearningError: a label outside the mapping or the model's classes.
    """
    raw = torch.tensor(dataset[label_column][:], dtype=torch.long)
    if len(raw) and (raw.min() < 0 or raw.max() >= len(mapping)):
        bad = int(raw[(raw < 0) | (raw >= len(mapping))][0])
        raise UnlearningError(f"the data set holds the label id {bad}; the model has {num_labels} classes from 0.")
    ids = torch.tensor(mapping)[raw] if len(raw) else raw
    if len(ids) and (ids.min() < 0 or ids.max() >= num_labels):
        bad = int(ids[(ids < 0) | (ids >= num_labels)][0])
        raise UnlearningError(f"a data set label maps to {bad}, outside the model's {num_labels} classes.")
    return ids


def rows_of_classes(dataset: Dataset, label_column: str, mapping: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Indices of the images whose label maps to one of the model's ``ids``."""
    wanted = {i for i, mapped in enumerate(mapping) if mapped in set(ids)}
    return [row for row, label in enumerate(dataset[label_column][:]) if label in wanted]
