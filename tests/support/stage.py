"""The stage of a story: one disk, machines with clocks of their own, tasks that go on when their machine's clock says.

Time passes only when somebody waits for it, and I/O takes none, unless a rule holds it back: then it times out like
any overdue I/O, and lands when it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from paxos.errors import DiskError, IOTimeout, LeaseholdError, ShortIO
from paxos.steps import Now, Read, Reap, Sleep, Steps, Write
from tests.support.memory import Endless, Landed, MemoryWorld, Running

#: steps that one command may take: more is a protocol that spins without waiting
_MOST_STEPS = 200_000
_INSTANT = 1e-9


class Machine:
    """A host's hardware. Its clock counts seconds since it was switched on, from a number that tells whose it is."""

    def __init__(self, stage: Stage, label: str, first_second: float) -> None:
        self.stage = stage
        self.label = label
        self.first_second = first_second
        #: what its clock shows more than true time
        self.offset = 0.0
        self.on = False
        #: a virtual machine that is suspended: its clock and its watchdog stand still with it
        self.suspended = False
        #: its programs get no time to run, but clock and watchdog go on
        self.stalled = False
        self.switch_on()

    @property
    def clock(self) -> float:
        return self.stage.time + self.offset

    def switch_on(self) -> None:
        self.on, self.suspended, self.stalled = True, False, False
        self.offset = self.first_second - self.stage.time

    def switch_off(self) -> None:
        """Its programs take no further step. What they sent to the disk may still land."""
        self.on = False
        self.stage.tasks = [task for task in self.stage.tasks if task.machine is not self]


@dataclass(frozen=True)
class What:
    """An I/O by the name of what it touches: ("write", "r0", "block 1"); the lockspace's records have area ""."""

    verb: str
    area: str
    record: str

    def __str__(self) -> str:
        return f"{self.verb}s {self.area} {self.record}".replace("  ", " ")


@dataclass
class Rule:
    """What becomes of one I/O, the `nth` that matches: "hold", "fail", or the bytes of an older disk to be served."""

    machine: Machine
    verb: str
    area: str | None
    record: str | None
    nth: int
    fate: str | bytes

    def strikes(self, machine: Machine, what: What) -> bool:
        record = what.record.partition(" ")[0] if self.record and " " not in self.record else what.record
        wanted = (self.machine, self.verb, self.area or what.area, self.record or record)
        if wanted != (machine, what.verb, what.area, record):
            return False
        self.nth -= 1
        return self.nth == 0


class Task(Running):
    """A protocol in flight on a machine. `by_hand`: it takes no step unless it is told to."""

    def __init__(self, machine: Machine, protocol: Steps[Any], on_end: Callable[[Task], None]) -> None:
        self.machine = machine
        self.stage = machine.stage
        self.on_end = on_end
        self.by_hand = False
        #: hardware, which goes on while the programs are stalled
        self.hardware = False
        #: when what it waits for ends, by its machine's clock; None while it does not wait
        self.wakes_at: float | None = None
        self.waits_for: Landed | None = None
        self.wrote = False
        super().__init__(machine.stage, protocol)

    @property
    def due(self) -> float | None:
        """The true time of its next step by itself; None: none."""
        if self.step is None or self.machine.suspended or (self.machine.stalled and not self.hardware):
            return None
        if self.wakes_at is None or (self.waits_for is not None and self.waits_for.landed):
            return self.stage.time
        return max(self.stage.time, self.wakes_at - self.machine.offset)

    def advance(self) -> None:
        """Carry out the step it asks for, or begin to wait, or end waiting."""
        if self.wakes_at is not None:
            self._wake()
            return
        match self.step:
            case Now():
                self._send(self.machine.clock)
            case Sleep(seconds):
                self.wakes_at = self.machine.clock + seconds
            case Reap(pending, timeout):
                assert isinstance(pending, Landed)
                self._wait_for(pending, timeout)
            case Read() | Write():
                self._transfer(self.step)

    def _wait_for(self, pending: Landed, timeout: float) -> None:
        self.wakes_at = self.machine.clock + timeout
        self.waits_for = pending

    def _wake(self) -> None:
        pending, step = self.waits_for, self.step
        assert self.wakes_at is not None
        if pending is None or pending.landed:
            self.wakes_at = self.waits_for = None
            self._send(pending.result if pending else None)
        else:
            self.wakes_at = self.waits_for = None
            overdue = pending.step
            self._throw(IOTimeout(**_facts(overdue), timeout=step.timeout, pending=pending))

    def _transfer(self, step: Read | Write) -> None:
        self.wrote |= isinstance(step, Write)
        what = self.stage.what(step)
        fate = self.stage.fate_of(self.machine, what)
        self.stage.note(self.machine, what, fate)
        short = step.offset + _length(step) - len(self.stage.disks[step.disk])
        if fate == "hold":
            pending = Landed(step, self.stage)
            self.stage.late.append(pending)
            self._wait_for(pending, step.timeout)
        elif fate == "fail":
            self._throw(DiskError(**_facts(step)))
        elif short > 0:
            self._throw(ShortIO(moved=max(0, _length(step) - short), **_facts(step)))
        elif isinstance(step, Write):
            self.stage.store(step)
            self._send(None)
        elif isinstance(fate, bytes):
            self._send(memoryview(fate)[step.offset : step.offset + step.length])
        else:
            self._send(self.stage.fetch(step))

    def _send(self, result: Any) -> None:
        self._resume(lambda: self.protocol.send(result))

    def _throw(self, failure: LeaseholdError) -> None:
        self._resume(lambda: self.protocol.throw(failure))

    def _resume(self, how: Callable[[], Any]) -> None:
        super()._resume(how)
        if self.step is None:
            if self.failure is not None and not isinstance(self.failure, LeaseholdError):
                raise self.failure
            self.on_end(self)


