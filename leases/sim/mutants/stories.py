"""Courses of events in which one bug shows, played step by step: who does what is written down, nothing is random.

Each raises Violation where a bug shows, and plays to its end without one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from leases.sim import reference, small
from leases.sim.checkers import Violation
from leases.sim.explorer import NOON, Environment
from paxos import host_lease, resource, settle
from paxos.errors import DiskError, HostIdBusy, IOTimeout, LeaseholdError
from paxos.lease_area import LeaseArea
from paxos.records import Block, Leader
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
        #: what an old path shows instead of what lies there now, by its offset
        self.old: dict[int, bytes] = {}
        #: an I/O for which the first of these is true times out, and the next one waits for another; a write is then
        #: in `late`
        self.hold_back: list[Callable[[Any], bool]] = []
        self.late: list[Write] = []
        #: a write for which this is true is acknowledged and lands elsewhere
        self.astray: Callable[[Any], bool] = lambda step: False

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
        elif isinstance(step, Read | Write) and self.hold_back and self.hold_back[0](step):
            del self.hold_back[0]
            if isinstance(step, Write):
                self.late.append(step)
            raise _timed_out(step, Pending(step))
        elif isinstance(step, Read):
            if step.offset in self.old:
                return memoryview(self.old[step.offset])[: step.length]
            return memoryview(self.bytes).toreadonly()[step.offset : step.offset + step.length]
        elif isinstance(step, Write):
            self._store(step)
        elif isinstance(step, Reap) and step.pending.step in self.late:
            raise _timed_out(step.pending.step, step.pending)
        return None

    def _store(self, step: Write) -> None:
        if self.astray(step):
            return
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
        self._go(partial(next, steps))

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
            except DiskError as failure:
                self._go(partial(self._steps.throw, failure))
            else:
                self._go(partial(self._steps.send, answer))
        return self

    def finish(self) -> Any:
        return self.until(lambda step: False).result


def _writes(stage: Stage, sector: int) -> Callable[[Any], bool]:
    offset = stage.lease.place.at(sector * stage.lease.geometry.sector_size)
    return lambda step: isinstance(step, Write) and step.offset == offset


def _writes_leader(stage: Stage) -> Callable[[Any], bool]:
    return _writes(stage, 0)


def a_late_commit_of_a_reference_host() -> None:
    """Host 1 follows the reference: its commit is late, it erases its block. Host 2 takes the lease, then it lands."""
    stage = Stage()
    stage.hold_back = [_writes_leader(stage)]
    with suppress(DiskError):
        stage.run(reference.acquire(stage.members[1], stage.lease, _NOWAIT))
    held: Held = stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    stage.land()
    try:
        other: Held = stage.run(reference.acquire(stage.members[1], stage.lease, _NOWAIT))
    except LeaseholdError:
        return
    raise Violation("one owner", f"host 1 was granted version {other.lver} while host 2 holds {held.lver}")


def a_competitor_wrote_the_leader() -> None:
    """Host 2 commits what host 1 proposed, after host 1 did. Host 1 releases; then host 2 must get it."""
    stage = Stage()
    first = stage.start(resource.acquire(stage.members[1], stage.lease, _NOWAIT)).until(_writes_leader(stage))
    second = stage.start(resource.acquire(stage.members[2], stage.lease, _NOWAIT)).until(_writes_leader(stage))
    held: Held = first.finish()
    with suppress(LeaseholdError):
        second.finish()
    stage.run(resource.release(stage.members[1], held))
    try:
        stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    except LeaseholdError as refused:
        raise Violation(
            "usable", f"host 1 gave the lease back, and host 2 was refused by {type(refused).__name__}"
        ) from refused


def a_competitor_that_gave_up() -> None:
    """Host 2 took part in choosing host 1, gave up after an I/O error and says RELEASED. Host 1 holds the lease on."""
    stage = Stage()
    me = stage.members[2]
    first = stage.start(resource.acquire(stage.members[1], stage.lease, _NOWAIT)).until(_writes_leader(stage))
    second = stage.start(resource.acquire(me, stage.lease, _NOWAIT)).until(_writes_leader(stage))
    held: Held = first.finish()
    stage.hold_back = [_writes_leader(stage)]
    in_flight: list[Pending] = []
    try:
        second.finish()
    except IOTimeout as late:
        in_flight.append(late.pending)
    stage.land()
    stage.run(settle.settle(me, stage.lease, in_flight))
    try:
        other: Held = stage.run(resource.acquire(me, stage.lease, _NOWAIT))
    except LeaseholdError:
        return
    raise Violation("one owner", f"host 2 was granted version {other.lver} while host 1 holds {held.lver}")


def an_old_path_in_a_ballot() -> None:
    """Host 1 begins a ballot, host 2 gets the lease; then host 1's path shows the area as it was before them both."""
    stage = Stage()
    place = stage.lease.place.offset
    before = bytes(stage.bytes[place:])
    first = stage.start(resource.acquire(stage.members[1], stage.lease, _NOWAIT)).until(_writes(stage, 2))
    held: Held = stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    stage.old[place] = before
    try:
        other: Held = first.finish()
    except LeaseholdError:
        return
    raise Violation("one owner", f"host 1 was granted version {other.lver} while host 2 holds {held.lver}")


