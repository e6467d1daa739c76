"""One I/O context: transfers on their way, and what becomes of those that took too long.

A transfer that is not back in time is *parked*: its buffer, its number and its device stay with it until the
kernel gives it back, whatever happens to the protocol that asked for it, to the engine, or to the device's
descriptor. The protocol keeps an `Overdue` by which it can wait for the end.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from paxos.disk.aio import Aio
from paxos.disk.buffers import Buffer, Pool
from paxos.disk.device import Device
from paxos.disk.mechanism import Mechanism
from paxos.disk.task import Task
from paxos.disk.threads import Threads
from paxos.errors import DiskError, InvalidUse, IOTimeout, ShortIO
from paxos.steps import Pending, Read, Write

#: transfers that a channel may have on its way to one device without taking one of the device's shared tokens
OWN_IN_FLIGHT = 2


def best_mechanism(capacity: int) -> Mechanism:
    """Asynchronous I/O; threads where the kernel forbids it (containers) or has no context left."""
    try:
        return Aio(capacity)
    except OSError:
        return Threads(capacity)


class Transfer:
    """One I/O on its way; `waiter` is who waits for it, None when it is parked."""

    __slots__ = ("buffer", "device", "lane", "length", "number", "overdue", "shared", "step", "waiter")

    def __init__(self, number: int) -> None:
        self.number = number
        self.waiter: Task | None = None
        self.overdue: weakref.ref[Overdue] | None = None
        self.shared = False
        self.step: Read | Write
        self.length: int
        self.device: Device
        self.lane: list[int]
        self.buffer: Buffer


class Overdue(Pending):
    """An I/O that timed out, until it is reaped. `channel` is where it is in flight."""

    __slots__ = ("__weakref__", "_buffer", "_failure", "_landed", "channel")

    def __init__(self, step: Read | Write, channel: Channel) -> None:
        super().__init__(step)
        self.channel = channel
        self._landed = False
        self._failure: DiskError | None = None
        self._buffer: Buffer | None = None

    @property
    def length(self) -> int:
        """Bytes that it was to move."""
        return self.step.length if isinstance(self.step, Read) else len(self.step.data)

    @property
    def landed(self) -> bool:
        """Whether the kernel has given it back, done or failed. May be asked from any thread."""
        if not self._landed:
            self.channel.look()
        return self._landed

    def timed_out(self, timeout: float) -> IOTimeout:
        """The error of whoever waited for it for `timeout` seconds."""
        return IOTimeout(**facts_of(self.step), timeout=timeout, pending=self)

    def land(self, moved: int, buffer: Buffer) -> None:
        """It is back. A read keeps its buffer until it is reaped, or nobody can reap it any more."""
        self._failure = failure_of(self.step, moved)
        if self._failure is None and type(self.step) is Read:
            self._buffer = buffer
        else:
            buffer.give_back()
        self._landed = True

    def reap(self) -> Buffer | None:
        """Its buffer if it was a read, now the caller's. Raises DiskError, and InvalidUse if repeated."""
        if self._failure is not None:
            raise self._failure
        buffer, self._buffer = self._buffer, None
        if buffer is None and type(self.step) is Read:
            raise InvalidUse(reason="an overdue read can be reaped only once")
        return buffer

    def __del__(self) -> None:
        if self._buffer is not None:
            self._buffer.give_back()


