"""Disks in memory and a clock that jumps: the smallest world in which a protocol runs to its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paxos.errors import DiskError, IOTimeout, ShortIO
from paxos.steps import Now, Pending, Read, Reap, Sleep, Steps, Write


class Landed(Pending):
    """An I/O that timed out; `land` lets it happen: a write goes to the disk, a read brings what lies there then."""

    __slots__ = ("landed", "result", "world")

    def __init__(self, step: Read | Write, world: MemoryWorld) -> None:
        super().__init__(step)
        self.world = world
        self.landed = False
        self.result: memoryview | None = None

    def land(self) -> None:
        if not self.landed and isinstance(self.step, Write):
            self.world.store(self.step)
        elif not self.landed and isinstance(self.step, Read):
            self.result = memoryview(bytes(self.world.fetch(self.step)))
        self.landed = True

    def lose(self) -> None:
        """Let it end without having happened."""
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
        #: called whenever the clock has jumped
        self.on_sleep: Callable[[], None] = lambda: None

    def store(self, step: Write) -> None:
        self.disks[step.disk][step.offset : step.offset + len(step.data)] = step.data

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        self.on_sleep()

    def fetch(self, step: Read) -> memoryview:
        """The disk itself, not a copy: what a protocol keeps beyond its next step, it must have copied."""
        return memoryview(self.disks[step.disk]).toreadonly()[step.offset : step.offset + step.length]

    def perform(self, step: Any) -> Any:
        """Carry out one step; raises what a driver would throw into the protocol."""
        match step:
            case Now():
                return self.time
            case Sleep(seconds):
                self.pass_time(seconds)
                return None
            case Reap(pending, timeout):
                assert isinstance(pending, Landed)
                if not pending.landed:
                    self.pass_time(timeout)
                    raise self._timeout(pending.step, pending)
                return pending.result
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
        facts = {
            "operation": type(step).__name__.lower(),
            "length": length,
            "disk": step.disk,
            "offset": step.offset,
        }
        verdict = self.verdict(step)
        if verdict == "fail":
            raise DiskError(**facts)
        if verdict == "late":
            self.pass_time(step.timeout)
            pending = Landed(step, self)
            self.late.append(pending)
            raise self._timeout(step, pending)
        if step.offset + length > len(disk):
            raise ShortIO(moved=max(0, len(disk) - step.offset), **facts)
        if isinstance(step, Read):
            return self.fetch(step)
        self.store(step)
        return None

    def start(self, protocol: Steps[Any]) -> Running:
        """Begin a protocol that is driven by hand."""
        return Running(self, protocol)

    def run(self, protocol: Steps[Any], within: float = float("inf")) -> Any:
        """Drive a protocol to its end. Raises Endless if that takes longer than `within` seconds."""
        return Running(self, protocol).finish(within)


class Endless(Exception):
    """A protocol did not come to its end in the time it was given; it was stopped where it stood."""


class Running:
    """A protocol driven step by step, so that others can act between its steps."""

    def __init__(self, world: MemoryWorld, protocol: Steps[Any]) -> None:
        self.world = world
        self.protocol = protocol
        #: what it asks for next; None when it has ended
        self.step: Any = None
        self.result: Any = None
        self.failure: Exception | None = None
        self._resume(lambda: next(protocol))

    def _resume(self, how: Callable[[], Any]) -> None:
        try:
            self.step = how()
        except StopIteration as end:
            self.step, self.result = None, end.value
        except Exception as failure:
            self.step, self.failure = None, failure

    def advance(self) -> None:
        """Carry out the step it asks for."""
        try:
            result = self.world.perform(self.step)
        except Exception as failed:
            failure = failed
            self._resume(lambda: self.protocol.throw(failure))
        else:
            self._resume(lambda: self.protocol.send(result))

    def wake(self) -> None:
        """Go on from a sleep whose time somebody else let pass."""
        assert isinstance(self.step, Sleep)
        self._resume(lambda: self.protocol.send(None))

    def until(self, condition: Callable[[Any], bool]) -> Running:
        """Carry out steps up to, and not with, one for which `condition` is true."""
        while self.step is not None and not condition(self.step):
            self.advance()
        return self

    def finish(self, within: float = float("inf")) -> Any:
        """To the end: its result, or its failure raised. Raises Endless after `within` seconds."""
        deadline = self.world.time + within
        while self.step is not None:
            if self.world.time > deadline:
                self.protocol.close()
                raise Endless
            self.advance()
        if self.failure is not None:
            raise self.failure
        return self.result
