"""The folder that a result is written to: it can be, and holds no result of another request."""

from __future__ import annotations

import os
import tempfile

from torch import Tensor

from ..data.request import proves
from ..errors import UnlearningError
from ..report.report import REPORT_NAME, UnlearningReport


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
    """Refuse a folder that holds anything but an earlier result of the same request.

    Args:
        request: "base_model" and "forget_classes", as they stand in the report.

    Raises:
        UnlearningError: another model, or the result of another request.
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
    elif names & {"config.json", "model.safetensors", "model.safetensors.index.json"}:
        raise UnlearningError(f"output_dir {folder!r} holds another model: give an empty or new folder.")


def check_same_images(folder: str, images: Tensor) -> None:
    """Refuse a folder that holds the result of a request for other images: where no class is named, nothing else tells
    two requests apart.

    Args:
        images: ``(N, channels, H, W)`` uint8.

    Raises:
        UnlearningError: other images, or no nonce to tell by.
    """
    if os.path.isfile(os.path.join(folder, REPORT_NAME)):
        earlier = UnlearningReport.load(folder).request
        if earlier is None or not proves(folder, earlier, images):
            raise UnlearningError(
                f"output_dir {folder!r} holds the result of a request for other images: give an empty or a new folder."
            )
