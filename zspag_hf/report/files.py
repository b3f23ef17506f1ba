"""Files that are there whole or not at all, and numbers that JSON knows."""

import math
import os
from typing import Any


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


def finite(value: Any) -> Any:
    """The value with every number in it that JSON does not know replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
