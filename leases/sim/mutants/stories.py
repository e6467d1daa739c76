"""Courses of events in which one bug shows, played step by step: who does what is written down, nothing is random.

Each raises Violation where a bug shows, and plays to its end without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leases.sim import reference, small
from leases.sim.checkers import Violation
from leases.sim.explorer import NOON, Environment
from paxos import resource
from paxos.errors import DiskError, IOTimeout, LeaseholdError
from paxos.lease_area import LeaseArea
from paxos.resource import Held, Want
from paxos.steps import Now, Pending, Read, Reap, Sleep, Steps, Write

_NOWAIT = Want(nowait=True)


class Stage:
    """One disk, one clock, two hosts that are alive; protocols run to their ends, or up to a step."""

    def __init__(self) -> None:
        self.bytes = bytearray(small.image(2))
        self.clock = NOON
        self.lease: LeaseArea = small.lease(2)
        self.members = {host: small.member(Environment(), host, 2) for host in (1, 2)}
        #: a write for which this is true times out, once; it is then in `late`
        self.hold_back: Callable[[Write], bool] = lambda step: False
        self.late: list[Write] = []

    def land(self) -> None:
        """What was held back happens."""
        for step in self.late:
            self._store(step)
        self.late.clear()

    def run(self, steps: Steps[Any]) -> Any:
        return self.start(steps).finish()

    def start(self, steps: Steps[Any]) -> Played:
        return Played(self, steps)

    def perform(self, step: Any) -> Any:
        if isinstance(step, Now):
            return self.clock
        if isinstance(step, Sleep):
            self.clock += step.seconds
        elif isinstance(step, Read):
            return memoryview(self.bytes).toreadonly()[step.offset : step.offset + step.length]
        elif isinstance(step, Write):
            if self.hold_back(step):
                self.hold_back = lambda step: False
                self.late.append(step)
                raise _timed_out(step, Pending(step))
            self._store(step)
        elif isinstance(step, Reap):
            if step.pending.step in self.late:
                raise _timed_out(step.pending.step, step.pending)
        return None

    def _store(self, step: Write) -> None:
        self.bytes[step.offset : step.offset + len(step.data)] = step.data


def _timed_out(step: Read | Write, pending: Pending) -> IOTimeout:
    length = step.length if isinstance(step, Read) else len(step.data)
    facts = {"operation": "write", "disk": step.disk, "offset": step.offset, "length": length}
    return IOTimeout(**facts, timeout=step.timeout, pending=pending)


class Played:
    """A protocol on the stage, at some step."""

    def __init__(self, stage: Stage, steps: Steps[Any]) -> None:
        self._stage = stage
        self._steps = steps
        self.step: Any = None
        self.result: Any = None
        self._go(lambda: next(steps))

    def _go(self, how: Callable[[], Any]) -> None:
        try:
            self.step = how()
        except StopIteration as end:
            self.step, self.result = None, end.value

    def until(self, condition: Callable[[Any], bool]) -> Played:
        """Up to, and not with, a step for which `condition` is true."""
        while self.step is not None and not condition(self.step):
            try:
                answer = self._stage.perform(self.step)
            except DiskError as failed:
                failure = failed
                self._go(lambda: self._steps.throw(failure))
            else:
                self._go(lambda: self._steps.send(answer))  # noqa: B023 (called at once)
        return self

    def finish(self) -> Any:
        return self.until(lambda step: False).result


def _writes_leader(stage: Stage) -> Callable[[Any], bool]:
    return lambda step: isinstance(step, Write) and step.offset == stage.lease.place.offset


def a_late_commit_of_a_reference_host() -> None:
    """Host 1 follows the reference: its commit is late, it erases its block. Host 2 takes the lease, then it lands."""
    stage = Stage()
    stage.hold_back = _writes_leader(stage)
    try:
        stage.run(reference.acquire(stage.members[1], stage.lease, _NOWAIT))
    except DiskError:
        pass
    held: Held = stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    stage.land()
    try:
        other: Held = stage.run(reference.acquire(stage.members[1], stage.lease, _NOWAIT))
    except LeaseholdError:
        return
    raise Violation("one owner", f"host 1 was granted version {other.lver} while host 2 holds {held.lver}")


def a_competitor_wrote_the_leader() -> None:
    """Host 2 commits what host 1 proposed, after host 1 did. Host 1 releases; then the lease must be host 2's to take."""
    stage = Stage()
    first = stage.start(resource.acquire(stage.members[1], stage.lease, _NOWAIT)).until(_writes_leader(stage))
    second = stage.start(resource.acquire(stage.members[2], stage.lease, _NOWAIT)).until(_writes_leader(stage))
    held: Held = first.finish()
    try:
        second.finish()
    except LeaseholdError:
        pass
    stage.run(resource.release(stage.members[1], held))
    try:
        stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    except LeaseholdError as refused:
        raise Violation("usable", f"host 1 gave the lease back, and host 2 was refused: {refused!r}") from refused
