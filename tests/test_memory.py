"""What a process tells of its own memory, in one of its own; and that the library needs no torch.distributed."""

import subprocess
import sys

import pytest

from zspag_hf.parallel.memory import peak_memory_mb

HELD = """
from zspag_hf.parallel.memory import peak_memory_mb
before = peak_memory_mb()
block = bytearray(b"x") * 200_000_000
held = peak_memory_mb()
del block
print(before, held, peak_memory_mb())
"""
WITHOUT_DISTRIBUTED = """
import sys
from torch import distributed
distributed.is_available = lambda: False
for name in ("device_mesh", "fsdp", "tensor"):
    sys.modules[f"torch.distributed.{name}"] = None
from zspag_hf import METHODS, FastClip, UnlearningTrainer
FastClip()
print(len(METHODS), UnlearningTrainer.__name__)
"""


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.split()


def test_a_process_has_a_peak():
    peak = peak_memory_mb()
    assert sys.platform == "win32" or 50 < peak < 1e6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_the_peak_grows_by_what_is_held_and_stays_when_that_is_given_back():
    before, held, afterwards = map(float, printed(HELD))
    assert 190 < held - before < 300
    assert afterwards == pytest.approx(held, abs=5)


@pytest.mark.slow
def test_the_library_imports_where_torch_was_built_without_distributed():
    count, name = printed(WITHOUT_DISTRIBUTED)
    assert int(count) > 10 and name == "UnlearningTrainer"
