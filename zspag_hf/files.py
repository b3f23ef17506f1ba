"""Files that are there whole or not at all."""

from __future__ import annotations

import os


def write_whole(path: str, data: bytes) -> str:
    """Write beside the path first and move into place: what stood there stays whole if writing fails. Returns the
    path."""
    part = path + ".part"
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, path)
    return path
