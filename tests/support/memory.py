"""Disks in memory and a clock that jumps: the smallest world in which a protocol runs to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paxos.errors import DiskError, IOTimeout, ShortIO
from paxos.steps import Now, Pending, Read, Reap, Sleep, Steps, Write


class Landed(Pending):
    """A write that timed out; `land` puts it on the disk."""

    __slots__ = ("landed", "world")

    def __init__(self, step: Read | Write, world: MemoryWorld) -> None:
        super().__init__(step)
        self.world = world
        self.landed = False

    def land(self) -> None:
        if not self.landed and isinstance(self.step, Write):
            self.world.store(self.step)
        self.landed = True


#: what happens to an I/O: None it works, "fail" EIO, "late" times out and may land later
Verdict = Callable[[Read | Write], str | None]


class MemoryWorld:
    """Named disks, one clock, a record of every I/O as (R or W, offset, length)."""

    def __init__(self, **disks: int) -> None:
        self.disks = {name: bytearray(size) for name, size in disks.items()}
        self.time = 1000.0
        self.io: list[tuple[str, int, int]] = []
        self.verdict: Verdict = lambda _step: None
        self.late: list[Landed] = []
        self.on_sleep: Callable[[], None] = lambda: None

    def store(self, step: Write) -> None:
        self.disks[step.disk][step.offset : step.offset + len(step.data)] = step.data

    def perform(self, step: Any) -> Any:
        """Carry out one step; raises what a driver would throw into the protocol."""
        match step:
            case Now():
                return self.time
            case Sleep(seconds):
                self.time += seconds
                self.on_sleep()
                return None
            case Reap(pending, timeout):
                if not pending.landed:
                    self.time += timeout
                    raise self._timeout(pending.step, pending)
                return None
            case Read() | Write():
                return self._transfer(step)
        raise AssertionError(step)

    def _timeout(self, step: Read | Write, pending: Pending) -> IOTimeout:
        length = step.length if isinstance(step, Read) else len(step.data)
        return IOTimeout(
            operation=type(step).__name__.lower(),
            length=length,
            disk=step.disk,
            offset=step.offset,
            timeout=step.timeout,
            pending=pending,
        )

    def _transfer(self, step: Read | Write) -> memoryview | None:
        length = step.length if isinstance(step, Read) else len(step.data)
        kind = "R" if isinstance(step, Read) else "W"
        self.io.append((kind, step.offset, length))
        disk = self.disks[step.disk]
        facts = {"operation": type(step).__name__.lower(), "length": length, "disk": step.disk, "offset": step.offset}
        verdict = self.verdict(step)
        if verdict == "fail":
            raise DiskError(**facts)
        if verdict == "late":
            self.time += step.timeout
            pending = Landed(step, self)
            self.late.append(pending)
            raise self._timeout(step, pending)
        if step.offset + length > len(disk):
            raise ShortIO(moved=max(0, len(disk) - step.offset), **facts)
        if isinstance(step, Read):
            return memoryview(bytes(disk[step.offset : step.offset + length]))
        self.store(step)
        return None

    def run(self, protocol: Steps[Any]) -> Any:
        """Drive a protocol to its end."""
        try:
            step = next(protocol)
            while True:
                try:
                    result = self.perform(step)
                except Exception as failure:
                    step = protocol.throw(failure)
                else:
                    step = protocol.send(result)
        except StopIteration as end:
            return end.value
