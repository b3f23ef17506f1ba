"""Files that are there whole or not at all."""

from __future__ import annotations

import os


def write_whole(path: str, data: bytes) -> str:
    """Write beside the path first and move into place: what stood there stays whole if writing fails. Returns the
    path."""
    part = path + ".part"
    with open(part, "wb") as file:
        file.write(data)
    sync(part)
    os.replace(part, path)
    return path


def sync(path: str) -> None:
    """Wait until a file is on the disk: moved into place before, it could be empty after a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
