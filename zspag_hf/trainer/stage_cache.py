"""Finished stages of a run, on disk, so that a run that was cut off goes on where it stood.

They lie in ``output_dir/_stages/<digest>``, readable for the owner alone: proxies resemble the forget images. The
digest stands for the model's weights, the images and every setting that the result depends on, so stages of another run
are never taken for this one's. Nothing of this is ever pushed, and it is deleted when the result is saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..errors import UnlearningError
from ..parallel.processes import from_first, rank_and_size, tensors_from_first
from ..report.files import write_whole

FOLDER, KEY_NAME = "_stages", "_run.json"
logger = logging.get_logger(__name__)

Stage = tuple[dict[str, Tensor], dict]


class StageError(UnlearningError):
    """A stage cannot be written; those before it are whole."""


class StageCache:
    """The stages of one run. Every process has to make the same calls; the first one reads and writes.

    Args:
        output_dir: of the run.
        key: what the result depends on, name -> value; "settings" may be a dict itself.
        resume: True to take what is there, a checkpoint to go on from there; else begin anew.

    Raises:
        UnlearningError: ``resume`` is True and no run was begun in ``output_dir``; or the checkpoint is another run's.
    """

    def __init__(self, output_dir: str, key: dict, resume: bool | str = False):
        self.key, self.digest = key, digest_of(key)
        self.root = Path(output_dir, FOLDER)
        self.folder = self.root / self.digest[:16]
        self.first = rank_and_size()[0] == 0
        self.timed: set[str] = set()  # stages whose time is known here
        self.together(lambda: self.open(resume), UnlearningError)

    def together(self, work: Callable[[], None], kind: type[UnlearningError]) -> None:
        """What the first process does alone; its error is raised in all."""
        caught = None
        if self.first:
            try:
                work()
            except kind as error:
                caught = error
        message = from_first(None if caught is None else str(caught))
        if message is not None:
            raise caught or kind(message)

    def open(self, resume: bool | str) -> None:
        """Take the folder, made anew or of the run that is resumed."""
        if isinstance(resume, str) and (why := self.refusal(resume)):
            raise UnlearningError(
                f"resume_from_checkpoint={resume!r}: {why}. Give a folder that save_strategy='epoch' wrote in a run"
                " with the same model, images and settings, or leave it out."
            )
        if resume is True and not self.root.is_dir():
            raise UnlearningError(
                f"resume_from_checkpoint=True: no run was cut off in {str(self.root.parent)!r}, there is nothing to go"
                " on from. Give the output_dir of that run, or leave it out."
            )
        if resume and not (self.folder / KEY_NAME).is_file():
            self.warn_of_others()
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            for folder in (self.root, self.folder):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            write_whole(str(self.folder / KEY_NAME), json.dumps(self.key, indent=1).encode())
        except OSError as error:
            raise UnlearningError(
                f"stages cannot be kept in {str(self.folder)!r} ({error}): make room or give another output_dir."
            ) from error

    def warn_of_others(self) -> None:
        """Say why the stages of an earlier run are not used."""
        for path in sorted(self.root.glob(f"*/{KEY_NAME}")):
            try:
                differing = ", ".join(differences(json.loads(path.read_text(encoding="utf-8")), self.key))
            except ValueError:
                differing = f"key, which is damaged ({path})"
            logger.warning(f"Stages of another run are not used; it had another {differing}.")

    def stage(self, name: str, make: Callable[[], Stage]) -> tuple[dict[str, Tensor], dict, float]:
        """A stage's tensors and facts from disk, or else made and written.

        Args:
            make: returns tensors by name, and facts that JSON can hold.

        Returns:
            tensors, facts, and the seconds that it took when it was made in an earlier process; 0 if it was made, or
            read before, in this one.
        """
        known, self.timed = name in self.timed, self.timed | {name}
        kept = self.load(name)
        if kept is not None:
            tensors, facts = kept
            seconds = facts.pop("seconds")
            return tensors, facts, 0.0 if known else seconds
        start = time.perf_counter()
        tensors, facts = make()
        tensors = detached(tensors)  # laid out as they are read: the same to the last bit
        self.store(name, tensors, facts | {"seconds": time.perf_counter() - start})
        return tensors, json.loads(json.dumps(facts)), 0.0

    def store(self, name: str, tensors: dict[str, Tensor], facts: dict) -> None:
        """Write one stage: beside its place first, and moved there whole.

        Raises:
            StageError: it cannot be written.
        """
        self.together(lambda: self.write(name, tensors, facts), StageError)

    def write(self, name: str, tensors: dict[str, Tensor], facts: dict) -> None:
        """What :meth:`store` does in the first process."""
        tensors, text = detached(tensors), json.dumps(facts)
        metadata = {"facts": text, "sha256": digest_of({"facts": text, "tensors": checksum(tensors)})}
        part = self.folder / f"{name}.part"
        try:
            save_file(tensors, part, metadata)
            os.replace(part, self.path(name))
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise StageError(
                f"the stage {name!r} cannot be kept in {str(self.folder)!r} ({error}): make room or give another"
                " output_dir, then go on with resume_from_checkpoint=True."
            ) from error

    def load(self, name: str) -> Stage | None:
        """One stage, or None where it is not there or damaged."""
        tensors, facts = self.read(name) if self.first else (None, None)
        tensors = tensors_from_first(tensors)
        shared = from_first(facts)
        return None if tensors is None else (tensors, shared or {})

    def on_disk(self, name: str, tensors: dict[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """The tensors of a stage that is there, each read when it is asked for, where one process can do so; where
        several run, ``tensors``, or the stage loaded."""
        if rank_and_size()[1] == 1:
            return TensorsOnDisk(self.path(name))
        return (self.load(name) or ({}, {}))[0] if tensors is None else tensors

    def read(self, name: str) -> Stage | tuple[None, None]:
        """What :meth:`load` does in the first process."""
        try:
            with safe_open(self.path(name), "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            text = metadata["facts"]
            if metadata["sha256"] != digest_of({"facts": text, "tensors": checksum(tensors)}):
                raise SafetensorError("another checksum")
            return tensors, json.loads(text)
        except FileNotFoundError:
            return None, None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            logger.warning(f"The stage {name!r} on disk is damaged ({error}) and is made anew.")
            return None, None

    def path(self, name: str) -> Path:
        """Of a stage's file."""
        return self.folder / f"{name}.safetensors"

    def discard(self) -> None:
        """Delete the stages of this run."""
        if self.first:
            delete(self.folder)
            if not any(self.root.glob("*")):
                delete(self.root)

    def last_checkpoint(self, output_dir: str) -> str | None:
        """The last checkpoint that is whole and of a run with this key."""
        folders = Path(output_dir).glob("checkpoint-*")
        whole = [(int(path.name.split("-")[1]), str(path)) for path in folders if not self.refusal(str(path))]
        return from_first(max(whole)[1] if whole else None)

    def refusal(self, checkpoint: str) -> str | None:
        """Why a checkpoint cannot be gone on from; None where it can."""
        try:
            json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            theirs = json.loads(Path(checkpoint, KEY_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "it is not whole, or not of this library"
        return f"its run had another {', '.join(differences(theirs, self.key))}" if theirs != self.key else None


class TensorsOnDisk(Mapping):
    """Tensors of a safetensors file by name; none is held here."""

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, "pt") as file:
            self.names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def forget_stages(output_dir: str) -> None:
    """Delete what was kept to resume from, and the keys in checkpoints, which hold a checksum of the forget images."""
    for key in Path(output_dir).glob(f"checkpoint-*/{KEY_NAME}"):
        key.unlink()
    delete(Path(output_dir, FOLDER))


def delete(folder: Path) -> None:
    """Delete a folder that may not be there; proxies that stay behind are told of."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        logger.warning(f"{folder} could not be deleted: it may hold proxies, delete it by hand.")


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each in memory of its own: safetensors refuses tensors that share it."""
    laid, taken = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous().cpu()
        place = tensor.untyped_storage().data_ptr()
        laid[name] = tensor.clone() if place in taken else tensor
        taken.add(place)
    return laid


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest_of(key: dict) -> str:
    """SHA-256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def differences(one: dict, other: dict) -> list[str]:
    """Names of what differs between two keys."""
    mine, theirs = one.get("settings", {}), other.get("settings", {})
    pairs = ((one | {"settings": None}, other | {"settings": None}), (mine, theirs))
    return [name for a, b in pairs for name in {**a, **b} if name not in a or name not in b or a[name] != b[name]]