class Channel:
    """A mechanism with its buffers. `lock` is held by whoever uses it: an engine while it runs, or `look`."""

    def __init__(self, mechanism: Mechanism) -> None:
        self.lock = threading.Lock()
        self.pool = Pool()
        self.in_flight = 0
        self._mechanism = mechanism
        self._transfers = [Transfer(number) for number in range(mechanism.capacity)]
        self._free = self._transfers.copy()
        # per path, in a list so that a transfer can hold it: how many are on their way
        self._lanes: dict[str, list[int]] = {}
        self.cancel = mechanism.cancel
        self.wake = mechanism.wake

    def start(self, device: Device, step: Read | Write, length: int, waiter: Task) -> Transfer | None:
        """Queue a transfer for `submit`. None when too many are on their way: try again when one has ended."""
        path = step.disk
        lane = self._lanes.get(path)
        if lane is None:
            lane = self._lanes[path] = [0]
        if not self._free:
            return None
        shared = lane[0] >= OWN_IN_FLIGHT
        if shared:
            try:
                device.tokens.pop()
            except IndexError:
                return None
        transfer = self._free.pop()
        transfer.step, transfer.length = step, length
        transfer.device, transfer.lane = device, lane
        transfer.shared, transfer.waiter, transfer.overdue = shared, waiter, None
        transfer.buffer = buffer = self.pool.take(length)
        lane[0] += 1
        self.in_flight += 1
        if type(step) is Write:
            buffer.memory[:length] = step.data
            self._mechanism.queue(transfer.number, device.fd, buffer, length, step.offset, True)
        else:
            self._mechanism.queue(transfer.number, device.fd, buffer, length, step.offset, False)
        return transfer

    def submit(self) -> Sequence[tuple[Transfer, int]]:
        """Put what was started on its way; what the kernel did not take, each with -errno."""
        refused = self._mechanism.submit()
        return [(self._ended(number), failure) for number, failure in refused] if refused else ()

    def collect(self, timeout: float) -> Sequence[tuple[Transfer, int]]:
        """Transfers that ended, with bytes moved or -errno; waits up to `timeout` seconds for the first.

        Parked ones are seen to and left out. The others' buffers are the caller's to give back.
        """
        ended = []
        for number, moved in self._mechanism.wait(timeout):
            transfer = self._ended(number)
            if transfer.waiter is not None:
                ended.append((transfer, moved))
            else:
                _land(transfer, moved)
        return ended

    def _ended(self, number: int) -> Transfer:
        transfer = self._transfers[number]
        self.in_flight -= 1
        transfer.lane[0] -= 1
        if transfer.shared:
            transfer.device.tokens.append(None)
        del transfer.device  # a free transfer keeps no device open
        self._free.append(transfer)
        return transfer

    def park(self, transfer: Transfer) -> Overdue:
        """Nobody waits for this transfer any more, but it is still in flight."""
        overdue = Overdue(transfer.step, self)
        transfer.waiter = None
        transfer.overdue = weakref.ref(overdue)
        return overdue

    def look(self) -> None:
        """See to parked transfers that came back, unless somebody is using the channel (who then does it)."""
        if self.lock.acquire(blocking=False):
            try:
                self.collect(0.0)
            finally:
                self.lock.release()

    def close(self) -> None:
        """Free the channel, now or when its last I/O is back: closing never waits for a disk."""
        for transfer in self._transfers:
            transfer.waiter = None
        with _left_behind_lock:
            _left_behind.append(self)
        sweep()

    def try_to_free(self) -> bool:
        """Free a closed channel if nothing is in flight any more."""
        self.look()
        if self.in_flight:
            return False
        self._mechanism.close()
        return True


def _land(transfer: Transfer, moved: int) -> None:
    """A parked transfer came back."""
    overdue = transfer.overdue() if transfer.overdue is not None else None
    if overdue is None:
        transfer.buffer.give_back()
    else:
        overdue.land(moved, transfer.buffer)


#: closed channels with I/O still in flight; their buffers must not be freed
_left_behind: list[Channel] = []
_left_behind_lock = threading.Lock()


def sweep() -> None:
    """Free the closed channels whose last I/O has come back."""
    with _left_behind_lock:
        _left_behind[:] = [channel for channel in _left_behind if not channel.try_to_free()]


def facts_of(step: Read | Write) -> dict[str, object]:
    """What an error says about the step it belongs to."""
    if type(step) is Read:
        return {"operation": "read", "length": step.length, "disk": step.disk, "offset": step.offset}
    assert type(step) is Write
    return {"operation": "write", "length": len(step.data), "disk": step.disk, "offset": step.offset}


def failure_of(step: Read | Write, moved: int) -> DiskError | None:
    """The error of a transfer that ended with `moved` bytes or -errno; None if it did all that was asked."""
    facts = facts_of(step)
    if moved == facts["length"]:
        return None
    if moved < 0:
        return DiskError(**facts, errno=-moved)
    return ShortIO(**facts, moved=moved)
