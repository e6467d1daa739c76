"""The engine drives protocols on healthy disks: results, errors, views, many at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paxos.disk.aio import Aio
from paxos.disk.device import Devices
from paxos.disk.engine import Engine, boot_time
from paxos.disk.threads import Threads
from paxos.errors import CannotOpen, DiskError, InvalidUse, LeaseholdError, ShortIO
from paxos.steps import Now, Read, Sleep, Step, Steps, Write, now, read, sleep, write
from tests.support.storage import LoopDisk, PlainDisk


@pytest.fixture(params=[Aio, Threads])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(mechanism=request.param) as made:
        yield made


def copy(disk: str, source: int, target: int, length: int) -> Steps[bytes]:
    view: memoryview = yield Read(disk, source, length, 30.0)
    data = bytes(view)
    yield Write(disk, target, data, 30.0)
    return data


def failing(step: Step) -> Steps[LeaseholdError]:
    """The error that a step ends with."""
    try:
        yield step
    except LeaseholdError as failure:
        return failure
    raise AssertionError(f"{step} did not fail")


def test_a_protocol_reads_writes_and_returns(engine: Engine, plain_disk: PlainDisk) -> None:
    data = os.urandom(4096)
    plain_disk.write(8192, data)
    assert engine.run(copy(plain_disk.path, 8192, 65536, 4096)) == data
    assert plain_disk.read(65536, 4096) == data


@pytest.mark.storage
def test_block_devices_of_both_sector_sizes(engine: Engine, loop_disk: LoopDisk) -> None:
    data = os.urandom(1 << 20)
    engine.run(write(loop_disk.path, 1 << 20, data, 30.0))
    assert bytes(engine.run(read(loop_disk.path, 1 << 20, 1 << 20, 30.0))) == data
    sector = os.urandom(loop_disk.sector_size)
    assert engine.run(write(loop_disk.path, loop_disk.sector_size, sector, 30.0)) is None
    assert bytes(engine.run(read(loop_disk.path, loop_disk.sector_size, loop_disk.sector_size, 30.0))) == sector


def test_a_view_can_be_read_until_the_next_step_and_never_written(engine: Engine, plain_disk: PlainDisk) -> None:
    plain_disk.write(0, b"first".ljust(512) + b"second".ljust(512))

    def protocol() -> Steps[tuple[bytes, bytes]]:
        view: memoryview = yield Read(plain_disk.path, 0, 512, 30.0)
        assert view.readonly and len(view) == 512
        first = bytes(view)
        view = yield Read(plain_disk.path, 512, 512, 30.0)
        return first, bytes(view)

    assert engine.run(protocol()) == (b"first".ljust(512), b"second".ljust(512))


def test_buffers_are_used_again(engine: Engine, plain_disk: PlainDisk) -> None:
    def protocol() -> Steps[set[int]]:
        addresses = set()
        for _ in range(100):
            view: memoryview = yield Read(plain_disk.path, 0, 1 << 20, 30.0)
            addresses.add(memoryview_address(view))
        return addresses

    assert len(engine.run(protocol())) == 1


def memoryview_address(view: memoryview) -> int:
    import numpy

    return int(numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0])


def test_now_is_the_boot_time_clock(engine: Engine) -> None:
    before = boot_time()
    assert before <= engine.run(now()) <= boot_time()


def test_another_clock_may_be_given() -> None:
    with Engine(clock=lambda: 42.0) as engine:
        assert engine.run(now()) == 42.0


def test_sleep_sleeps(engine: Engine) -> None:
    def protocol() -> Steps[float]:
        start: float = yield Now()
        yield Sleep(0.02)
        end: float = yield Now()
        return end - start

    assert engine.run(protocol()) >= 0.02


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_sleep_is_allowed_too(engine: Engine, seconds: float) -> None:
    engine.run(sleep(seconds))


def test_a_protocols_own_exception_comes_out_as_it_is(engine: Engine) -> None:
    def protocol() -> Steps[None]:
        yield Now()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.run(protocol())


def test_an_error_that_a_protocol_does_not_catch_comes_out_too(engine: Engine, plain_disk: PlainDisk) -> None:
    with pytest.raises(ShortIO):
        engine.run(read(plain_disk.path, plain_disk.size, 512, 30.0))


def test_a_read_over_the_end_is_short(engine: Engine, plain_disk: PlainDisk) -> None:
    failure = engine.run(failing(Read(plain_disk.path, plain_disk.size - 512, 4096, 30.0)))
    assert type(failure) is ShortIO
    assert (failure.moved, failure.length, failure.code) == (512, 4096, -errno.EMSGSIZE)
    assert (failure.disk, failure.offset) == (plain_disk.path, plain_disk.size - 512)


@pytest.mark.storage
def test_a_write_over_the_end_of_a_device_fails(engine: Engine, loop_disk: LoopDisk) -> None:
    failure = engine.run(failing(Write(loop_disk.path, loop_disk.size, bytes(4096), 30.0)))
    assert isinstance(failure, DiskError) and failure.operation == "write"


@pytest.mark.parametrize(("offset", "length"), [(100, 512), (0, 100), (0, 0), (-512, 512), (256, 512)])
def test_what_is_no_whole_number_of_sectors_is_refused(
    engine: Engine, plain_disk: PlainDisk, offset: int, length: int
) -> None:
    """By the engine, because some file systems take it and some disks only sometimes."""
    for step in (Read(plain_disk.path, offset, length, 30.0), Write(plain_disk.path, offset, bytes(length), 30.0)):
        failure = engine.run(failing(step))
        assert isinstance(failure, DiskError) and failure.errno == errno.EINVAL
        assert "sectors of 512" in str(failure)


@pytest.mark.storage
def test_sectors_are_the_devices(engine: Engine) -> None:
    with LoopDisk(4096, 1 << 20) as disk:
        failure = engine.run(failing(Read(disk.path, 0, 512, 30.0)))
        assert failure.errno == errno.EINVAL


def test_a_disk_that_is_not_there(engine: Engine, tmp_path: Path) -> None:
    failure = engine.run(failing(Read(str(tmp_path / "gone"), 0, 512, 30.0)))
    assert type(failure) is CannotOpen and failure.errno == errno.ENOENT


def test_all_that_use_a_disk_that_is_not_there_are_told(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for failure in engine.run_all([failing(Read(str(path), 0, 512, 30.0)) for _ in range(20)]):
        assert type(failure) is CannotOpen
    path.write_bytes(bytes(4096))
    assert len(engine.run(read(str(path), 0, 512, 30.0))) == 512


def test_a_disk_that_may_only_be_read(plain_disk: PlainDisk) -> None:
    with Engine(Devices(read_only=True)) as engine:
        assert bytes(engine.run(read(plain_disk.path, 0, 512, 30.0))) == bytes(512)
        assert engine.run(failing(Write(plain_disk.path, 0, bytes(512), 30.0))).errno == errno.EBADF


def test_what_is_no_step_is_thrown_back(engine: Engine) -> None:
    assert isinstance(engine.run(failing("sit down")), InvalidUse)  # type: ignore[arg-type]


def test_many_at_once_each_has_its_own_result_in_order(engine: Engine, plain_disk: PlainDisk) -> None:
    for number in range(200):
        plain_disk.write(number * 512, b"%d" % number + bytes(508))

    def protocol(number: int) -> Steps[int]:
        for _ in range(3):
            view: memoryview = yield Read(plain_disk.path, number * 512, 512, 30.0)
            assert int(bytes(view).rstrip(b"\0")) == number
            yield Sleep(0.001 * (number % 3))
        if number % 7 == 3:
            raise KeyError(number)
        return number

    results = engine.run_all([protocol(number) for number in range(200)])
    for number, result in enumerate(results):
        if number % 7 == 3:
            assert isinstance(result, KeyError) and result.args == (number,)
        else:
            assert result == number


def test_more_at_once_than_may_be_in_flight(plain_disk: PlainDisk) -> None:
    with Engine(capacity=4) as engine:
        results = engine.run_all([copy(plain_disk.path, n * 512, n * 512, 512) for n in range(300)])
    assert results == [bytes(512)] * 300


def test_shorter_sleeps_end_first(engine: Engine) -> None:
    order: list[int] = []

    def protocol(number: int) -> Steps[None]:
        yield Sleep(0.01 * number)
        order.append(number)

    engine.run_all([protocol(number) for number in (3, 1, 2, 0)])
    assert order == [0, 1, 2, 3]


def test_none_at_once(engine: Engine) -> None:
    assert engine.run_all([]) == []


def test_engines_share_a_table_of_devices(plain_disk: PlainDisk) -> None:
    devices = Devices()
    with Engine(devices) as one, Engine(devices) as other:
        one.run(write(plain_disk.path, 0, b"x" * 512, 30.0))
        device = devices.get(plain_disk.path)
        assert bytes(other.run(read(plain_disk.path, 0, 512, 30.0))) == b"x" * 512
        assert devices.get(plain_disk.path) is device is not None


def test_engines_in_threads_do_not_meet(plain_disk: PlainDisk) -> None:
    devices = Devices()
    wrong: list[object] = []

    def work(number: int) -> None:
        def protocol() -> Steps[None]:
            for turn in range(50):
                data = bytes([number, turn]) * 256
                yield Write(plain_disk.path, number * 512, data, 30.0)
                view: memoryview = yield Read(plain_disk.path, number * 512, 512, 30.0)
                if view != data:
                    wrong.append((number, turn))

        with Engine(devices) as engine:
            engine.run(protocol())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_engine_says_so() -> None:
    engine = Engine()
    engine.close()
    engine.close()
    with pytest.raises(InvalidUse):
        engine.run(now())


def test_a_protocol_cannot_use_the_engine_that_drives_it(engine: Engine) -> None:
    def protocol() -> Steps[None]:
        yield Now()
        engine.run(now())

    with pytest.raises(InvalidUse):
        engine.run(protocol())


def test_an_interrupted_engine_closes_its_protocols_and_goes_on_afterwards(
    engine: Engine, plain_disk: PlainDisk
) -> None:
    closed: list[str] = []

    def interrupted() -> Steps[None]:
        yield Sleep(0.01)
        raise KeyboardInterrupt

    def bystander() -> Steps[None]:
        try:
            while True:
                yield Read(plain_disk.path, 0, 512, 30.0)
        finally:
            closed.append("bystander")

    with pytest.raises(KeyboardInterrupt):
        engine.run_all([bystander(), interrupted()])
    assert closed == ["bystander"]
    assert bytes(engine.run(read(plain_disk.path, 0, 512, 30.0))) == bytes(512)
