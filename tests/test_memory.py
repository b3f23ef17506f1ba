"""glibc is told to return large blocks, unless the user has set its limits."""

import ctypes
import platform
from types import SimpleNamespace

import pytest

from zspag_hf.parallel.memory import LARGE_BLOCK, MALLOC_SETTINGS, return_large_blocks


@pytest.fixture
def told(monkeypatch):
    """What glibc is told, with none of its settings in the environment."""
    calls = []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *given: calls.append(given)))
    for name in MALLOC_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_large_blocks_are_returned(told):
    return_large_blocks()
    assert (-3, LARGE_BLOCK) in told  # M_MMAP_THRESHOLD in malloc.h


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_set_stays(told, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    return_large_blocks()
    assert not told
