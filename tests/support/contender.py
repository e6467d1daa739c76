"""One of several processes that contend for one lease, under the eyes of a detector that trusts no engine.

    python contender.py leasehold|sanlock '{"path": ..., "offset": ..., "lease": ..., "host_id": ..., "arena": ...}'

Whoever has the lease locks a file of the arena (flock, which the kernel keeps): exclusively, or shared for a shared
lease. Where that is refused, two held the lease against its rules. Each turn is written down with its times (of one
clock) for a second look. It prints "ready" when it has joined, contends from its first line of input on, and ends,
having released, with the next. Standard library only, but for the engine: the reference's module needs the system's
Python.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: what the reference answers while it is somebody else's turn: live owner, lost ballot, live sharer, ...
_NOT_NOW = (243, 244, 245, 246, 247, 11)


class Arena:
    """The detector, from one contender's side. `journal` gets one line of JSON for each turn."""

    def __init__(self, directory: str, who: str) -> None:
        self._lock = os.open(f"{directory}/held", os.O_RDWR | os.O_CREAT)
        self._journal = os.open(f"{directory}/{who}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def turn(self, shared: bool, wanted_at: float) -> None:
        """Be the holder for some milliseconds."""
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        overlap = False
        try:
            fcntl.flock(self._lock, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            overlap = True
        began = time.monotonic()
        time.sleep(random.uniform(0.001, 0.004))
        ended = time.monotonic()
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        turn = {"wanted": wanted_at, "from": began, "to": ended, "shared": shared, "overlap": overlap}
        self._write(turn)

    def left_waiting(self, wanted_at: float) -> None:
        """It was over before the turn came."""
        self._write({"wanted": wanted_at, "until": time.monotonic()})

    def _write(self, turn: dict[str, Any]) -> None:
        os.write(self._journal, json.dumps(turn).encode() + b"\n")


def contend(
    arena: Arena, stop: threading.Event, share: float, acquire: Callable[[bool], Any], release: Callable[[Any], None]
) -> None:
    """Take the lease again and again; `share` is how often (0..1) it is wanted shared."""
    while not stop.is_set():
        shared = random.random() < share
        wanted_at = time.monotonic()
        lease = acquire(shared)
        if lease is not None:
            arena.turn(shared, wanted_at)
            release(lease)
        else:
            arena.left_waiting(wanted_at)
        time.sleep(random.uniform(0, 0.002))


def main(engine: str, facts: dict[str, Any]) -> None:
    arena = Arena(facts["arena"], facts["who"])
    stop = threading.Event()
    share = facts["share"]
    if engine == "leasehold":
        from leases.volume import Volume
        from paxos.disk.abort import AbortSignal
        from paxos.errors import Aborted

        abort = AbortSignal()
        with Volume(facts["path"]).join(facts["host_id"], watchdog="none") as lockspace:

            def acquire(shared: bool) -> Any:
                try:
                    return lockspace.acquire(facts["lease"], shared=shared, wait=float("inf"), abort=abort)
                except Aborted:
                    return None

            _until_told(stop, lambda: abort.set("that is all"))
            contend(arena, stop, share, acquire, lambda lease: lease.release())
    else:
        import sanlock  # type: ignore[import-not-found]  # the distribution's, for its own Python

        place = (b"LS", facts["lease"].encode(), [(facts["path"], facts["offset"])])
        connection = sanlock.register()

        def acquire(shared: bool) -> Any:
            while not stop.is_set():
                try:
                    sanlock.acquire(*place, slkfd=connection, shared=shared)
                except sanlock.SanlockException as refusal:
                    if abs(refusal.args[0]) not in _NOT_NOW:
                        raise
                    time.sleep(random.uniform(0, 0.02))
                else:
                    return place
            return None

        _until_told(stop, lambda: None)
        contend(arena, stop, share, acquire, lambda _: sanlock.release(*place, slkfd=connection))


def _until_told(stop: threading.Event, also: Callable[[], None]) -> None:
    """Say that we are ready, wait for the start, and have `stop` set with the end."""
    print("ready", flush=True)
    sys.stdin.readline()

    def wait() -> None:
        with suppress(OSError):
            sys.stdin.readline()
        stop.set()
        also()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
