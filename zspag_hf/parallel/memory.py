"""What a process holds at most."""

from __future__ import annotations

import re
import sys
from pathlib import Path


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
