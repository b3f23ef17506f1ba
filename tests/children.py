"""Processes of their own that need not import everything anew: forked off a server that has imported it once."""

import gc
import multiprocessing
import os
import shutil
import socket
import tempfile
import traceback
from multiprocessing import forkserver
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LIMIT = 300  # seconds, so that a process that waits for ever fails its test


def start(target, *arguments, environment=None):
    """A process that calls ``target(*arguments)``, and the file that its error goes to."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "tiny"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS, TESTS.parent))))  # the server is not told sys.path
        forkserver.ensure_running()
    log = Path(tempfile.mkdtemp(prefix="child-"), "error.txt")
    process = context.Process(target=call, args=(log, environment or {}, target, arguments))
    process.start()
    return process, log


def call(log, environment, target, arguments):
    os.environ.update(environment)
    gc.freeze()
    try:
        target(*arguments)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # at once: what a process group's threads do at exit is not this suite's


def ended(process, log, status=0) -> None:
    """Wait for the end of a process, and check its exit status; -9 after SIGKILL."""
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
    told = log.read_text() if log.exists() else ""
    shutil.rmtree(log.parent)
    assert process.exitcode == status, f"status {process.exitcode}: {told}"


def run(target, *arguments, status=0) -> None:
    """Call ``target(*arguments)`` in a process of its own, which has to end with this exit status."""
    ended(*start(target, *arguments), status)


def start_group(count: int, target, *arguments) -> list:
    """``target(*arguments)`` in each of ``count`` processes, which find one another as under torch.distributed.run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)} for rank in range(count)]
    environments = [shared | rank for rank in ranks] if count > 1 else [None]
    return [start(target, *arguments, environment=environment) for environment in environments]


def run_group(count: int, target, *arguments) -> None:
    """The same, and wait for all; each has to end well."""
    for process, log in start_group(count, target, *arguments):
        ended(process, log)