def _length(step: Read | Write) -> int:
    return step.length if isinstance(step, Read) else len(step.data)


def _facts(step: Read | Write) -> dict[str, Any]:
    return {
        "operation": type(step).__name__.lower(),
        "length": _length(step),
        "disk": step.disk,
        "offset": step.offset,
    }


@dataclass
class Seen:
    """The I/O since somebody asked, as text."""

    lines: list[str] = field(default_factory=list)


class Stage(MemoryWorld):
    """Everything that is there, and the true time: seconds since the story began."""

    def __init__(self, size: int, what: Callable[[Read | Write], What]) -> None:
        super().__init__(d=size)
        self.time = 0.0
        self.what = what
        self.machines: list[Machine] = []
        self.tasks: list[Task] = []
        self.rules: list[Rule] = []
        #: machines whose path to the disk is cut: every I/O fails
        self.cut: set[Machine] = set()
        self.seen: list[tuple[Machine, str]] = []

    def machine(self, label: str, first_second: float) -> Machine:
        machine = Machine(self, label, first_second)
        self.machines.append(machine)
        return machine

    def fate_of(self, machine: Machine, what: What) -> str | bytes | None:
        if machine in self.cut:
            return "fail"
        struck = [rule for rule in self.rules if rule.strikes(machine, what)]
        for rule in struck:
            self.rules.remove(rule)
        return struck[0].fate if struck else None

    def note(self, machine: Machine, what: What, fate: str | bytes | None) -> None:
        marks = {"hold": ": held back", "fail": ": fails"}
        mark = ": served by an old copy" if isinstance(fate, bytes) else marks.get(fate or "", "")
        self.seen.append((machine, f"{machine.label} {what}{mark}"))

    # --- time ---

    def begin(self, machine: Machine, protocol: Steps[Any], on_end: Callable[[Task], None]) -> Task:
        """Start a task; its first I/O has not happened yet."""
        task = Task(machine, protocol, on_end)
        if task.step is not None:
            self.tasks.append(task)
        return task

    def pass_until(self, when: float) -> None:
        """Let time pass, and everybody do meanwhile what is due; also what is due right now."""
        for task, due in self._due():
            if due > when:
                break
            self._set(due)
            task.advance()
        self._set(when)

    def finish(self, task: Task, within: float) -> None:
        """Let time pass until a task has ended. Raises Endless when that takes longer than `within` seconds."""
        deadline = self.time + within
        task.by_hand = False
        for next_one, due in self._due():
            if task.step is None:
                return
            if due > deadline:
                break
            self._set(due)
            next_one.advance()
        if task.step is not None:
            self._set(max(self.time, deadline))
            task.protocol.close()
            task.step = None
            raise Endless

    def _due(self) -> Iterator[tuple[Task, float]]:
        """The task that is due next, and when: again and again, until there is none."""
        for _ in range(_MOST_STEPS):
            self.tasks = [task for task in self.tasks if task.step is not None]
            dues = [(due, n) for n, task in enumerate(self.tasks) if not task.by_hand and (due := task.due) is not None]
            if not dues:
                return
            due, number = min(dues)
            yield self.tasks[number], due
        raise AssertionError("somebody spins without waiting")

    def _set(self, when: float) -> None:
        passed = when - self.time
        if passed <= _INSTANT:
            return
        for machine in self.machines:
            if machine.suspended:
                machine.offset -= passed
        self.time = when

    def by_hand(self, task: Task, count: int) -> None:
        """Let a task do its next `count` I/Os, and time pass where it waits in between."""
        for _ in range(count):
            self._up_to_io(task)
            if task.step is None:
                return
            task.advance()
        while isinstance(task.step, Now):
            task.advance()

    def _up_to_io(self, task: Task) -> None:
        while task.step is not None and (task.wakes_at is not None or not isinstance(task.step, Read | Write)):
            if task.wakes_at is not None:
                due = task.due
                assert due is not None, "it waits on a machine that stands still"
                self.pass_until(due)
            if task.step is not None:
                task.advance()
