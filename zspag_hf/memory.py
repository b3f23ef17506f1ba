"""What a process holds: its peak, and what it need not hold any longer."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from pathlib import Path


def trim_memory() -> None:
    """Give what a stage has freed back to the system. glibc keeps it, in pieces that the next stage's larger tensors do
    not fit into: on a ViT-B/16 they came to as much as a training step needs."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process so far, in MB; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":  # where a process's ru_maxrss begins with its parent's
        told = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(told[1]) * 1024 / 1e6 if told else None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
