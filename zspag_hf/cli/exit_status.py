"""How a command ends: its exit status, and bad input as one line on stderr. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from ..errors import UnlearningError

BAD_INPUT, INTERRUPTED = 2, 130
SECONDS_FOR_THE_FIRST = 10  # to speak and to end, before another process does


def status(command: Callable[[], int | None], prefix: str = "") -> int:
    """Run a command: 0 or what it returns, 2 for bad input, 130 for Ctrl-C. Other exceptions are faults, and pass.

    Of several processes the first alone speaks. The others wait, so that a launcher, which ends all when one has ended,
    does not end the first before it has spoken; the error that only one of them meets is told by that one.
    """
    try:
        return command() or 0
    except UnlearningError as error:
        if not is_first_process():
            time.sleep(SECONDS_FOR_THE_FIRST)
        print(f"{prefix}error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        if is_first_process():
            print(f"{prefix}interrupted", file=sys.stderr)
        return INTERRUPTED


def is_first_process() -> bool:
    """Of several, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def reported(command: Callable[[], int | None]) -> None:
    """Run a script's main function and exit with its :func:`status`."""
    sys.exit(status(command))
