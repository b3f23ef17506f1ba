"""A Hub repository, or a folder -> a folder on this machine that holds the files that are asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from huggingface_hub import get_cached_repo_tree, resolve_revision, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from ..errors import UnlearningError
from .errors import hub_errors


@dataclass(frozen=True)
class HubOptions:
    """How to read from the Hub.

    Attributes:
        revision: branch, tag or commit. token: for private and gated repositories; None for the one that is logged in.
        cache_dir: where files are kept. trust_remote_code: run code that a repository brings along.
        allow_pickled_weights: read pytorch_model.bin where there is no safetensors file.
    """

    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    cache_dir: str | None = None
    trust_remote_code: bool = False
    allow_pickled_weights: bool = False


DEFAULT = HubOptions()


@dataclass(frozen=True)
class Files:
    """What a repository or a folder holds.

    Attributes:
        name: the id or folder as it was given. folder: where its files lie. commit: its id, None for a folder.
        listed: path of every file, also of those that were not fetched.
        complete: False where ``listed`` is only what the cache holds, as the Hub could not be asked.
    """

    name: str
    folder: str
    commit: str | None
    listed: frozenset[str]
    complete: bool = True

    def path(self, file: str) -> str:
        return os.path.join(self.folder, file)


def find(name: str | os.PathLike, hub: HubOptions, wanted: list[str], doing: str, kind: str = "model") -> Files:
    """Resolve an id or a folder, list what is there, and fetch its small files.

    A revision is resolved to a commit once; all that is fetched later is of that commit. Where the Hub does not answer,
    the commit that the cache knows is taken, and the client logs it; where it refuses, nothing is.

    Args:
        wanted: patterns of files to fetch now. doing: for errors, "cannot {doing} {name}". kind: "model" or "dataset".

    Raises:
        UnlearningError: neither a folder nor a repository that can be read.
    """
    name = os.fspath(name)
    if os.path.isdir(name):
        if hub.revision is not None:
            raise UnlearningError(f"{name!r} is a folder and has no revision {hub.revision!r}: leave the revision out.")
        return Files(name, name, None, frozenset(os.listdir(name)))
    if os.path.exists(name):
        raise UnlearningError(f"cannot {doing} {name!r}: it is a file. Give the folder that holds it, or a Hub id.")
    with hub_errors(name, doing, hub.revision):
        commit = resolve_revision(
            name, repo_type=kind, revision=hub.revision, token=hub.token, cache_dir=hub.cache_dir
        ).resolved
    folder = download(name, commit, hub, wanted, doing, kind)
    try:
        tree = get_cached_repo_tree(name, repo_type=kind, revision=commit, cache_dir=hub.cache_dir)
        return Files(name, folder, commit, frozenset(file.path for file in tree))
    except CachedRepoTreeNotFoundError:  # no network, and a cache that another tool filled
        return Files(name, folder, commit, frozenset(os.listdir(folder)), complete=False)


def fetch(found: Files, hub: HubOptions, wanted: list[str], doing: str, kind: str = "model") -> None:
    """Fetch more files of what was found, into its folder; nothing to do for a folder of one's own.

    Raises:
        UnlearningError: the Hub failed. Files that came whole are kept, others leave nothing behind.
    """
    if found.commit is not None:
        download(found.name, found.commit, hub, wanted, doing, kind)


def download(name: str, commit: str, hub: HubOptions, wanted: list[str], doing: str, kind: str) -> str:
    with hub_errors(name, doing, hub.revision):
        return snapshot_download(
            name, repo_type=kind, revision=commit, token=hub.token, cache_dir=hub.cache_dir, allow_patterns=wanted
        )