def a_mark_that_went_astray() -> None:
    """The write of host 1's shared mark is acknowledged and is not there. Host 2 then wants the lease for itself."""
    stage = Stage()
    block = _writes(stage, 2)
    stage.astray = lambda step: block(step) and Block.unpack(step.data).shared
    try:
        held: Held = stage.run(resource.acquire(stage.members[1], stage.lease, Want(shared=True, nowait=True)))
    except DiskError:
        return
    other: Held = stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    raise Violation("one owner", f"host 2 was granted version {other.lver} while host 1 shares {held.lver}")


def an_old_record_of_the_owner() -> None:
    """Host 1 holds the lease. An old path shows host 2 the host lease of host 1 as it was before that joined."""
    stage = Stage()
    held: Held = stage.run(resource.acquire(stage.members[1], stage.lease, _NOWAIT))
    area = stage.members[1].area
    offset = area.place.at(area.geometry.delta_offset(1))
    length = area.geometry.sector_size
    joined = Leader.unpack(stage.bytes[offset : offset + length])
    stage.old[offset] = joined.changed(owner_generation=0, timestamp=0).sector(length)
    try:
        other: Held = stage.run(resource.acquire(stage.members[2], stage.lease, _NOWAIT))
    except LeaseholdError:
        return
    raise Violation("one owner", f"host 2 was granted version {other.lver} while host 1 holds {held.lver}")


def two_late_steps_of_one_release() -> None:
    """The block that says RELEASED is late, and if the release goes on all the same, its next I/O is late too."""
    stage = Stage()
    me = stage.members[1]
    held: Held = stage.run(resource.acquire(me, stage.lease, _NOWAIT))
    stage.hold_back = [_writes(stage, 2), lambda step: isinstance(step, Read)]
    try:
        stage.run(resource.release(me, held))
    except DiskError as failed:
        pending = settle.pending_of(failed)
        try:
            stage.run(settle.settle(me, stage.lease, [pending] if pending else []))
        except IOTimeout:
            return  # it is known what is in flight, and waited for
    again: Held = stage.run(resource.acquire(me, stage.lease, _NOWAIT))
    stage.land()
    block = Block.unpack(stage.bytes[stage.lease.place.at(stage.lease.geometry.block_offset(1)) :])
    if block.lver != again.lver or block.released:
        raise Violation("holder shows it", f"host 1 holds version {again.lver}, and its block says {block}")


def two_that_join_at_once() -> None:
    """Two hosts that want the same host id both find it free. Both write; who wrote first finds the other's record."""
    stage = Stage()
    area = stage.members[1].area
    offset = area.place.at(area.geometry.delta_offset(1))
    length = area.geometry.sector_size
    free = Leader.unpack(stage.bytes[offset : offset + length]).changed(timestamp=0)
    stage.bytes[offset : offset + length] = free.sector(length)
    timing = stage.members[1].timing
    joining = [stage.start(host_lease.acquire(area, 1, name, timing)) for name in (b"one", b"two")]
    for host in joining:
        host.until(lambda step: isinstance(step, Write))
    for host in joining:
        host.until(lambda step: isinstance(step, Sleep))
    joined = 0
    for host in joining:
        with suppress(HostIdBusy):
            joined += host.finish() is not None
    if joined != 1:
        raise Violation("one owner for a host id", f"{joined} of two hosts that joined at once have host id 1")
