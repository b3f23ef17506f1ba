"""Which files are which split: of image folders by where a folder stands, never by a class folder that is called so.

``datasets`` takes every folder called like a split for one, at any depth: test/train/1.png joins the split "train".
"""

import hashlib
import os
import re
from pathlib import Path

import datasets
from datasets import DatasetBuilder
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .repository import Files, refusal

KEYWORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
ARCHIVE = ".zip"
EXPLICIT = "Rename it, or name the files of each split by 'data_files' in the header of README.md."
BY_CONTENT = "by-content"  # folder of the cache, for what no commit identifies


def settled(builder: DatasetBuilder, files: Files, explicit: bool) -> DatasetBuilder:
    """The builder that reads each file once, in its own split, out of a cache that is keyed by what the files hold.

    Args:
        builder: as ``datasets`` found it. explicit: the data set's card names the files of each split.

    Raises:
        UnlearningError: a file that belongs to two splits or would be passed over, or splits inside the folders of
            classes.
    """
    found = builder.config.data_files
    if not found:
        return builder
    chosen = None if explicit or not isinstance(builder, ImageFolder) else image_splits(builder, files)
    chosen = chosen or without_repeats(found, files, explicit)
    if files.commit is not None and chosen == {split: list(paths) for split, paths in found.items()}:
        return builder  # its cache is keyed by the commit
    if files.commit is None and (odd := next((p for paths in chosen.values() for p in paths if "::" in p), None)):
        raise refusal(files, f"its path {odd!r} holds '::', which stands for an archive, and is left out. Rename it.")
    marks = {path: (fingerprint(path, files.commit),) for paths in chosen.values() for path in paths}
    key = hashlib.sha256(repr([(split, [(p, marks[p]) for p in paths]) for split, paths in chosen.items()]).encode())
    listed = {split: DataFilesList(paths, [marks[path] for path in paths]) for split, paths in chosen.items()}
    return type(builder)(
        cache_dir=os.path.join(cache_root(files), key.hexdigest()[:32]),
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        hash=builder.hash,
        base_path=builder.base_path,
        info=builder.info,
        token=builder.token,
        repo_id=builder.repo_id,
        data_files=DataFilesDict(listed),
    )


def cache_root(files: Files) -> str:
    """Where data are kept that are keyed by their content; nothing is prepared in it but in folders of their own."""
    return os.path.join(files.hub.cache_dir or str(datasets.config.HF_DATASETS_CACHE), BY_CONTENT)


def fingerprint(path: str, commit: str | None) -> str:
    """What tells a file from another of its name: its content's SHA-256, or the commit; nothing for an image, which is
    read from its own file whenever it is decoded."""
    if commit is not None or Path(path).suffix.lower() in ImageFolder.EXTENSIONS:
        return commit or ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_repeats(found: dict[str, list[str]], files: Files, explicit: bool) -> dict[str, list[str]]:
    """Each file once; refuses one in two splits, unless the card says so."""
    splits = {str(split): list(dict.fromkeys(paths)) for split, paths in found.items()}
    owner: dict[str, str] = {}
    for split, paths in splits.items():
        for path in () if explicit else paths:
            if (other := owner.setdefault(path, split)) != split:
                name = os.path.basename(path)
                raise refusal(files, f"its file {name!r} belongs to two splits, {other!r} and {split!r}. {EXPLICIT}")
    return splits


def image_splits(builder: DatasetBuilder, files: Files) -> dict[str, list[str]] | None:
    """Split -> its files, for images in a folder for each label; None for images in no folder."""
    if files.commit is None:
        base = os.path.join(os.path.abspath(files.folder), builder.config.data_dir or "")
        paths = walked(base)
    else:
        base = "/".join(["hf://datasets", f"{files.name}@{files.commit}", *filter(None, [builder.config.data_dir])])
        known = [f"hf://datasets/{files.name}@{files.commit}/{path}" for path in files.listed]
        known = known if files.complete else [p for paths in builder.config.data_files.values() for p in paths]
        paths = [path.removeprefix(base + "/") for path in set(known) if path.startswith(base + "/")]
    splits = splits_of(sorted(filter(readable, paths)), files)
    return splits and {split: [f"{base.rstrip('/')}/{path}" for path in held] for split, held in splits.items()}


