"""A process that is gone is noticed within a minute, also where its machine was cut off and no connection tells.

Collectives would wait for half an hour, and a shorter time limit on them would end runs whose processes are only slow.
So every process beats in a store of its own connection, and watches the others.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from torch import distributed as dist

from .processes import rank_and_size

INTERVAL = 2.0  # seconds between beats
PATIENCE = 40.0  # seconds without a beat, after which a process counts as gone
EXIT_STATUS = 70  # EX_SOFTWARE
_sessions = 0


@contextlib.contextmanager
def heartbeat() -> Iterator[None]:
    """Inside the block, end this process with one line of error once another one is gone. Every process has to enter.

    Nothing where a single process runs.
    """
    global _sessions
    rank, size = rank_and_size()
    if size == 1:
        yield
        return
    _sessions += 1
    launch = "/".join(os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    heart = Heart(f"{launch}/{_sessions}", rank, size)
    heart.start()
    try:
        yield
    except BaseException:
        heart.stopped.set()  # the others may wait for this process in vain: they are not told that it left
        raise
    heart.stop()


class Heart:
    """Two threads: one beats and reads the others' beats, which may hang when the network is gone; one watches it.

    Args:
        name: of the session, the same in every process.
    """

    def __init__(self, name: str, rank: int, size: int):
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = timedelta(seconds=PATIENCE)
        self.store = dist.PrefixStore(f"zspag_hf/{name}", dist.TCPStore(address, port, None, False, wait))
        self.rank, self.others = rank, [other for other in range(size) if other != rank]
        self.stopped = threading.Event()
        self.beaten = time.monotonic()

    def start(self) -> None:
        for work in (self.beat, self.watch):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        with contextlib.suppress(RuntimeError):  # the first process may have left with its store
            self.store.add(f"left/{self.rank}", 1)

    def beat(self) -> None:
        counts, seen = dict.fromkeys(self.others, 0), dict.fromkeys(self.others, time.monotonic())
        try:
            while not self.stopped.wait(INTERVAL):
                self.store.add(f"beats/{self.rank}", 1)
                now = time.monotonic()
                for other in list(counts):
                    count = self.store.add(f"beats/{other}", 0)
                    if count != counts[other]:
                        counts[other], seen[other] = count, now
                    elif self.store.add(f"left/{other}", 0):
                        del counts[other]
                    elif now - seen[other] > PATIENCE:
                        self.give_up(f"process {other} has not answered for {PATIENCE:.0f} s")
                self.beaten = now
        except RuntimeError as error:  # the store's own errors have no closer class in common
            if not self.stopped.is_set():
                self.give_up(f"the first process cannot be reached ({str(error).splitlines()[0][:80]})")

    def watch(self) -> None:
        while not self.stopped.wait(INTERVAL):
            if time.monotonic() - self.beaten > PATIENCE:
                self.give_up(f"the first process has not answered for {PATIENCE:.0f} s")

    def give_up(self, why: str) -> None:
        print(
            f"error: {why}: its process, machine or network is gone, and the run stops. Go on with"
            " resume_from_checkpoint=true.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STATUS)  # the main thread waits in a collective and hears nothing else
