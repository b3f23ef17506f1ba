"""A Hub repository, or a folder -> a folder on this machine that holds the files that are asked for."""

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
    """What a repository or a folder holds, and how it was asked for.

    Attributes:
        name: the id or folder as it was given. folder: where its files lie. commit: its id, None for a folder.
        listed: path of every file, also of those that were not fetched.
        hub: how it is read. doing: for errors, "cannot {doing} {name}". kind: "model" or "dataset".
        complete: False where ``listed`` is only what the cache holds, as the Hub could not be asked.
    """

    name: str
    folder: str
    commit: str | None
    listed: frozenset[str]
    hub: HubOptions
    doing: str
    kind: str
    complete: bool = True


def find(name: str | os.PathLike, hub: HubOptions, wanted: list[str], doing: str, kind: str = "model") -> Files:
    """Resolve an id or a folder, list what is there, and fetch the files of the patterns ``wanted``.

    A revision is resolved to a commit once; all that is fetched later is of that commit. Where the Hub does not answer,
    the commit that the cache knows is taken, and the client logs it; where it refuses, nothing is. Raises an
    UnlearningError for what is neither a folder nor a repository that can be read.
    """
    name = os.fspath(name)
    if os.path.isdir(name):
        if hub.revision is not None:
            raise UnlearningError(f"{name!r} is a folder and has no revision {hub.revision!r}: leave the revision out.")
        return Files(name, name, None, frozenset(os.listdir(name)), hub, doing, kind)
    if os.path.exists(name):
        raise UnlearningError(f"cannot {doing} {name!r}: it is a file. Give the folder that holds it, or a Hub id.")
    place = {"repo_type": kind, "cache_dir": hub.cache_dir}
    with hub_errors(name, doing, hub.revision):
        commit = resolve_revision(name, revision=hub.revision, token=hub.token, **place).resolved
        folder = snapshot_download(name, revision=commit, token=hub.token, allow_patterns=wanted, **place)
    try:
        listed = [file.path for file in get_cached_repo_tree(name, revision=commit, **place)]
    except CachedRepoTreeNotFoundError:  # no network, and a cache that another tool filled
        return Files(name, folder, commit, frozenset(os.listdir(folder)), hub, doing, kind, complete=False)
    return Files(name, folder, commit, frozenset(listed), hub, doing, kind)


def fetch(files: Files, wanted: list[str]) -> None:
    """Fetch more of the files, into their folder; nothing to do for a folder of one's own. Raises an UnlearningError
    where the Hub fails: files that came whole are kept, others leave nothing behind."""
    if files.commit is not None:
        place = {"repo_type": files.kind, "cache_dir": files.hub.cache_dir, "token": files.hub.token}
        with hub_errors(files.name, files.doing, files.hub.revision):
            snapshot_download(files.name, revision=files.commit, allow_patterns=wanted, **place)


def refusal(files: Files, why: str) -> UnlearningError:
    """The error for what was being done with the files, and the reason why it cannot be."""
    return UnlearningError(f"cannot {files.doing} {files.name!r}: {why}")
