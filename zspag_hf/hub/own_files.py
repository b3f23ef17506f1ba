"""What a data set reads, by its card and by its rows: files of its own; no address, no other file of this machine."""

import os
import re
from functools import partial
from pathlib import Path

import datasets
import yaml
from datasets import Dataset, DatasetBuilder, Image, Value
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..data.sources import BINARY, IMAGE_FOLDER, PARTS, TEXT, file_of, is_address, why_not, with_own_files
from .card import check_nesting
from .layout import cache_root
from .repository import Files, refusal

CARD, BESIDE = "README.md", ".huggingface.yaml"  # the files that tell ``datasets`` what to read


def checked_card(files: Files) -> bool:
    """Whether the card names the files of each split.

    Raises:
        UnlearningError: it names what is not in the data set, is no regular file, or grows without bounds.
        yaml.YAMLError, ValueError: it cannot be read.
    """
    explicit = False
    for name in (CARD, BESIDE):
        held = header_of(files, name)
        configs = held.get("configs") if isinstance(held, dict) else None
        for config in configs if isinstance(configs, list) else ():
            explicit |= isinstance(config, dict) and bool(config.get("data_files"))
            if (strange := next(filter(leads_out, patterns(config)), None)) is not None:
                why = f"its {name} reads {strange!r}, which is outside of it, and only its own files are read."
                raise refusal(files, f"{why} Name files of the data set in 'data_files', or remove the entry.")
    return explicit


def header_of(files: Files, name: str) -> object:
    """What a card, or the YAML file beside it, says; None where there is none."""
    path = Path(files.folder, name)
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        raise refusal(files, f"its {name} is no regular file. Remove it.")
    text = path.read_text(encoding="utf-8-sig" if name == CARD else "utf-8")
    match = REGEX_YAML_BLOCK.search(text) if name == CARD else None
    header = text if name == BESIDE else match.group(2) if match else ""
    try:
        check_nesting(header)
    except ValueError as error:
        raise refusal(files, f"the header of its {name} cannot be read: {error} Repair or remove it.") from error
    return yaml.safe_load(header)


def patterns(config: object) -> list[str]:
    """Every pattern of files or folders that an entry of ``configs`` names."""
    if not isinstance(config, dict):
        return []
    held = config.get("data_files")
    entries = held if isinstance(held, list) else [held]
    entries = [entry.get("path") if isinstance(entry, dict) else entry for entry in entries]
    nested = [part for entry in entries for part in (entry if isinstance(entry, list) else [entry])]
    return [name for name in [*nested, config.get("data_dir")] if isinstance(name, str)]


def leads_out(pattern: str) -> bool:
    """Whether a pattern leads out of its data set: an address, an absolute path, or a way up."""
    up = ".." in re.split(r"[/\\]", pattern)
    return up or is_address(pattern) or os.path.isabs(pattern) or pattern.startswith(("~", "\\"))


def with_sources_checked(dataset: Dataset, builder: DatasetBuilder, files: Files, image_column: str) -> Dataset:
    """A split whose images all are bytes, or regular files of the data set itself, by absolute path. A column of texts
    that is the image column is one of paths.

    Raises:
        UnlearningError: an image without bytes whose path is an address, lies elsewhere, or is no file.
    """
    held = dataset.features.get(image_column)
    if (isinstance(held, dict) and {*held} <= PARTS) or (isinstance(held, Value) and held.dtype in (*TEXT, *BINARY)):
        dataset = dataset.cast_column(image_column, Image())
    known = {path for paths in (builder.config.data_files or {}).values() for path in paths}
    roots = [os.path.realpath(root) for root in own_roots(dataset, files)]
    for column, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = with_own_files(dataset, column, partial(own_file, files, column, roots, known))
    return dataset


def own_roots(dataset: Dataset, files: Files) -> list[str]:
    """The folders in which files of the data set lie: its own, or where its repository is kept; for images that came as
    files also where they are unpacked."""
    roots = [os.path.abspath(files.folder)]
    if files.commit is not None:
        kept = repo_folder_name(repo_id=files.name, repo_type="dataset")
        roots = [os.path.join(cache, kept) for cache in (files.hub.cache_dir, constants.HF_HUB_CACHE) if cache]
    if dataset.info.builder_name != IMAGE_FOLDER:
        return roots
    unpacked = os.path.join(files.hub.cache_dir or str(datasets.config.HF_DATASETS_CACHE), "downloads")
    return [*roots, unpacked, cache_root(files)]


def own_file(files: Files, column: str, roots: list[str], known: set[str], row: int, path: str) -> str:
    """The absolute path of an image that is a file of the data set; a relative one counts from its folder.

    Raises:
        UnlearningError: it is an address, lies elsewhere, or is no regular file.
    """
    file = file_of(path)
    if file in known:
        return path
    whole, why = os.path.join(os.path.abspath(files.folder), file), why_not(path)
    if why is None and not any(os.path.realpath(whole).startswith(os.path.join(root, "")) for root in roots):
        why = f"it has no bytes, and its path {path!r} leads out of the data set"
    if why is None and not os.path.isfile(whole):
        why = f"it has no bytes, and its path {path!r} is no file in the data set"
    if why is not None:
        raise refusal(files, f"image {row} of column {column!r} is not read: {why}. Store its bytes in the file.")
    return path.removesuffix(file) + whole
