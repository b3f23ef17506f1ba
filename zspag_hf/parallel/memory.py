"""What a process holds: its peak, and what it need not hold any longer."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from pathlib import Path

LARGE_BLOCK = 8 * 2**20  # bytes: the activations and weight gradients of a ViT-B/16; a small ViT runs no slower by it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
MALLOC_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def trim_memory() -> None:
    """Give what a stage has freed back to the system. glibc keeps it, in pieces that the next stage's larger tensors do
    not fit into: on a ViT-B/16 they came to as much as a training step needs."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks() -> None:
    """Have glibc give blocks from ``LARGE_BLOCK`` bytes on back to the system when they are freed, in this process from
    now on. Else it raises that limit to 32 MB by itself, and the heap of a ViT-B/16 grows from step to step, since
    activations and copies of weights leave gaps that the others do not fit into. Whoever set one of
    ``MALLOC_SETTINGS`` in the environment has chosen already."""
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in MALLOC_SETTINGS):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, 8 * LARGE_BLOCK)  # which would stay at 128 kB, and be met at every layer


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
