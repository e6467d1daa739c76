"""Joining a lockspace with io_timeout 1, beside the real daemon.

By the protocol it waits two io_timeouts between writing the host lease and believing it: that is the floor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.conftest import Contest
from bench.contestants import Sanlock
from leases.volume import Volume
from paxos.geometry import MIB
from paxos.timing import Timing
from tests.support.storage import PlainDisk


@pytest.fixture
def path() -> Iterator[str]:
    with PlainDisk(8 * MIB) as disk:
        Volume.create(disk.path, "LS", leases=2, io_timeout=1, force=True)
        yield disk.path


def test_join(contest: Contest, path: str) -> None:
    with ExitStack() as joined, Sanlock() as sanlock:
        volume = Volume(path)

        def ours() -> None:
            joined.enter_context(volume.join(1, watchdog="none"))

        def theirs() -> float:
            place = (b"LS", 2, path)
            taken = sanlock.call("add_lockspace", *place, iotimeout=1)
            sanlock.call("rem_lockspace", *place)
            return taken

        def waiting() -> float:
            start = time.perf_counter()
            time.sleep(Timing(1).join_settle)
            return time.perf_counter() - start

        contest(ours, {"sanlock": theirs, "the wait": waiting}, prepare=joined.close, rounds=5)
