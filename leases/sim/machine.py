"""Hosts: a machine with a clock and a watchdog, its processes, and the tasks that drive protocols in them.

A task is a generator of steps (paxos/steps.py) carried out in virtual time. What can happen to it is what
happens to real programs:

    paused   the process stops for any time; what it waited for is delivered, late, when it runs on
    killed   no further step is taken; I/O in flight goes on, and the process has not gone before that ended
    reset    the whole machine at once, by its watchdog or by somebody's hand; writes on their way to the
             disk may still land, nobody waits for them any more
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from leases.sim.clock import HostClock
from leases.sim.world import World
from paxos.errors import IOTimeout, LeaseholdError
from paxos.steps import Now, Read, Reap, Sleep, Write

if TYPE_CHECKING:
    from leases.sim.disk import InFlight, Path

#: what a handler of a step returns when the task must wait: `Task.resume` is called later
WAIT: Final = object()
Handler = Callable[["Task", Any], Any]


@dataclass(frozen=True, slots=True)
class Until:
    """A step of the simulator's own: sleep until a true time, whatever the host's clock says."""

    true_time: float


class Task:
    """One protocol in flight. `on_end(task)` is called once `result` or `error` stands."""

    __slots__ = (
        "_generator",
        "clock",
        "error",
        "machine",
        "name",
        "on_end",
        "process",
        "result",
        "waiting",
        "world",
    )

    def __init__(
        self,
        process: Process,
        name: str,
        generator: Generator[Any, Any, Any],
        on_end: Callable[[Task], None] | None = None,
    ) -> None:
        self.process = process
        self.machine = process.machine
        self.world = process.machine.world
        self.clock = process.machine.clock
        self.name = f"{process.name}.{name}"
        self.on_end = on_end
        self.result: Any = None
        self.error: LeaseholdError | None = None
        #: what the task waits for: an I/O, a sleep's wake time, or a handler's own object
        self.waiting: Any = None
        self._generator: Any = generator

    @property
    def alive(self) -> bool:
        return self._generator is not None

    def resume(self, value: Any = None, error: BaseException | None = None) -> None:
        """Give the awaited result, or throw the failure, and carry out steps until the task waits again."""
        generator = self._generator
        if generator is None:
            return
        self.waiting = None
        while True:
            try:
                step = generator.send(value) if error is None else generator.throw(error)
            except StopIteration as stop:
                self._end(stop.value, None)
                return
            except LeaseholdError as failure:
                self._end(None, failure)
                return
            if self._generator is None:  # killed by what it did itself
                return
            error = None
            kind = type(step)
            if kind is Now:
                value = self.clock.read(self.world.now)
            elif kind is Read or kind is Write:
                self.machine.paths[step.disk].submit(self, step)
                return
            elif kind is Sleep:
                self._sleep(step.seconds)
                return
            elif kind is Until:
                self.waiting = wait = ("until", 0.0)
                self.world.at(step.true_time, self._awake, wait)
                return
            elif kind is Reap:
                io: InFlight = step.pending
                if not io.ended:
                    io.reap(self, step.timeout)
                    return
                value, error = io.value, io.error
            else:
                value = self.process.handlers[kind](self, step)
                if value is WAIT or self._generator is None:
                    return

    def wake(self) -> None:
        """End its sleep, if it sleeps."""
        if type(self.waiting) is tuple and not self.process.paused:
            self.waiting = None
            self.world.after(0.0, _start, self)

    def stop(self) -> None:
        """Take no further step; the generator is closed."""
        generator, self._generator = self._generator, None
        self.waiting = None
        if generator is not None and not generator.gi_running:
            generator.close()

    def _end(self, result: Any, error: LeaseholdError | None) -> None:
        self._generator = None
        self.result, self.error = result, error
        self.process.tasks.pop(self, None)
        if self.on_end is not None:
            self.on_end(self)

    def _sleep(self, seconds: float) -> None:
        wake = self.clock.read(self.world.now) + max(seconds, 0.0)
        self.waiting = wait = ("sleep", wake)
        self.world.after(self.clock.true_delay(max(seconds, 0.0)), self._awake, wait)

    def _awake(self, wait: tuple[str, float]) -> None:
        if self.waiting is not wait:
            return
        if self.process.paused:
            self.process.backlog.append((self._awake, wait))
            return
        missing = wait[1] - self.clock.read(self.world.now) if wait[1] else 0.0
        if missing > 0:  # the clock stood still meanwhile
            self.world.after(self.clock.true_delay(missing), self._awake, wait)
            return
        self.resume()

    def io_ended(self, io: InFlight) -> None:
        """An I/O this task waits for has ended."""
        if self.process.paused:
            self.process.backlog.append((self.io_ended, io))
            return
        if self.waiting is io:
            self.resume(io.value, io.error)

    def io_overdue(self, io: InFlight) -> None:
        """An I/O this task waits for is not done in time: it is in flight until reaped."""
        if self.process.paused:
            self.process.backlog.append((self.io_overdue, io))
            return
        if self.waiting is io and not io.ended:
            missing = io.due - self.clock.read(self.world.now)
            if missing > 0:
                self.world.after(self.clock.true_delay(missing), self.io_overdue, io)
                return
            io.overdue = True
            step = io.step
            self.world.note(self.machine.number, self.name, "t", step.offset, step)
            length = len(step.data) if isinstance(step, Write) else step.length
            self.resume(
                error=IOTimeout(
                    operation="write" if isinstance(step, Write) else "read",
                    disk=step.disk,
                    offset=step.offset,
                    length=length,
                    timeout=step.timeout,
                    pending=io,
                )
            )


class Process:
    """Tasks that live and die together. `handlers` carry out steps of kinds of its own."""

    def __init__(self, machine: Machine, name: str, handlers: dict[type, Handler] | None = None) -> None:
        self.machine = machine
        self.name = name
        self.handlers = handlers or {}
        self.tasks: dict[Task, None] = {}
        self.alive = True
        #: the host id it joins with; 0: none
        self.host_id = 0
        #: whether it follows the reference's rules
        self.reference = False
        #: how many reasons there are for it to stand still
        self.paused = 0
        self.backlog: list[tuple[Callable[[Any], None], Any]] = []
        self.in_flight = 0
        #: called once when it has gone: after it ended, or was killed, and its last I/O ended
        self.on_gone: Callable[[Process], None] | None = None
        machine.processes[self] = None

    def spawn(
        self, name: str, generator: Generator[Any, Any, Any], on_end: Callable[[Task], None] | None = None
    ) -> Task:
        """Start a protocol now."""
        assert self.alive
        task = Task(self, name, generator, on_end)
        self.tasks[task] = None
        self.machine.world.after(0.0, _start, task)
        return task

    def pause(self) -> None:
        self.paused += 1

    def run_on(self) -> None:
        """Take back one pause. What was missed meanwhile arrives now, in the order in which it happened."""
        self.paused -= 1
        if self.paused == 0 and self.alive:
            backlog, self.backlog = self.backlog, []
            for call, argument in backlog:
                self.machine.world.after(0.0, call, argument)

    def kill(self) -> None:
        """No further step is taken. The process has gone when its I/O has ended."""
        if not self.alive:
            return
        self.alive = False
        tasks, self.tasks, self.backlog = list(self.tasks), {}, []
        for task in tasks:
            task.stop()
        self.machine.world.note(self.machine.number, self.name, "X")
        self.machine.world.judge.process_ended(self)
        self._leave_if_idle()

    def io_ended(self) -> None:
        self.in_flight -= 1
        if not self.alive:
            self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self.in_flight == 0 and self in self.machine.processes:
            del self.machine.processes[self]
            if self.on_gone is not None:
                self.on_gone(self)


def _start(task: Task) -> None:
    if task.process.paused:
        task.process.backlog.append((_start, task))
    else:
        task.resume()


class Watchdog:
    """Resets the machine if its lockspace is not renewed: the hardware, and who feeds it.

    It is told a time of the host's clock, `expire`. Until `margin` seconds before that the hardware is fed,
    without
    a pause, so as late as the contract allows; the hardware fires `fire` true seconds after its last feeding,
    or
    up to `early` seconds sooner. A suspended machine feeds nothing, while the hardware counts on.
    """

    def __init__(self, machine: Machine, fire: float, margin: float, draw_early: Callable[[], float]) -> None:
        self.machine = machine
        self.fire = fire
        self.margin = margin
        self.armed = False
        #: the host's clock stood still since it was last told a time: the machine is reset later than others can know
        self.misled_by_clock = False
        self._draw_early = draw_early
        self._early = 0.0
        #: true time of the last feeding as far as is known now; it may lie in the future
        self._fed_until = -fire
        self._expire = 0.0
        self._watching = False

    @property
    def deadline(self) -> float:
        """True time by which the machine has been reset, if it is never fed again."""
        return min(self.machine.world.now, self._fed_until) + self.fire

    def renew(self, expire: float) -> None:
        """Arm it, or move its expiry to a time of the host's clock. What has expired stays so."""
        world = self.machine.world
        if self.armed and world.now > self._fed_until:
            return
        world.note(self.machine.number, "watchdog", "F", 0, f"until {expire:.3f}")
        self.armed = True
        self.misled_by_clock = False
        self._expire = expire
        self._early = self._draw_early()
        self._feed_on()
        if not self._watching:
            self._watching = True
            world.at(self._fires_at, self._check, self.machine.boots)

    def disarm(self) -> None:
        self._fed_until = min(self._fed_until, self.machine.world.now)
        self.armed = False

    def stand_still(self) -> None:
        """The machine is suspended, and nothing feeds."""
        self._fed_until = min(self._fed_until, self.machine.world.now)
        if self.armed:
            self.machine.world.at(self._fires_at, self._check, self.machine.boots)

    def go_on(self) -> None:
        if self.armed:
            self._feed_on()

    def _feed_on(self) -> None:
        now, clock = self.machine.world.now, self.machine.clock
        last = self._expire - self.margin - clock.read(now)
        if last > 0:
            self._fed_until = now + clock.true_delay(last)

    @property
    def _fires_at(self) -> float:
        return self._fed_until + self.fire - self._early

    def _check(self, boots: int) -> None:
        if boots != self.machine.boots:
            return
        if not self.armed:
            self._watching = False
        elif self.machine.world.now < self._fires_at:
            self.machine.world.at(self._fires_at, self._check, boots)
        else:
            self.machine.reset("watchdog")


