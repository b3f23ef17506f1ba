"""data set id or folder -> one split as a ``datasets.Dataset``, whole on disk: never a stream."""

from __future__ import annotations

import os

import yaml
from datasets import Dataset, DatasetBuilder, get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.table import CastError

from ..data.labels import shown
from ..errors import UnlearningError, first_line
from .errors import CLIENT_ERRORS, reason
from .repository import Files, HubOptions, find

DOING = "load data from"
FORMATS = "Give whole parquet files, or images in a folder for each label: train/cat/1.png."
# ``datasets`` raises ValueError and RuntimeError for what it finds wrong, Arrow's errors for damaged files among them.
DATA_ERRORS = (*CLIENT_ERRORS, DatasetsError, ValueError, RuntimeError, TypeError, KeyError, yaml.YAMLError)


def load_split(
    name: str | os.PathLike,
    split: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """One split of a data set, by Hub id or local folder. Nothing is downloaded before the split is known to exist.

    ``datasets`` keeps a copy of all splits of the configuration in its cache, here ``cache_dir`` if given.

    Args:
        name: Hub id (``"user/name"``), or a folder of parquet files or of images, such as ``train/cat/1.png``.
        split: for example "train". config_name: where the data set has several configurations.
        revision: branch, tag or commit. token: for private and gated data; None for the one that is logged in.

    Raises:
        UnlearningError: no such data set, revision, configuration or split, no permission, no network and nothing
            cached, no or damaged data files, or a loading script.
    """
    hub = HubOptions(revision=revision, token=token, cache_dir=cache_dir)
    found = find(name, hub, ["README.md", ".gitattributes"], DOING, kind="dataset")
    check_files(found)
    try:
        builder = load_dataset_builder(**arguments(found, hub), name=config_name, cache_dir=cache_dir)
    except ValueError as error:
        raise refusal(found, wrong_config(found, hub, config_name) or because(error, found)) from error
    except DATA_ERRORS as error:
        raise refusal(found, because(error, found)) from error
    check_commit(found, builder)
    check_split(found, builder, split)
    try:
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except DATA_ERRORS as error:
        raise refusal(found, because(error, found)) from error


def hub_id(name: str | None) -> str | None:
    """The id of data on the Hub; None for a folder, whose path is nobody's business."""
    return None if name is None or os.path.exists(name) else name


def refusal(found: Files, why: str) -> UnlearningError:
    return UnlearningError(f"cannot {DOING} {found.name!r}: {why}")


def arguments(found: Files, hub: HubOptions) -> dict:
    """Where ``datasets`` is to read: the commit that was resolved; a folder by its whole path, as "csv" is a format."""
    if found.commit is None:
        return {"path": os.path.abspath(found.folder)}
    return {"path": found.name, "revision": found.commit, "token": hub.token}


def because(error: BaseException, found: Files) -> str:
    """Why reading failed: the Hub, or what lies there."""
    if isinstance(error, yaml.YAMLError):
        return "the header of its README.md is no valid YAML. Repair or remove it."
    inner = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    if isinstance(inner, CastError):
        return f"its files do not all have the same columns. {FORMATS}"
    return reason(error, found.name) or f"{first_line(inner)} {FORMATS}"


def check_files(found: Files) -> None:
    """Refuse what the list of files shows to be no data that can be loaded.

    Raises:
        UnlearningError: a loading script, or a folder that ``save_to_disk`` wrote.
    """
    script = os.path.basename(os.path.normpath(found.name)) + ".py"
    if script in found.listed:
        raise refusal(found, f"it is made by a script ({script}), which is not run. {FORMATS}")
    if found.listed & {"state.json", "dataset_dict.json"}:
        raise refusal(found, "save_to_disk wrote it. Write each split by to_parquet('train.parquet') instead.")


def wrong_config(found: Files, hub: HubOptions, config_name: str | None) -> str | None:
    """What is wrong with the name of the configuration; None where nothing is."""
    try:
        names = get_dataset_config_names(**arguments(found, hub))
    except DATA_ERRORS:
        return None  # the caller reports what failed first
    if config_name is None and len(names) > 1:
        return f"it has {len(names)} configurations, {shown(names)}. Give config_name."
    if config_name is not None and config_name not in names:
        return f"it has no configuration {config_name!r}, only {shown(names)}. Give one of them."
    return None


def check_commit(found: Files, builder: DatasetBuilder) -> None:
    """Refuse another state of the data than was asked for, which ``datasets`` falls back to where the Hub fails.

    Raises:
        UnlearningError: only another commit is in the cache.
    """
    if found.commit is not None and builder.hash != found.commit:
        raise refusal(
            found,
            f"the Hub could not be asked for its commit {found.commit}, and the cache holds another, {builder.hash}."
            " Try again with a network, or give that revision.",
        )


def check_split(found: Files, builder: DatasetBuilder, split: str) -> None:
    splits = [str(name) for name in builder.config.data_files or builder.info.splits or ()]
    if split not in splits:
        raise refusal(found, f"it has no split {split!r}, only {shown(splits)}. Give one of them.")
