"""The one exception type for bad input, so that a caller can tell a request to mend from a fault in the library."""

from __future__ import annotations

import math
import operator
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

BOUNDS = {
    "above": ("above", operator.gt),
    "least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "most": ("at most", operator.le),
}


class UnlearningError(ValueError):
    """Bad input: the message names the offending value and the mend. Raised before any expensive work."""


def check_choice(name: str, value, choices) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        UnlearningError: it lists them.
    """
    if value not in tuple(choices):
        raise UnlearningError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.")


def check_range(name: str, value, *, whole: bool = False, **bounds: float) -> None:
    """Refuse a value that is no finite number, or whole number, within bounds: above, least, below, most.

    Raises:
        UnlearningError: it tells the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = "whole number" if whole else "number (in YAML write 1.0e-3, not 1e-3)"
        raise UnlearningError(f"{name}={value!r} is not a {kind}.")
    fits = isinstance(value, int) if whole else math.isfinite(value)
    if not fits or not all(BOUNDS[key][1](value, bound) for key, bound in bounds.items()):
        kind = "" if fits else "a whole number " if whole else "a finite number "
        span = " and ".join(f"{BOUNDS[key][0]} {bound}" for key, bound in bounds.items())
        raise UnlearningError(f"{name}={value!r} must be {kind}{span}.")


@contextmanager
def transformers_errors() -> Iterator[None]:
    """Turn what transformers finds wrong with its own options into one error.

    Raises:
        UnlearningError: with the first sentence of transformers' message.
    """
    try:
        yield
    except UnlearningError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UnlearningError(f"transformers refuses an option: {first_line(error)} Mend that option.") from error


def first_line(error: BaseException) -> str:
    """The first sentence of a library's error, or its first 300 characters, for quoting in ours."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    heading = lines[0].rstrip().endswith(":")
    text = " ".join(line.strip() for line in lines[: 1 + heading])
    return textwrap.shorten(text, 300, placeholder=" ...").rstrip(".") + "."
