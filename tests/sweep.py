"""Models of the table as parameters of a test: a few in every run, all of them in slow ones."""

from collections.abc import Iterable

import pytest
from cases import MODELS


def sweep(*always: str, among: Iterable[str] | None = None) -> list:
    """Parameters of a fixture or a test, a model case each: those named first in every run, all others marked slow.

    Args:
        among: names to choose from; None: every model.
    """
    chosen = [case for case in MODELS if among is None or case.name in among]
    marks = {case.name: () if case.name in always else pytest.mark.slow for case in chosen}
    return [pytest.param(case, id=case.name, marks=marks[case.name]) for case in chosen]