def walked(base: str) -> list[str]:
    """Path of every regular file in a folder, within it; links to folders are followed, none twice."""
    paths, seen = list[str](), {os.path.realpath(base)}
    for folder, inner, names in os.walk(base, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in inner}
        inner[:] = [name for name in inner if name[0] != "." and not name.startswith("__") and real[name] not in seen]
        seen |= {real[name] for name in inner}
        within = os.path.relpath(folder, base).replace(os.sep, "/")
        paths += [os.path.normpath(f"{within}/{n}") for n in names if os.path.isfile(os.path.join(folder, n))]
    return paths


def readable(path: str) -> bool:
    """Whether a file is one that an image folder is made of; hidden ones are none."""
    hidden = any(part.startswith((".", "__")) for part in path.split("/")[:-1]) or os.path.basename(path)[0] == "."
    return not hidden and (is_picture(path) or os.path.basename(path) in ImageFolder.METADATA_FILENAMES)


def is_picture(path: str) -> bool:
    """An image, or an archive of them."""
    return Path(path).suffix.lower() in {*ImageFolder.EXTENSIONS, ARCHIVE}


def splits_of(paths: list[str], files: Files) -> dict[str, list[str]] | None:
    """Split -> its paths, of sorted paths within one folder: the outermost folders are splits where they are called so
    and hold those of classes; else they are classes of one split, "train". None where no image lies in a folder.

    Raises:
        UnlearningError: splits inside the folders of classes.
    """
    skip = shared_folders([path.split("/") for path in paths if is_picture(path)])
    cut = {path: path.split("/")[skip:] for path in paths}
    pictures = [parts for path, parts in cut.items() if is_picture(path)]
    tops = sorted({parts[0] for parts in pictures if len(parts) > 1})
    if not tops:
        return None
    named = {top: name for top in tops if (name := split_called(top)) is not None}
    nested = any(len(parts) > 2 for parts in pictures if parts[0] in named)
    described = any(len(parts) > 1 and not is_picture(parts[-1]) for parts in cut.values())
    if named and (nested or described or len(named) == len(tops)):
        owner = {top: named.get(top) or re.sub(r"\W+", "_", top) for top in tops}
        splits = {split: [p for p in paths if owner.get(cut[p][0]) == split] for split in sorted(set(owner.values()))}
        return {split: splits[split] for split in [*filter(splits.get, KEYWORDS), *sorted(set(splits) - {*KEYWORDS})]}
    if all(len(parts) == 3 and split_called(parts[1]) for parts in pictures):
        where = "/".join(pictures[0][:2])
        raise refusal(files, f"its splits lie inside the folders of its labels ({where!r}): give train/cat/1.png.")
    by_file = {path: split_called(Path(path).stem) for path in paths if is_picture(path)}
    if None in by_file.values():
        return {"train": paths}
    return {
        split: [p for p in paths if by_file.get(p, split) == split] for split in KEYWORDS if split in by_file.values()
    }


def shared_folders(pictures: list[list[str]]) -> int:
    """How many outer folders hold all images and are no split, with at least one folder left below them."""
    skip = 0
    while pictures and min(map(len, pictures)) > skip + 2 and len({parts[skip] for parts in pictures}) == 1:
        inner = {parts[skip + 1] for parts in pictures}
        shallow = min(map(len, pictures)) == skip + 3
        if split_called(pictures[0][skip]) and (shallow or not any(map(split_called, inner))):
            break
        skip += 1
    return skip


def split_called(name: str) -> str | None:
    """The split that a folder or a file is called after, by a whole word in its name; None for none, or for several."""
    words = {*re.split(r"[-._ 0-9]+", name.lower())}
    splits = [split for split, keys in KEYWORDS.items() if keys & words]
    return splits[0] if len(splits) == 1 else None
