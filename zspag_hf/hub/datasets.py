"""data set id or folder -> one split as a ``datasets.Dataset``, whole on disk: never a stream."""

import os

import yaml
from datasets import Dataset, DatasetBuilder, get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.table import CastError

from ..data.names import shown
from ..errors import UnlearningError, first_line
from .errors import CLIENT_ERRORS, reason
from .layout import cache_root, settled
from .own_files import BESIDE, CARD, checked_card, with_sources_checked
from .repository import DEFAULT, Files, HubOptions, find, refusal

FORMATS = "Give whole parquet files, or images in a folder for each label: train/cat/1.png."
# ``datasets`` raises ValueError and RuntimeError for what it finds wrong, Arrow's errors for damaged files among them.
DATA_ERRORS = (*CLIENT_ERRORS, DatasetsError, ValueError, RuntimeError, TypeError, KeyError, yaml.YAMLError)


def load_split(
    name: str | os.PathLike,
    split: str,
    *,
    config_name: str | None = None,
    hub: HubOptions = DEFAULT,
    image_column: str = "image",
) -> Dataset:
    """One split of a data set, by Hub id (``"user/name"``) or local folder, of parquet files or of images, such as
    ``train/cat/1.png``. Nothing is downloaded before the split is known to exist.

    ``datasets`` keeps a copy of all splits of the configuration in its cache, which is ``hub.cache_dir`` if given.

    Args:
        split: for example "train". config_name: where the data set has several configurations.
        image_column: becomes images where it holds their bytes, or paths within the data set, as pandas wrote them.

    Raises:
        UnlearningError: no such data set, revision, configuration or split, no permission, no network and nothing
            cached, no or damaged data files, a loading script, or files and images that are not of the data set itself.
    """
    files = find(name, hub, [CARD, BESIDE, ".gitattributes"], "load data from", kind="dataset")
    script = os.path.basename(os.path.normpath(files.name)) + ".py"
    if script in files.listed:
        raise refusal(files, f"it is made by a script ({script}), which is not run. {FORMATS}")
    if files.listed & {"state.json", "dataset_dict.json"}:
        raise refusal(files, "save_to_disk wrote it. Write each split by to_parquet('train.parquet') instead.")
    builder = _found(files, config_name)
    splits = [str(name) for name in builder.config.data_files or builder.info.splits or ()]
    if split not in splits:
        raise refusal(files, f"it has no split {split!r}, only {shown(splits)}. Give one of them.")
    try:
        builder.download_and_prepare()
        return with_sources_checked(builder.as_dataset(split=split), builder, files, image_column)
    except UnlearningError:
        raise
    except DATA_ERRORS as error:
        raise refusal(files, _because(error)) from error


def hub_id(name: str | None) -> str | None:
    """The id of data on the Hub; None for a folder, whose path is nobody's business."""
    return None if name is None or os.path.exists(name) else name


def _found(files: Files, config_name: str | None) -> DatasetBuilder:
    """What reads a data set: its own files alone, each in its own split; nothing of them is read yet."""
    if files.commit is None:
        where = {"path": os.path.abspath(files.folder)}  # whole, as "csv" is also a format
    else:
        where = {"path": files.name, "revision": files.commit} | ({"token": files.hub.token} if files.hub.token else {})
    try:
        explicit = checked_card(files)
        cache = cache_root(files) if files.commit is None else files.hub.cache_dir
        builder = load_dataset_builder(**where, name=config_name, cache_dir=cache)
        check_commit(files, builder)
        return settled(builder, files, explicit)
    except UnlearningError:
        raise
    except DATA_ERRORS as error:
        why = _wrong_config(where, config_name) if isinstance(error, ValueError) else None
        raise refusal(files, why or _because(error)) from error


def check_commit(files: Files, builder: DatasetBuilder) -> None:
    """Refuse another state of the data than was asked for, which ``datasets`` falls back to where the Hub fails."""
    if files.commit is not None and builder.hash != files.commit:
        why = f"the Hub could not be asked for its commit {files.commit}, and the cache holds another, {builder.hash}."
        raise refusal(files, f"{why} Try again with a network, or give that revision.")


def _wrong_config(where: dict, config_name: str | None) -> str | None:
    try:
        names = get_dataset_config_names(**where)
    except DATA_ERRORS:
        return None  # the caller reports what failed first
    if config_name is None and len(names) > 1:
        return f"it has {len(names)} configurations, {shown(names)}. Give config_name."
    if config_name is not None and config_name not in names:
        return f"it has no configuration {config_name!r}, only {shown(names)}. Give one of them."
    return None


def _because(error: BaseException) -> str:
    """Why reading failed: the Hub, or what lies there."""
    if isinstance(error, yaml.YAMLError):
        return "the header of its README.md is no valid YAML. Repair or remove it."
    inner = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    if isinstance(inner, CastError):
        return f"its files do not all have the same columns. {FORMATS}"
    return reason(error) or f"{first_line(inner)} {FORMATS}"