class Machine:
    """A host of the cluster. `number` is the machine's, 1 based; which host id it takes is not its affair."""

    def __init__(self, world: World, number: int, *, fire: float, margin: float, rate: float = 1.0) -> None:
        self.world = world
        self.number = number
        self.rate = rate
        self.fire = fire
        self.margin = margin
        self.random: Random = world.stream(f"machine {number}")
        #: true seconds by which a watchdog may fire before its deadline
        self.watchdog_early = 0.0
        self.paths: dict[str, Path] = {}
        self.processes: dict[Process, None] = {}
        self.boots = 0
        self.up = False
        #: called after a reset, and after a boot
        self.on_reset: Callable[[Machine], None] | None = None
        self.on_boot: Callable[[Machine], None] | None = None
        self.clock = HostClock(world.now, 0.0, rate)
        self.watchdog = Watchdog(self, fire, margin, self._draw_early)
        self._suspended = False

    def _draw_early(self) -> float:
        return self.random.random() * self.watchdog_early if self.watchdog_early else 0.0

    def boot(self, _: Any = None) -> None:
        """Come up with a fresh boot-time clock and a watchdog that nobody has armed."""
        assert not self.up
        self.up = True
        self.boots += 1
        self.clock = HostClock(self.world.now, 5.0 + self.random.random() * 20.0, self.rate)
        self.watchdog = Watchdog(self, self.fire, self.margin, self._draw_early)
        self.world.note(self.number, "machine", "^")
        for path in self.paths.values():
            path.machine_booted()
        if self.on_boot is not None:
            self.on_boot(self)

    def reset(self, why: str) -> None:
        """Everything on this machine stops at once. Nobody waits for I/O; what is on its way goes on."""
        if not self.up:
            return
        self.up = False
        self.boots += 1
        self._suspended = False
        self.world.note(self.number, "machine", "#", 0, why)
        processes, self.processes = list(self.processes), {}
        for process in processes:
            process.on_gone = None
            process.kill()
        for path in self.paths.values():
            path.machine_reset()
        if self.on_reset is not None:
            self.on_reset(self)

    def suspend(self, *, clock_still: bool) -> None:
        """Pause the whole machine; its clock runs on, or stands still. The watchdog counts in any case."""
        if self._suspended or not self.up:
            return
        self._suspended = True
        self.world.note(self.number, "machine", "p", 0, "clock stands still" if clock_still else "")
        if clock_still:
            self.clock.stand_still(self.world.now)
            self.watchdog.misled_by_clock = True
        self.watchdog.stand_still()
        for process in self.processes:
            process.pause()

    def wake(self, boots: int) -> None:
        """End a suspension that began in boot `boots`; without effect if a reset came in between."""
        if not self._suspended or boots != self.boots:
            return
        self._suspended = False
        self.clock.run_on(self.world.now)
        self.watchdog.go_on()
        self.world.note(self.number, "machine", "P")
        for process in list(self.processes):
            process.run_on()
