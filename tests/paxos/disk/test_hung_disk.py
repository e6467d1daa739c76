"""A disk that hangs: every kind of step ends in time, nobody else notices, and what comes back late is told.

A disk hangs for good here unless a test resumes it: a LateDisk holds single I/Os, a FaultyDisk stops altogether.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest

from paxos.disk import channel
from paxos.disk.aio import Aio
from paxos.disk.channel import OWN_IN_FLIGHT, Overdue
from paxos.disk.device import SHARED_IN_FLIGHT, Devices
from paxos.disk.engine import Engine
from paxos.disk.threads import Threads
from paxos.errors import CannotOpen, DiskError, InvalidUse, IOTimeout, LeaseholdError, NotSent
from paxos.steps import Read, Reap, Sleep, Steps, Write, now, read, reap, write
from tests.support.storage import FaultyDisk, LateDisk, PlainDisk

pytestmark = pytest.mark.storage

SHORT = 0.1
LONG = 30.0


@pytest.fixture(params=[Aio, Threads])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(mechanism=request.param) as made:
        yield made


def overdue(step: Read | Write) -> Steps[Overdue]:
    """What is left of a step that times out."""
    try:
        yield step
    except IOTimeout as failure:
        assert failure.code == -202
        assert (failure.disk, failure.offset, failure.timeout) == (step.disk, step.offset, step.timeout)
        assert isinstance(failure.pending, Overdue) and failure.pending.step is step
        return failure.pending
    raise AssertionError(f"{step} was done")


def time_out(engine: Engine, step: Read | Write) -> Overdue:
    """Run a step that times out, on a disk that was open before."""
    engine.devices.open(step.disk, LONG)
    return engine.run(overdue(step))


def wait_until_landed(pending: Overdue) -> None:
    end = time.monotonic() + LONG
    while not pending.landed:
        assert time.monotonic() < end
        time.sleep(0.01)


class TestEveryKindOfStepEndsInTime:
    def test_read(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a", operation="read")
        assert not time_out(engine, Read(late_disk.path, 512, 512, SHORT)).landed

    def test_write(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        assert not time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT)).landed
        assert late_disk.read(512, 512) == bytes(512)

    def test_reap(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        pending = time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT))
        with pytest.raises(IOTimeout) as failure:
            engine.run(reap(pending, SHORT))
        assert failure.value.pending is pending

    def test_first_use_of_a_disk_whose_open_hangs(self, engine: Engine, faulty_disk: FaultyDisk) -> None:
        faulty_disk.hang("a")
        with pytest.raises(CannotOpen) as failure:
            engine.run(read(faulty_disk.files["a"], 0, 512, SHORT))
        assert failure.value.errno == errno.ETIMEDOUT
        faulty_disk.resume()
        assert bytes(engine.run(read(faulty_disk.files["a"], 0, 512, LONG))) == bytes(512)

    def test_a_whole_disk_that_stopped(self, engine: Engine, faulty_disk: FaultyDisk) -> None:
        engine.run(read(faulty_disk.path, 0, 512, LONG))
        faulty_disk.hang()
        late_read, late_write = engine.run_all(
            [
                overdue(Read(faulty_disk.path, 0, 1 << 20, SHORT)),
                overdue(Write(faulty_disk.path, 512, b"x" * 512, SHORT)),
            ]
        )
        faulty_disk.resume()
        assert isinstance(late_read, Overdue) and isinstance(late_write, Overdue)
        assert engine.run(reap(late_write, LONG)) is None
        assert len(engine.run(reap(late_read, LONG)) or b"") == 1 << 20
        assert faulty_disk.read(512, 512) == b"x" * 512


class TestWhatComesBackLate:
    def test_a_write_lands_and_says_so(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        pending = time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT))
        late_disk.release()
        wait_until_landed(pending)
        assert engine.run(reap(pending, LONG)) is None
        assert late_disk.read(512, 512) == b"x" * 512

    def test_a_read_gives_what_it_read(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a", operation="read")
        late_disk.write(512, b"before" + bytes(506))
        pending = time_out(engine, Read(late_disk.path, 512, 512, SHORT))
        late_disk.write(512, b"after" + bytes(507))
        late_disk.release()
        assert bytes(engine.run(reap(pending, LONG)) or b"")[:6] == b"after\0"

    def test_a_read_can_be_reaped_once_a_write_as_often_as_one_likes(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a", operation="read")
        late_disk.hold("a", operation="write")
        late_read = time_out(engine, Read(late_disk.path, 512, 512, SHORT))
        late_write = time_out(engine, Write(late_disk.path, 512, bytes(512), SHORT))
        late_disk.release()
        for _ in range(2):
            engine.run(reap(late_write, LONG))
        engine.run(reap(late_read, LONG))
        with pytest.raises(InvalidUse):
            engine.run(reap(late_read, LONG))

    def test_a_failure_comes_late_too(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        pending = time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT))
        late_disk.release(failure=errno.EIO)
        with pytest.raises(DiskError) as failure:
            engine.run(reap(pending, LONG))
        assert type(failure.value) is DiskError and failure.value.errno == errno.EIO
        assert late_disk.read(512, 512) == bytes(512)

    def test_a_write_may_have_happened_though_it_timed_out(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a", landing="at once")
        pending = time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT))
        assert late_disk.read(512, 512) == b"x" * 512
        assert not pending.landed

    def test_a_protocol_that_waits_is_told_at_once(self, engine: Engine, late_disk: LateDisk) -> None:
        rule = late_disk.hold("a")

        def writer() -> Steps[str]:
            pending = yield from overdue(Write(late_disk.path, 512, b"x" * 512, SHORT))
            yield Reap(pending, LONG)
            return "landed"

        def releaser() -> Steps[None]:
            yield Sleep(3 * SHORT)
            late_disk.release(rule)

        assert engine.run_all([writer(), releaser()])[0] == "landed"

    def test_its_buffer_is_not_used_before_it_is_back(self, engine: Engine, late_disk: LateDisk) -> None:
        """Whatever is written meanwhile, what lands is what was asked."""
        late_disk.hold("a", offset=512, length=512)
        pending = time_out(engine, Write(late_disk.path, 512, b"late" * 128, SHORT))
        for number in range(50):
            engine.run(write(late_disk.path, 4096, b"%4d" % number * 128, LONG))
        late_disk.release()
        engine.run(reap(pending, LONG))
        assert late_disk.read(512, 512) == b"late" * 128

    def test_one_that_nobody_asks_for_any_more_gives_its_buffer_back(self, late_disk: LateDisk) -> None:
        with Engine() as engine:
            late_disk.hold("a", operation="read", count=3)
            for _ in range(3):
                time_out(engine, Read(late_disk.path, 512, 512, SHORT))
            assert engine._channel.in_flight == 3
            late_disk.release()
            while engine._channel.in_flight:
                engine._channel.look()
            assert len(engine._channel.pool._free[4096]) == 3

    def test_what_landed_but_was_never_reaped_gives_its_buffer_back(self, late_disk: LateDisk) -> None:
        with Engine() as engine:
            late_disk.hold("a", operation="read")
            pending = time_out(engine, Read(late_disk.path, 512, 512, SHORT))
            late_disk.release()
            wait_until_landed(pending)
            assert len(engine._channel.pool._free[4096]) == 0
            del pending
            assert len(engine._channel.pool._free[4096]) == 1


class TestAnotherEngine:
    def test_reaps_it(self, engine: Engine, late_disk: LateDisk) -> None:
        """Its own engine is idle: whoever asks looks after it."""
        late_disk.hold("a", operation="read")
        pending = time_out(engine, Read(late_disk.path, 512, 512, SHORT))
        with Engine() as other:
            with pytest.raises(IOTimeout):
                other.run(reap(pending, SHORT))
            late_disk.write(512, b"late" * 128)
            late_disk.release()
            assert bytes(other.run(reap(pending, LONG)) or b"") == b"late" * 128

    def test_reaps_it_while_its_own_is_busy(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        pending = time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT))
        stop = threading.Event()

        def busy() -> Steps[None]:
            while not stop.is_set():
                yield Sleep(0.005)

        thread = threading.Thread(target=engine.run, args=(busy(),))
        thread.start()
        late_disk.release()
        with Engine() as other:
            assert other.run(reap(pending, LONG)) is None
        stop.set()
        thread.join()

    def test_reaps_it_after_its_own_was_closed(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        pending = time_out(engine, Write(late_disk.path, 512, b"x" * 512, SHORT))
        engine.close()
        late_disk.release()
        with Engine() as other:
            assert other.run(reap(pending, LONG)) is None


class TestNobodyElseNotices:
    def test_other_disks_go_on(self, engine: Engine, faulty_disk: FaultyDisk, plain_disk: PlainDisk) -> None:
        engine.run(read(faulty_disk.path, 0, 512, LONG))
        faulty_disk.hang()
        progress: list[int] = []
        seen_at_timeout: list[int] = []

        def hung() -> Steps[None]:
            yield from overdue(Read(faulty_disk.path, 0, 512, 5 * SHORT))
            seen_at_timeout.append(len(progress))

        def healthy() -> Steps[None]:
            while not seen_at_timeout:
                yield Read(plain_disk.path, 0, 512, LONG)
                progress.append(1)

        engine.run_all([hung() for _ in range(20)] + [healthy()])
        assert seen_at_timeout[0] > 20

    def test_other_disks_go_on_while_one_is_being_opened(
        self, engine: Engine, faulty_disk: FaultyDisk, plain_disk: PlainDisk
    ) -> None:
        engine.devices.open(plain_disk.path, LONG)
        faulty_disk.hang("a")
        progress: list[int] = []

        def hung() -> Steps[int]:
            with pytest.raises(CannotOpen):
                yield Read(faulty_disk.files["a"], 0, 512, 5 * SHORT)
            return len(progress)

        def healthy() -> Steps[None]:
            for number in range(5):
                yield Read(plain_disk.path, 512 * number, 512, LONG)
                progress.append(number)

        assert engine.run_all([hung(), healthy()]) == [5, None]

    def test_all_that_wait_for_a_hung_open_are_told(self, engine: Engine, faulty_disk: FaultyDisk) -> None:
        faulty_disk.hang("a")
        file = faulty_disk.files["a"]
        for _ in range(2):
            for result in engine.run_all([read(file, 0, 512, SHORT) for _ in range(5)]):
                assert isinstance(result, CannotOpen) and result.errno == errno.ETIMEDOUT
        faulty_disk.resume()
        assert len(engine.run(read(file, 0, 512, LONG))) == 512

    def test_no_more_is_sent_to_a_disk_than_its_queue_takes_without_blocking(
        self, faulty_disk: FaultyDisk, plain_disk: PlainDisk
    ) -> None:
        devices = Devices()
        limit = SHARED_IN_FLIGHT + OWN_IN_FLIGHT
        with Engine(devices) as engine, Engine(devices) as other:
            engine.run(read(faulty_disk.path, 0, 512, LONG))
            faulty_disk.hang()
            results = engine.run_all([read(faulty_disk.path, 0, 512, 3 * SHORT) for _ in range(200)])
            assert [type(result) for result in results].count(IOTimeout) == limit
            assert [type(result) for result in results].count(NotSent) == 200 - limit
            assert bytes(engine.run(read(plain_disk.path, 0, 512, LONG))) == bytes(512)
            # another engine always has a few of its own
            results = other.run_all([read(faulty_disk.path, 0, 512, SHORT) for _ in range(OWN_IN_FLIGHT + 1)])
            assert [type(result) for result in results].count(IOTimeout) == OWN_IN_FLIGHT
            faulty_disk.resume()
            results = engine.run_all([read(faulty_disk.path, 0, 512, LONG) for _ in range(200)])
            assert all(isinstance(result, memoryview) for result in results)

    def test_an_engine_full_of_overdue_io_waits_for_its_return(self, late_disk: LateDisk) -> None:
        with Engine(capacity=2) as engine:
            engine.run(read(late_disk.path, 0, 512, LONG))
            late_disk.hold("a", offset=512, operation="read", count=2)
            for _ in range(2):
                time_out(engine, Read(late_disk.path, 512, 512, SHORT))
            engine.devices.open(late_disk.devices["b"], LONG)
            with pytest.raises(NotSent):  # not even to another disk
                engine.run(read(late_disk.devices["b"], 0, 512, SHORT))
            late_disk.release()
            assert len(engine.run(read(late_disk.devices["b"], 0, 512, LONG))) == 512

    def test_other_threads_run_while_one_waits(self, engine: Engine, late_disk: LateDisk) -> None:
        """The interpreter lock is free during the wait."""
        late_disk.hold("a", operation="read")
        thread = threading.Thread(target=engine.run, args=(overdue(Read(late_disk.path, 512, 512, 5 * SHORT)),))
        thread.start()
        turns = 0
        while thread.is_alive():
            time.sleep(0.001)
            turns += 1
        assert turns > 10


class TestClosing:
    def test_does_not_wait_for_the_disk(self, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        engine = Engine()
        pending = time_out(engine, Write(late_disk.path, 512, b"late" * 128, SHORT))
        engine.close()
        assert pending.channel in channel._left_behind
        late_disk.release()
        wait_until_landed(pending)
        assert late_disk.read(512, 512) == b"late" * 128
        channel.sweep()
        assert pending.channel not in channel._left_behind

    def test_keeps_a_forgotten_device_open_until_its_io_is_back(self, engine: Engine, late_disk: LateDisk) -> None:
        late_disk.hold("a")
        pending = time_out(engine, Write(late_disk.path, 512, b"late" * 128, SHORT))
        engine.devices.close()
        late_disk.release()
        wait_until_landed(pending)
        assert late_disk.read(512, 512) == b"late" * 128

    def test_an_interrupted_write_is_left_alone_with_its_buffer(self, late_disk: LateDisk) -> None:
        late_disk.hold("a", offset=512, length=512)

        def interrupted() -> Steps[None]:
            yield Sleep(SHORT)
            raise KeyboardInterrupt

        with Engine() as engine:
            engine.run(now())
            writer: Steps[None] = write(late_disk.path, 512, b"late" * 128, LONG)
            with pytest.raises(KeyboardInterrupt):
                engine.run_all([writer, interrupted()])
            (left,) = engine.abandoned
            for _ in range(10):
                engine.run(write(late_disk.path, 4096, b"next" * 128, LONG))
            assert not left.landed
            late_disk.release()
            wait_until_landed(left)
            assert late_disk.read(512, 512) == b"late" * 128


class TestFailingDisks:
    @pytest.mark.parametrize("engine", [Aio], indirect=True)
    def test_reads_and_writes_that_fail_say_which_and_where(self, engine: Engine, faulty_disk: FaultyDisk) -> None:
        def failing(step: Read | Write) -> Steps[LeaseholdError]:
            try:
                yield step
            except LeaseholdError as failure:
                return failure
            raise AssertionError

        faulty_disk.fail_reads()
        failure = engine.run(failing(Read(faulty_disk.path, 4096, 512, LONG)))
        assert (type(failure), failure.errno, failure.operation) == (DiskError, errno.EIO, "read")
        assert (failure.disk, failure.offset, failure.length) == (faulty_disk.path, 4096, 512)
        engine.run(write(faulty_disk.path, 4096, bytes(512), LONG))
        faulty_disk.heal()
        faulty_disk.fail_writes()
        failure = engine.run(failing(Write(faulty_disk.path, 4096, bytes(512), LONG)))
        assert (type(failure), failure.errno, failure.operation) == (DiskError, errno.EIO, "write")
        engine.run(read(faulty_disk.path, 4096, 512, LONG))
        faulty_disk.heal()
        engine.run(write(faulty_disk.path, 4096, bytes(512), LONG))

    def test_a_disk_that_died_fails_at_once(self, engine: Engine, faulty_disk: FaultyDisk) -> None:
        engine.run(read(faulty_disk.path, 0, 512, LONG))
        faulty_disk.die()
        with pytest.raises(DiskError) as failure:
            engine.run(read(faulty_disk.path, 0, 512, LONG))
        assert type(failure.value) is DiskError
