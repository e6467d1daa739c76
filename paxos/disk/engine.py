"""The disk engine: drives protocols (generators of steps) against real disks, each step under its timeout.

An engine is one I/O context. One thread at a time uses it, and that thread does everything: it advances the
generators, starts their I/O, and waits for the first of an ended transfer, a deadline and an abort. No step
is handed to another thread. Whoever must not wait for others (each renewal) has an engine of its own.

    ready --advance--> Read, Write ----------------------------------> on its way --ended--> ready
                   --> Sleep, Reap; device not open, or without room --> waiting --deadline--> ready

An I/O that is overdue is first cancelled (which disks refuse) and then parked, see channel.py: the protocol
goes on with an IOTimeout, other protocols and other disks don't notice.

An engine does not survive a fork: the child must make its own.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import heapify, heappop, heappush
from types import TracebackType
from typing import Any, TypeVar

from paxos.disk.abort import AbortSignal
from paxos.disk.channel import Channel, Overdue, Transfer, best_mechanism, facts_of, failure_of, sweep
from paxos.disk.device import Device, Devices, Opening, open_timed_out
from paxos.disk.mechanism import Mechanism
from paxos.disk.task import Task
from paxos.errors import Aborted, CannotOpen, DiskError, InvalidUse, NotSent
from paxos.steps import Now, Pending, Read, Reap, Sleep, Steps, Write

T = TypeVar("T")

#: transfers in flight at once, parked ones included
CAPACITY = 256
#: how often an overdue I/O that belongs to another engine is looked at (seconds)
_LOOK_INTERVAL = 0.01
#: deadlines that were not needed are thrown away when there are this many more of them than tasks
_STALE_DEADLINES = 256
#: errors after which a device's descriptor is of no use any more; the next step opens its path again
_GONE = (errno.ENODEV, errno.ENXIO, errno.ESTALE)


def boot_time() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Engine:
    """Drives protocols in the calling thread.

    `devices` may be shared with other engines; without it the engine has a table of its own. `clock` answers
    Now and measures deadlines, in seconds. `mechanism` makes the way to do I/O for a number of transfers at
    once.
    """

    def __init__(
        self,
        devices: Devices | None = None,
        clock: Callable[[], float] = boot_time,
        *,
        capacity: int = CAPACITY,
        mechanism: Callable[[int], Mechanism] = best_mechanism,
    ) -> None:
        sweep()
        self.devices = Devices() if devices is None else devices
        self._clock = clock
        self._capacity = capacity
        self._new_mechanism = mechanism
        self._channel = Channel(mechanism(capacity))
        self._running = False
        self._closed = False
        #: what was in flight when a run was broken off (by Ctrl-C, say), the last time that happened
        self.abandoned: list[Overdue] = []
        self._forget_tasks()

    def _forget_tasks(self) -> None:
        self._tasks: set[Task] = set()
        self._ready: deque[Task] = deque()
        self._deadlines: list[tuple[float, int, Task]] = []
        self._tickets = 0
        # by disk, who waits for it to be opened or for room on it, in order; with the ticket of that wait
        self._held_up: dict[str, deque[tuple[Task, int]]] = {}
        self._openings: dict[str, Opening] = {}
        self._reaping: list[tuple[Task, Overdue]] = []
        self._abort: AbortSignal | None = None

    # ------------------------------------------------------------------------------------------ for its users

    def run(self, steps: Steps[T], abort: AbortSignal | None = None) -> T:
        """Drive one protocol to its end; its result, or the exception that it ended with.

        A view that it returns is valid until the engine runs again. See AbortSignal for what `abort` does.
        """
        task = Task(steps)
        self._run([task], abort)
        if task.failure is not None:
            raise task.failure
        result: T = task.result
        return result

    def run_all(self, protocols: Sequence[Steps[T]], abort: AbortSignal | None = None) -> list[T | BaseException]:
        """Drive many protocols at once; in their order, the result or the exception that each ended with."""
        tasks = [Task(steps) for steps in protocols]
        self._run(tasks, abort)
        return [task.result if task.failure is None else task.failure for task in tasks]

    def close(self) -> None:
        """Never waits for a disk: with I/O in flight, context and buffers are kept aside until it is back."""
        if self._running:
            raise InvalidUse(reason="an engine was closed while it was running")
        if not self._closed:
            self._closed = True
            self._channel.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- the loop

    def _run(self, tasks: list[Task], abort: AbortSignal | None) -> None:
        if self._running or self._closed:
            raise InvalidUse(reason="an engine is used by one thread at a time, until it is closed")
        self._running = True
        channel = self._channel
        self._abort = abort
        if abort is not None:
            abort.attach(channel.wake)
        try:
            with channel.lock:
                self._tasks.update(tasks)
                self._ready.extend(tasks)
                self._drive()
        except BaseException:
            self._start_afresh()
            raise
        finally:
            if abort is not None:
                abort.detach(channel.wake)
            self._running = False

    def _start_afresh(self) -> None:
        """Broken off in the middle (Ctrl-C, say): what is in flight is uncertain, so nothing of it is used again."""
        tasks = self._tasks
        self.abandoned = [self._channel.park(task.transfer) for task in tasks if task.transfer is not None]
        self._channel.close()
        self._forget_tasks()
        for task in tasks:
            with suppress(Exception):
                task.steps.close()
        self._channel = Channel(self._new_mechanism(self._capacity))

    def _drive(self) -> None:
        ready = self._ready
        channel = self._channel
        while True:
            while ready:
                self._advance(ready.popleft())
            for transfer, failure in channel.submit():
                self._complete(transfer, failure)
            if ready:
                continue
            if not self._tasks:
                self._held_up.clear()
                self._openings.clear()
                return
            self._wait()

    def _wait(self) -> None:
        """Until something ends, a deadline passes or somebody wakes us; then see who can go on."""
        deadlines = self._deadlines
        while deadlines[0][1] != deadlines[0][2].ticket:
            heappop(deadlines)
        remaining = deadlines[0][0] - self._clock()
        if remaining > 0:
            if any(overdue.channel is not self._channel for _, overdue in self._reaping):
                remaining = min(remaining, _LOOK_INTERVAL)
            for transfer, moved in self._channel.collect(remaining):
                self._complete(transfer, moved)
        else:  # what ended in time but was not seen in time has not timed out
            for transfer, moved in self._channel.collect(0.0):
                self._complete(transfer, moved)
        if self._reaping:
            self._reaping = [wait for wait in self._reaping if wait[0].ticket and not self._reap(*wait)]
        for disk in tuple(self._held_up):
            self._let_in(disk)
        if remaining <= 0:
            self._expire()
        if self._abort is not None and self._abort.reason is not None:
            for task in self._tasks:
                if task.ticket:
                    self._abort_waiting(task, self._abort.reason)

    def _expire(self) -> None:
        deadlines = self._deadlines
        now = self._clock()
        while deadlines and deadlines[0][0] <= now:
            _, ticket, task = heappop(deadlines)
            if ticket == task.ticket:
                self._time_out(task)

    # ----------------------------------------------------------------------------------------------- one task

    def _advance(self, task: Task) -> None:
        """Let the generator go on until it has to wait, or is at its end."""
        if task.step is None and self._abort is not None and self._abort.reason is not None:
            task.aborted = True
            task.error = Aborted(reason=self._abort.reason)
        value, error = task.value, task.error
        task.value = task.error = None
        while True:
            try:
                step = task.steps.send(value) if error is None else task.steps.throw(error)
            except StopIteration as stop:
                task.result = stop.value
                self._finish(task)
                return
            except Exception as failure:
                task.failure = failure
                self._finish(task)
                return
            if task.buffer is not None:
                task.buffer.give_back()
                task.buffer = None
            if type(step) is not Now:
                break
            value, error = self._clock(), None
        task.step = step
        self._begin(task, step)

    def _finish(self, task: Task) -> None:
        if task.buffer is not None:
            task.buffer.give_back()
            task.buffer = None
        self._tasks.discard(task)

    def _begin(self, task: Task, step: Any) -> None:
        """Start a step that takes time."""
        kind = type(step)
        if kind is Read or kind is Write:
            self._await(task, step.timeout)
            self._enter(task, step)
        elif kind is Sleep or kind is Reap:
            self._await(task, step.seconds if kind is Sleep else step.timeout)
            if kind is Reap:
                self._begin_reap(task, step.pending)
            if task.ticket and self._abort is not None and self._abort.reason is not None:
                self._abort_waiting(task, self._abort.reason)
        else:
            self._go_on(task, error=InvalidUse(reason=f"{step!r} is no step"))

    def _await(self, task: Task, seconds: float) -> None:
        """The task waits from now on, for `seconds` at most."""
        self._tickets += 1
        task.ticket = self._tickets
        deadlines = self._deadlines
        if len(deadlines) > len(self._tasks) + _STALE_DEADLINES:
            deadlines[:] = [entry for entry in deadlines if entry[1] == entry[2].ticket]
            heapify(deadlines)
        heappush(deadlines, (self._clock() + seconds, task.ticket, task))

    def _go_on(self, task: Task, value: Any = None, error: BaseException | None = None) -> None:
        """The task's wait is over."""
        task.ticket = 0
        task.value, task.error = value, error
        self._ready.append(task)

    def _abort_waiting(self, task: Task, reason: str) -> None:
        """Once per task: after that it tidies up, and may sleep for it."""
        if not task.aborted and type(task.step) in (Sleep, Reap):
            task.aborted = True
            self._go_on(task, error=Aborted(reason=reason))

    # ------------------------------------------------------------------------------------- reads and writes

    def _enter(self, task: Task, step: Read | Write) -> None:
        """Put a read or write on its way, or in line if its device is not open or has no room."""
        disk = step.disk
        device = self.devices.get(disk)
        queue = self._held_up.get(disk)
        if queue is None:
            if device is not None and self._start(task, step, device):
                return
            self._held_up[disk] = deque([(task, task.ticket)])
        else:
            queue.append((task, task.ticket))
        if queue is not None or device is None:
            self._let_in(disk)

    def _let_in(self, disk: str) -> None:
        """Start those in line for a disk, as far as it lets them in by now."""
        queue = self._held_up[disk]
        device = self.devices.get(disk)
        failure = self._open(disk) if device is None else None
        if device is None and failure is None:
            return
        while queue:
            task, ticket = queue[0]
            if ticket == task.ticket:  # else it has timed out
                if failure is not None:
                    self._go_on(task, error=CannotOpen(**failure.facts))
                elif not self._start(task, task.step, device):
                    return
            queue.popleft()
        del self._held_up[disk]

    def _open(self, disk: str) -> CannotOpen | None:
        """Have a disk opened. Why it can't be, or None as long as that is not known."""
        opening = self._openings.get(disk)
        if opening is None or (opening.done and opening.failure is None):  # never begun, or forgotten since
            self._openings[disk] = self.devices.start_opening(disk, self._channel.wake)
        elif opening.done:
            del self._openings[disk]
            return opening.failure
        return None

    def _start(self, task: Task, step: Any, device: Device | None) -> bool:
        """Put a read or write on its way, or fail it. False: too many are on their way already."""
        assert device is not None
        length = step.length if type(step) is Read else len(step.data)
        if (step.offset | length) & (device.sector_size - 1) or step.offset < 0 or not length:
            reason = f"not a whole number of sectors of {device.sector_size} bytes"
            self._go_on(task, error=DiskError(**facts_of(step), errno=errno.EINVAL, reason=reason))
            return True
        task.transfer = self._channel.start(device, step, length, task)
        return task.transfer is not None

    def _complete(self, transfer: Transfer, moved: int) -> None:
        """A transfer ended for which a task waits."""
        task, step, buffer = transfer.waiter, transfer.step, transfer.buffer
        assert task is not None
        transfer.waiter = task.transfer = None
        if moved == transfer.length and isinstance(step, Read):
            task.buffer = buffer
            self._go_on(task, value=buffer.view[:moved])
            return
        buffer.give_back()
        if -moved in _GONE:
            self.devices.forget(step.disk)
        self._go_on(task, error=None if moved == transfer.length else failure_of(step, moved))

    def _begin_reap(self, task: Task, pending: Pending) -> None:
        if not isinstance(pending, Overdue):
            self._go_on(task, error=InvalidUse(reason=f"{pending!r} is no I/O of an engine"))
        elif not self._reap(task, pending):
            self._reaping.append((task, pending))

    def _reap(self, task: Task, overdue: Overdue) -> bool:
        """End the task's Reap if the overdue I/O is back. False: not yet."""
        if not overdue.landed:
            return False
        try:
            task.buffer = buffer = overdue.reap()
        except (DiskError, InvalidUse) as failure:
            self._go_on(task, error=failure)
        else:
            self._go_on(task, value=None if buffer is None else buffer.view[: overdue.length])
        return True

    def _time_out(self, task: Task) -> None:
        """The deadline of the task's step has passed."""
        step: Any = task.step
        if type(step) is Sleep:
            self._go_on(task)
        elif type(step) is Reap:
            assert isinstance(step.pending, Overdue)
            self._go_on(task, error=step.pending.timed_out(step.timeout))
        elif task.transfer is not None:
            self._give_up(task, task.transfer, step)
        elif self.devices.get(step.disk) is None:
            self._go_on(task, error=open_timed_out(step.disk, step.timeout))
        else:
            self._go_on(task, error=NotSent(**facts_of(step), timeout=step.timeout))

    def _give_up(self, task: Task, transfer: Transfer, step: Read | Write) -> None:
        """A transfer is overdue: take it back if the kernel can, else park it."""
        if self._channel.cancel(transfer.number):
            for other, moved in self._channel.collect(0.0):
                self._complete(other, moved)
        if task.ticket:
            task.transfer = None
            self._go_on(task, error=self._channel.park(transfer).timed_out(step.timeout))
