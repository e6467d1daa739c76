"""The shared disk: sectors are atomic, and nothing else is. Each host has a path of its own to it.

A sector's bytes change at one moment; an I/O of several sectors may be torn between any two of them. An I/O
that times out goes on: it may land at any later time, also when its process, or its whole machine, is long
gone. What is done without a fault costs one event, so that the good days between two faults are cheap.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from leases.sim.faults import Plan, between
from leases.sim.world import World
from paxos.errors import DiskError, ShortIO
from paxos.geometry import MIB
from paxos.steps import Pending, Read, Write

if TYPE_CHECKING:
    from leases.sim.machine import Machine, Task

#: a path's good latency, seconds: never less than the first, on average by the second more
LATENCY_S = (0.0004, 0.0008)
#: how long (true seconds) the fabric may keep a write, other than a leader's, of a machine that was reset
AFTER_RESET_S = 100.0
#: moments of a second: what is asked for within one by one host counts as at the same time
MOMENTS = 100_000
_64_BITS = (1 << 64) - 1


class InFlight(Pending):
    """One I/O on its way. Once `ended`, `value` or `error` is its result."""

    __slots__ = ("boots", "due", "ended", "error", "overdue", "path", "task", "value")
    step: Read | Write

    def __init__(self, step: Read | Write, path: Path, task: Task) -> None:
        self.step = step
        self.path = path
        self.task = task
        self.value: Any = None
        self.error: DiskError | None = None
        self.ended = False
        #: it timed out once
        self.overdue = False
        #: host time at which its task gives up waiting
        self.due = 0.0
        #: the boot of its machine
        self.boots = task.machine.boots

    @property
    def late(self) -> bool:
        """Nobody waits for it any more: it timed out, or who issued it is gone."""
        return self.overdue or not self.task.alive

    def reap(self, task: Task, timeout: float) -> None:
        """Let `task` wait for it, up to `timeout` seconds of its host."""
        self.task = task
        task.waiting = self
        self.path.watch(self, timeout)


class SimDisk:
    """The bytes, shared by all paths. `sector_size` and `size` in bytes."""

    def __init__(self, world: World, name: str, size: int, sector_size: int = 512, *, remember_s: float = 0.0) -> None:
        assert size % sector_size == 0
        self.world = world
        self.name = name
        self.sector_size = sector_size
        self.bytes = bytearray(size)
        self.view = memoryview(self.bytes).toreadonly()
        self._remember_s = remember_s
        #: (true time, offset, the bytes that were there before)
        self._past: deque[tuple[float, int, bytes]] = deque()

    def put(self, offset: int, data: bytes) -> None:
        """Change the bytes, now."""
        if self._remember_s:
            now, past = self.world.now, self._past
            past.append((now, offset, bytes(self.view[offset : offset + len(data)])))
            while past[0][0] < now - self._remember_s:
                past.popleft()
        self.bytes[offset : offset + len(data)] = data

    def past(self, offset: int, length: int, time: float) -> bytes:
        """The bytes as they were at a true time in the past, as far back as is remembered."""
        result = bytearray(self.view[offset : offset + length])
        for when, start, before in reversed(self._past):
            if when < time:
                break
            low, high = max(start, offset), min(start + len(before), offset + length)
            if low < high:
                result[low - offset : high - offset] = before[low - start : high - start]
        return bytes(result)


class Path:
    """A host's way to one disk, with its latencies, outages and faults."""

    def __init__(self, machine: Machine, disk: SimDisk, plan: Plan) -> None:
        self.machine = machine
        self.disk = disk
        self.plan = plan
        self.world = disk.world
        self.random: Random = self.world.stream(f"path {machine.number} {disk.name}")
        #: true time until which nothing passes
        self.down_until = 0.0
        self._salt = self.random.getrandbits(64)
        self._fault_below = int(plan.io_rate * (1 << 24))
        self._flying: dict[InFlight, None] = {}
        #: what the fabric still has from before the machine was reset, leaders excepted
        self._of_last_boot: list[InFlight] = []
        machine.paths[disk.name] = self

    # --- the good days ---

    def submit(self, task: Task, step: Read | Write) -> None:
        """Begin an I/O for `task`, which waits for it."""
        world = self.world
        io = InFlight(step, self, task)
        task.waiting = io
        task.process.in_flight += 1
        world.judge.asked(task, step)
        if type(step) is Write:
            world.note(self.machine.number, task.name, "w", step.offset, step)
        if step.offset + _length(step) > len(self.disk.bytes):
            self._fail_short(io)
            return
        # What befalls an I/O depends on when it is asked for and on nothing else: where faults are left out of a
        # run, and what they changed has died away, the same I/Os meet the same fates again.
        moment = int(world.now * MOMENTS)
        draw = (moment * 0x9E3779B97F4A7C15 + step.offset * 0xC2B2AE3D27D4EB4F + self._salt) & _64_BITS
        draw = (draw ^ (draw >> 31)) * 0xBF58476D1CE4E5B9 & _64_BITS
        draw ^= draw >> 29
        if draw >> 40 < self._fault_below:
            fault = self.plan.io_fault(self.machine.number, moment)
            if fault is not None:
                world.note(self.machine.number, task.name, "!", step.offset, f"{fault[0]} {_words(step)}")
                _FAULTS[fault[0]](self, io, fault[1])
                return
        world.after(LATENCY_S[0] + LATENCY_S[1] * 2 * (draw & 0xFFFFFF) / (1 << 24), self._pass, io)

    def _latency(self) -> float:
        return LATENCY_S[0] + LATENCY_S[1] * 2 * self.random.random()

    def _pass(self, io: InFlight) -> None:
        """The I/O reaches the disk, and its answer reaches the host."""
        if io.ended:
            return
        if self.world.now < self.down_until:
            self._stuck(io)
        elif io.task.alive or not self._orphaned(io):
            self._land(io)
            self._answer(io)

    def _orphaned(self, io: InFlight) -> bool:
        """Who issued it is gone; whether the fabric now takes its time with it."""
        if io in self._flying or not self.plan.faults.late or self.plan.quiet or self.random.random() > 0.2:
            return False
        self._flying[io] = None
        longest = self.plan.faults.late_s if io.boots == self.machine.boots or _is_leader(io) else AFTER_RESET_S
        self.world.after(between(self.random, 0.01, longest), self._pass, io)
        return True

    def _land(self, io: InFlight) -> None:
        """It happens: a write changes the disk, a read takes its bytes."""
        if io.ended:
            return
        step = io.step
        if type(step) is Write:
            self._put(io, step.offset, step.data)
        else:
            self._take(io, step.offset)

    def _put(self, io: InFlight, offset: int, data: bytes) -> None:
        astray = not io.step.offset <= offset < io.step.offset + _length(io.step)
        late = io.late or astray
        if astray:
            self.world.judge.astray(io.task, offset, data)
        self.world.note(self.machine.number, io.task.name, "l" if late else "W", offset, io.step)
        before = bytes(self.disk.view[offset : offset + len(data)])
        self.disk.put(offset, data)
        self.world.judge.landed(io.task, offset, data, before, late)

    def _take(self, io: InFlight, offset: int) -> None:
        length = _length(io.step)
        io.value = self.disk.view[offset : offset + length]
        # a view is good for one who looks at it now; others get the bytes as they were
        if io.overdue or io.task.process.paused or io.task.waiting is not io:
            io.value = memoryview(bytes(io.value))

    def _answer(self, io: InFlight) -> None:
        if io.ended:
            return
        io.ended = True
        self._flying.pop(io, None)
        task = io.task
        task.process.io_ended()
        if task.waiting is io:
            if type(io.step) is Read and not io.error:
                self.world.note(self.machine.number, task.name, "R", io.step.offset, io.step)
            elif io.error:
                self.world.note(self.machine.number, task.name, "e", io.step.offset, io.step)
            task.io_ended(io)

    # --- the bad ones ---

    def watch(self, io: InFlight, timeout: float) -> None:
        """Tell the task of `io` if it has not ended within `timeout` seconds of its host."""
        clock = self.machine.clock
        io.due = clock.read(self.world.now) + timeout
        self._flying[io] = None
        self.world.after(clock.true_delay(timeout), io.task.io_overdue, io)

    def go_down(self, until: float) -> None:
        """Nothing passes until a true time."""
        self.down_until = max(self.down_until, until)
        self.world.note(self.machine.number, "path", "!", 0, f"outage until {self.down_until:.3f}")

    def machine_reset(self) -> None:
        """The machine is gone. What it had sent may be in the fabric, or lost with it.

        A leader may land at any time; the writes that the next instance's safety rests on are delivered or dropped
        within `AFTER_RESET_S`, and at the latest when the machine is back (docs/safety.md, A5).
        """
        flying, self._flying = self._flying, {}
        for io in flying:
            if self.random.random() < 0.3:
                io.ended = True  # never reached the wire
            elif not _is_leader(io):
                self._of_last_boot.append(io)
                self.world.after(self.random.uniform(0.01, AFTER_RESET_S), self._end_of_last_boot, io)

    def machine_booted(self) -> None:
        late, self._of_last_boot = self._of_last_boot, []
        for io in late:
            self._end_of_last_boot(io)

    def _end_of_last_boot(self, io: InFlight) -> None:
        if not io.ended:
            if self.random.random() < 0.5:
                self._land(io)
            io.ended = True

    def _stuck(self, io: InFlight) -> None:
        """The path is down. When it is back the I/O goes through, or has been given up by the path."""
        if io.ended:
            return
        if not io.overdue:
            self.watch(io, io.step.timeout)
        back = self.down_until + self._latency() + between(self.random, 0.001, 10.0)
        self.world.at(back, self._fail if self.random.random() < 0.3 else self._pass, io)

    def _fail(self, io: InFlight) -> None:
        step = io.step
        io.error = DiskError(operation=_operation(step), disk=step.disk, offset=step.offset, length=_length(step))
        self._answer(io)

    def _fail_short(self, io: InFlight) -> None:
        step = io.step
        moved = max(0, len(self.disk.bytes) - step.offset)
        io.error = ShortIO(
            operation=_operation(step), disk=step.disk, offset=step.offset, length=_length(step), moved=moved
        )
        self.world.after(self._latency(), self._answer, io)

    def _slow(self, io: InFlight, random: Random) -> None:
        self.watch(io, io.step.timeout)
        self.world.after(between(random, 0.002, io.step.timeout * 0.98), self._pass, io)

    def _hung(self, io: InFlight, random: Random) -> None:
        self.watch(io, io.step.timeout)
        self.world.after(io.step.timeout + between(random, 0.01, self.plan.faults.late_s), self._fail, io)

    def _error(self, io: InFlight, random: Random) -> None:
        self.watch(io, io.step.timeout)
        if random.random() < 0.4 and type(io.step) is Write:
            self.world.after(self._latency(), self._land, io)
        self.world.after(between(random, 0.003, io.step.timeout), self._fail, io)

    def _late(self, io: InFlight, random: Random) -> None:
        self.watch(io, io.step.timeout)
        self.world.after(io.step.timeout + between(random, 0.01, self.plan.faults.late_s), self._pass, io)

    def _unacked(self, io: InFlight, random: Random) -> None:
        if type(io.step) is Read:
            self._late(io, random)
            return
        self.watch(io, io.step.timeout)
        self.world.after(self._latency(), self._land, io)
        self.world.after(between(random, 0.1, self.plan.faults.late_s), self._answer, io)

    def _torn(self, io: InFlight, random: Random) -> None:
        step = io.step
        sectors = _length(step) // self.disk.sector_size
        if type(step) is not Write or sectors < 2:
            self._late(io, random)
            return
        self.watch(io, step.timeout)
        part = random.randrange(1, sectors) * self.disk.sector_size
        low, high = (0, part) if random.random() < 0.7 else (part, _length(step))
        self._put(io, step.offset + low, step.data[low:high])
        if random.random() < 0.5:
            self.world.after(between(random, 0.003, step.timeout), self._fail, io)
        else:
            self.world.after(between(random, 0.003, self.plan.faults.late_s), self._pass, io)

    def _split(self, io: InFlight, random: Random) -> None:
        """One part of the read is of now, the other of when it is answered."""
        self._two_looks(io, random, random.random() < 0.5)

    def _early(self, io: InFlight, random: Random) -> None:
        """All of the read is of now; the answer takes its time."""
        self._two_looks(io, random, None)

    def _two_looks(self, io: InFlight, random: Random, first_part_now: bool | None) -> None:
        step = io.step
        if type(step) is not Read:
            self._slow(io, random)
            return
        self.watch(io, step.timeout)
        length = step.length
        now = bytes(self.disk.view[step.offset : step.offset + length])
        cut = random.randrange(length // self.disk.sector_size + 1) * self.disk.sector_size

        def answer(io: InFlight) -> None:
            if not io.ended:
                then = bytes(self.disk.view[step.offset : step.offset + length])
                if first_part_now is None:
                    seen = now
                else:
                    seen = now[:cut] + then[cut:] if first_part_now else then[:cut] + now[cut:]
                io.value = memoryview(seen)
                self._answer(io)

        self.world.after(between(random, 0.001, step.timeout * 0.98), answer, io)

    def _misdirected(self, io: InFlight, random: Random) -> None:
        """It hits the neighbouring sector, or the same one of another area, and says it went well.

        Never a block of the same host in another lease: no block says to which lease it belongs (docs/safety.md).
        """
        step = io.step
        length, size = _length(step), len(self.disk.bytes)
        shifts = [-self.disk.sector_size, self.disk.sector_size]
        if type(step) is Read or step.offset % MIB < 2 * self.disk.sector_size:
            shifts += [-MIB, MIB]
        fitting = [shift for shift in shifts if step.offset + shift >= 0 and step.offset + shift + length <= size]
        if not fitting:
            self._slow(io, random)
            return
        offset = step.offset + random.choice(fitting)

        def hit(io: InFlight) -> None:
            if type(step) is Write:
                self._put(io, offset, step.data)
            else:
                self._take(io, offset)
                self.world.judge.misled(io.task)
            self._answer(io)

        self.world.after(self._latency(), hit, io)

    def _stale(self, io: InFlight, random: Random) -> None:
        step = io.step
        if type(step) is not Read:
            self._slow(io, random)
            return
        age = between(random, 0.001, self.plan.faults.stale_s)

        def answer(io: InFlight) -> None:
            io.value = memoryview(self.disk.past(step.offset, step.length, self.world.now - age))
            self.world.judge.misled(io.task)
            self._answer(io)

        self.world.after(self._latency(), answer, io)


_FAULTS = {
    "slow": Path._slow,
    "hung": Path._hung,
    "error": Path._error,
    "late": Path._late,
    "unacked": Path._unacked,
    "torn": Path._torn,
    "split": Path._split,
    "early": Path._early,
    "misdirected": Path._misdirected,
    "stale": Path._stale,
}


def _is_leader(io: InFlight) -> bool:
    """Whether it goes to the first sector of a lease's area; the lockspace's area is the disk's first."""
    return io.step.offset > 0 and io.step.offset % MIB == 0


def _length(step: Read | Write) -> int:
    return len(step.data) if isinstance(step, Write) else step.length


def _operation(step: Read | Write) -> str:
    return "write" if isinstance(step, Write) else "read"


def _words(step: Read | Write) -> str:
    return f"{_operation(step)} of {_length(step)}"
