"""Label names and ids: of the request, of the data set and of the model, reconciled by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from datasets import ClassLabel, Dataset, Value
from torch import Tensor

from ..errors import UnlearningError


def model_labels(config) -> list[str]:
    """The model's label names in the order of their ids.

    Raises:
        UnlearningError: an id without a name.
    """
    for i in range(config.num_labels):
        if not isinstance(config.id2label.get(i), str):
            raise UnlearningError(
                f"the model's id2label has no name for the id {i}: set config.id2label to one for every id from 0 to"
                f" {config.num_labels - 1}."
            )
    return [config.id2label[i] for i in range(config.num_labels)]


def check_dataset(dataset, name: str) -> None:
    """Refuse anything but one data set that is read as it was stored.

    Args:
        name: of the argument, for the message.

    Raises:
        UnlearningError: another type, or a format or transform that changes what is read.
    """
    if not isinstance(dataset, Dataset):
        raise UnlearningError(
            f"{name} must be one datasets.Dataset, not {type(dataset).__name__}: pass one split, loaded without"
            " streaming."
        )
    if dataset.format["type"] is not None:
        raise UnlearningError(
            f"{name} is read in the format {dataset.format['type']!r}, which hides images or labels: pass it"
            " with_format(None)."
        )


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
    if isinstance(requested, (str, int, float)):
        requested = [requested]
    if not requested:
        raise UnlearningError(
            "no class to forget was given: pass forget_classes, for example forget_classes=['cat'],"
            " or method='amun' for images whose classes stay."
        )
    ids = sorted({resolve_class(label, names) for label in requested})
    if len(ids) == len(names):
        raise UnlearningError(
            f"all {len(names)} classes are to be forgotten: at least two must stay, so take some out of forget_classes."
        )
    return ids


def resolve_class(label: str | int, names: Sequence[str]) -> int:
    """One class name or id -> id of the model, as in :func:`resolve_classes`."""
    key = str(label).strip().casefold()
    found = [i for i, name in enumerate(names) if name.casefold() == key]
    found = found or [i for i, name in enumerate(names) if key in [p.strip() for p in name.casefold().split(",")]]
    if not found and key.isdigit() and int(key) < len(names):
        found = [int(key)]
    if len(found) != 1:
        raise UnlearningError(unknown_label(str(label), names, found))
    return found[0]


def unknown_label(label: str, names: Sequence[str], found: list[int]) -> str:
    if found:
        matches = shown([names[i] for i in found])
        return f"the label {label!r} is ambiguous: it matches {matches}. Give one in full, or its id."
    lowered = {name.casefold(): name for name in names}
    nearest = difflib.get_close_matches(label.casefold(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[nearest[0]]!r}?" if nearest else ""
    return (
        f"the model has no label {label!r}.{hint} Give one of its {len(names)} labels or an id from 0 to"
        f" {len(names) - 1}: {shown(names)}."
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
    check_reconciling(offset, mapping)
    count = len(names) if dataset_names is None else len(dataset_names)
    if offset is not None:
        ids = [i + offset for i in range(count)]
        kept = [i for i in ids if 0 <= i < len(names)]
        if dataset_names is not None and len(kept) < count:
            raise UnlearningError(
                f"label_offset {offset} sends {count - len(kept)} of {count} data set labels outside the model's"
                f" {len(names)} classes: give the model's id of the data set's first label, or leave label_offset"
                " unset."
            )
        return ids
    if dataset_names is None and mapping is not None:
        raise UnlearningError(
            f"a label mapping was given, starting with {next(iter(mapping), None)!r}, and the data set's labels are"
            " numbers without names: cast them with dataset.class_encode_column, or give label_offset."
        )
    if dataset_names is None:
        return list(range(count))
    if mapping is not None:
        missing = [name for name in dataset_names if name not in mapping]
        if missing:
            raise UnlearningError(
                f"the label mapping lacks the data set's label {missing[0]!r}: give each of its {count} labels one of"
                " the model's."
            )
        return [resolve_class(mapping[name], names) for name in dataset_names]
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


def check_reconciling(offset, mapping) -> None:
    """Refuse an offset or a mapping of the wrong type, or both."""
    if offset is not None and mapping is not None:
        raise UnlearningError(f"both label_offset {offset} and a label mapping were given: give one.")
    if offset is not None and not isinstance(offset, int):
        raise UnlearningError(
            f"label_offset={offset!r} is no whole number: give one, for example 1 for a background class in front."
        )
    if mapping is not None and not isinstance(mapping, dict):
        raise UnlearningError(
            f"the label mapping is of type {type(mapping).__name__}: give a dict, data set label -> model label."
        )


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
    held = feature.dtype if isinstance(feature, Value) else type(feature).__name__
    if not held.startswith(("int", "uint")):
        raise UnlearningError(
            f"the label column {label_column!r} holds {held}: cast it with"
            f" dataset.class_encode_column({label_column!r}), or give another label_column_name."
        )
    return None


def label_ids(dataset: Dataset, label_column: str, mapping: Sequence[int], num_labels: int) -> Tensor:
    """A label column as the model's ids, ``(N,)``.

    Raises:
        UnlearningError: an image without a label, or a label outside the mapping or the model's classes.
    """
    held = dataset[label_column][:]
    if None in held:
        raise UnlearningError(
            f"image {held.index(None)} has no label in the column {label_column!r}: remove the image, or label it."
        )
    raw = torch.tensor(held, dtype=torch.long)
    if len(raw) and (raw.min() < 0 or raw.max() >= len(mapping)):
        bad = int(raw[(raw < 0) | (raw >= len(mapping))][0])
        raise UnlearningError(
            f"the data set holds the label id {bad}, and the model has {num_labels} classes from 0: remove its images,"
            " or give label_offset."
        )
    ids = torch.tensor(mapping)[raw] if len(raw) else raw
    if len(ids) and (ids.min() < 0 or ids.max() >= num_labels):
        bad = int(raw[(ids < 0) | (ids >= num_labels)][0])
        raise UnlearningError(
            f"the data set's label id {bad} becomes {mapping[bad]}, outside the model's {num_labels} classes: give"
            " another label_offset."
        )
    return ids


def rows_of_classes(dataset: Dataset, label_column: str, mapping: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Indices of the images whose label maps to one of the model's ``ids``."""
    wanted = {i for i, mapped in enumerate(mapping) if mapped in set(ids)}
    return [row for row, label in enumerate(dataset[label_column][:]) if label in wanted]
