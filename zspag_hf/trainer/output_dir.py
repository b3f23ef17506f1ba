"""The folder that a result is written to: it can be, holds nothing of anybody else's by the names that are written, no
result of another request, and no second run at the same time."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from ..data.request import PRIVATE_NAME, proves, was_begun
from ..errors import UnlearningError
from ..parallel.processes import from_first, rank_and_size
from ..report.figures import FOLDER
from ..report.report import PAGE_NAME, REPORT_NAME, UnlearningReport

CARD_NAME = "README.md"
LOCK_NAME = ".lock"
MODEL_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|processor_config\.json"
    r"|model\.safetensors|model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json"
)


def check_writable(folder: str) -> None:
    """Make a folder, and refuse one that nothing can be written to.

    Raises:
        UnlearningError: a file, below one, without permission, or no path at all.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, TypeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UnlearningError(f"output_dir {folder!r} cannot be written to ({why}): give another folder.") from error


def check_output_dir(folder: str, request: dict) -> None:
    """Refuse a folder that holds a file by a name that a result has, unless an earlier run of the same request
    wrote it.

    Args:
        request: "base_model" and "forget_classes", as they stand in the report.

    Raises:
        UnlearningError: a file of somebody else's, or the result of another request.
    """
    check_writable(folder)
    names = set(os.listdir(folder))
    if REPORT_NAME in names:
        try:
            earlier = UnlearningReport.load(folder)
        except (OSError, TypeError, ValueError) as error:
            raise UnlearningError(
                f"output_dir {folder!r} holds an {REPORT_NAME} that this version cannot read ({error}): give a new"
                " folder."
            ) from error
        for name, value in request.items():
            if getattr(earlier, name) != value:
                raise UnlearningError(
                    f"output_dir {folder!r} holds the result of another request ({name} {getattr(earlier, name)!r}, not"
                    f" {value!r}): give an empty or new folder."
                )
        return
    others = sorted(name for name in names if MODEL_FILES.fullmatch(name) or name in (CARD_NAME, PAGE_NAME, FOLDER))
    if others and PRIVATE_NAME not in names:  # a run that was killed in its first save left its nonce
        raise UnlearningError(
            f"output_dir {folder!r} holds {others[0]!r}, which no run wrote and this one would write over: give an"
            " empty or new folder."
        )


def check_same_images(folder: str, images: Tensor, classes: list[dict[str, Any]]) -> None:
    """Refuse a folder that holds the beginning of another request's result; and where no class is named, so that
    nothing else tells two requests apart, a result for other images.

    Args:
        images: ``(N, channels, H, W)`` uint8. classes: as the ledger writes them.

    Raises:
        UnlearningError: other images, or no nonce to tell by.
    """
    if not os.path.isfile(os.path.join(folder, REPORT_NAME)):
        same = was_begun(folder, classes, images)
    else:
        earlier = UnlearningReport.load(folder).request
        same = bool(classes) or (earlier is not None and proves(folder, earlier, images))
    if not same:
        raise UnlearningError(
            f"output_dir {folder!r} holds the result of a request for other images: give an empty or a new folder."
        )


def drop_earlier(folder: str) -> None:
    """Take away what an earlier result says of its weights, before others stand there: report, page, pictures, card."""
    said = [Path(folder, name) for name in (REPORT_NAME, PAGE_NAME, CARD_NAME)]
    for path in (*said, *Path(folder, FOLDER).glob("*.png")):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: str, shared: bool = False) -> Iterator[None]:
    """Keep other runs out of a folder.

    Args:
        shared: called by all processes of a run, for which the first one does.

    Raises:
        UnlearningError: another run is in it.
    """
    lock, free = FileLock(os.path.join(folder, LOCK_NAME)), True
    mine = not shared or rank_and_size()[0] == 0
    try:
        if mine:
            lock.acquire(timeout=0)
    except Timeout:
        free = False
    if not (from_first(free) if shared else free):
        raise UnlearningError(
            f"another run is at work in output_dir {folder!r}: wait for its end, or give another folder."
        )
    try:
        yield
    finally:
        if mine:
            lock.release()
