"""An engine whose disk takes its time: what was asked for is what lands, however late."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from leases.sim.checkers import Violation
from paxos.disk.buffers import Buffer
from paxos.disk.engine import Engine
from paxos.errors import IOTimeout
from paxos.steps import write

_SECTOR = 4096


class SlowDisk:
    """A mechanism whose first write hangs and whose others are done at once; time passes only while it waits."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.now = 0.0
        self.hanging: tuple[int, Buffer] | None = None
        self._done: list[tuple[int, int]] = []

    def queue(self, number: int, fd: int, buffer: Buffer, length: int, offset: int, writing: bool) -> None:
        if self.hanging is None:
            self.hanging = (number, buffer)
        else:
            self._done.append((number, length))

    def submit(self) -> Sequence[tuple[int, int]]:
        return ()

    def wait(self, timeout: float) -> Sequence[tuple[int, int]]:
        done, self._done = self._done, []
        if not done:
            self.now += max(timeout, 0.01)
        return done

    def cancel(self, number: int) -> bool:
        return False

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


def a_late_write_keeps_its_bytes() -> None:
    """One write times out; others follow. What the disk then finds in the first one's buffer must be its own bytes."""
    disk = SlowDisk(8)
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:  # /tmp may refuse direct I/O
        os.truncate(file.name, 16 * _SECTOR)
        engine = Engine(clock=lambda: disk.now, capacity=8, mechanism=lambda capacity: disk)
        engine.devices.open(file.name, 30.0)
        with suppress(IOTimeout):
            engine.run(write(file.name, 0, b"1" * _SECTOR, 10.0))
        for number in range(1, 4):
            engine.run(write(file.name, number * _SECTOR, b"2" * _SECTOR, 10.0))
        assert disk.hanging is not None
        number, buffer = disk.hanging
        landed = bytes(buffer.view[:_SECTOR])
        disk._done.append((number, _SECTOR))
        engine.close()
    if landed != b"1" * _SECTOR:
        raise Violation("a buffer is its I/O's until that ends", "a late write landed with the bytes of another one")
