"""What disks rarely do and no test storage does: the engine against a mechanism that plays a script."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from paxos.disk.buffers import Buffer
from paxos.disk.engine import _STALE_DEADLINES, Engine
from paxos.errors import DiskError, IOTimeout
from paxos.steps import Read, Sleep, Steps, read, write
from tests.support.storage import PlainDisk


class Script:
    """A mechanism under the test's control, with a clock that only moves when somebody waits."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.now = 0.0
        #: what the next `wait`s answer, and how much time passes first; afterwards they answer nothing, on time
        self.waits: list[tuple[float, Sequence[tuple[int, int]]]] = []
        self.refused: list[int] = []
        self.cancelled = False
        self.can_cancel = False
        self.queued: list[int] = []

    def queue(self, number: int, fd: int, buffer: Buffer, length: int, offset: int, writing: bool) -> None:
        self.queued.append(number)

    def submit(self) -> Sequence[tuple[int, int]]:
        queued, self.queued = self.queued, []
        if self.refused:
            return [(number, -self.refused.pop()) for number in queued]
        return ()

    def wait(self, timeout: float) -> Sequence[tuple[int, int]]:
        passes, ended = self.waits.pop(0) if self.waits else (timeout, ())
        self.now += passes
        return ended

    def cancel(self, number: int) -> bool:
        self.cancelled = True
        return self.can_cancel

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def script() -> Script:
    return Script(4)


@pytest.fixture
def engine(script: Script, plain_disk: PlainDisk) -> Engine:
    made = Engine(clock=lambda: script.now, capacity=4, mechanism=lambda capacity: script)
    made.devices.open(plain_disk.path, 30.0)
    return made


#: the number that the first transfer gets
FIRST = 3


def test_what_is_overdue_is_cancelled_first(engine: Engine, script: Script, plain_disk: PlainDisk) -> None:
    with pytest.raises(IOTimeout):
        engine.run(read(plain_disk.path, 0, 512, 10.0))
    assert script.cancelled
    assert script.now == 10.0


def test_what_could_be_cancelled_is_not_overdue(engine: Engine, script: Script, plain_disk: PlainDisk) -> None:
    script.can_cancel = True
    script.waits = [(10.0, ()), (0.0, ()), (0.0, [(FIRST, -errno.ECANCELED)])]
    with pytest.raises(DiskError) as failure:
        engine.run(write(plain_disk.path, 0, bytes(512), 10.0))
    assert type(failure.value) is DiskError and failure.value.errno == errno.ECANCELED


def test_what_was_done_while_it_was_being_cancelled_is_done(
    engine: Engine, script: Script, plain_disk: PlainDisk
) -> None:
    script.can_cancel = True
    script.waits = [(10.0, ()), (0.0, ()), (0.0, [(FIRST, 512)])]
    engine.run(write(plain_disk.path, 0, bytes(512), 10.0))


def test_what_was_done_in_time_but_seen_late_has_not_timed_out(
    engine: Engine, script: Script, plain_disk: PlainDisk
) -> None:
    """The process was stopped for a minute, say; the disk wasn't."""
    script.waits = [(60.0, ()), (0.0, [(FIRST, 512)])]
    engine.run(read(plain_disk.path, 0, 512, 10.0))


def test_waking_early_is_no_timeout(engine: Engine, script: Script, plain_disk: PlainDisk) -> None:
    script.waits = [(1.0, ()), (2.0, ()), (6.9, ()), (0.0, [(FIRST, 512)])]
    engine.run(read(plain_disk.path, 0, 512, 10.0))


def test_what_the_kernel_does_not_take_fails(engine: Engine, script: Script, plain_disk: PlainDisk) -> None:
    script.refused = [errno.EAGAIN]
    with pytest.raises(DiskError) as failure:
        engine.run(read(plain_disk.path, 0, 512, 10.0))
    assert type(failure.value) is DiskError and failure.value.errno == errno.EAGAIN
    script.waits = [(0.0, [(FIRST, 512)])]
    engine.run(read(plain_disk.path, 0, 512, 10.0))


@pytest.mark.parametrize("gone", [errno.ENODEV, errno.ENXIO, errno.ESTALE])
def test_a_device_that_went_away_is_opened_again(
    engine: Engine, script: Script, plain_disk: PlainDisk, gone: int
) -> None:
    before = engine.devices.get(plain_disk.path)
    script.waits = [(0.0, [(FIRST, -gone)])]
    with pytest.raises(DiskError) as failure:
        engine.run(read(plain_disk.path, 0, 512, 10.0))
    assert failure.value.errno == gone
    assert engine.devices.get(plain_disk.path) is None
    assert engine.devices.open(plain_disk.path, 30.0) is not before
    script.waits = [(0.0, [(FIRST, 512)])]
    engine.run(read(plain_disk.path, 0, 512, 10.0))


def test_deadlines_that_were_not_needed_do_not_pile_up(engine: Engine, script: Script, plain_disk: PlainDisk) -> None:
    def reader() -> Steps[int]:
        for _ in range(10 * _STALE_DEADLINES):
            script.waits.append((0.001, [(engine._channel._free[-1].number, 512)]))
            yield Read(plain_disk.path, 0, 512, 1000.0)
        return len(engine._deadlines)

    def sleeper() -> Steps[None]:
        yield Sleep(5.0)

    left_over = engine.run_all([sleeper(), reader()])[1]
    assert isinstance(left_over, int) and left_over <= _STALE_DEADLINES + 3
    assert script.now >= 5.0
