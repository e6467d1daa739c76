"""One I/O from Python by every mechanism, and by the engine on top of it: what chose libaio.

    pytest bench/test_io_mechanisms.py --benchmark-columns=median,iqr,rounds --benchmark-group-by=group

Where the disk is a file on a disk that others use too, only the differences within a group mean something. The
last group has the process's CPU time of 32 protocols at once as `extra_info`.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.io_uring import IoUring, available
from paxos.disk.aio import Aio
from paxos.disk.buffers import Pool
from paxos.disk.device import Device, Devices
from paxos.disk.engine import Engine
from paxos.disk.mechanism import Mechanism
from paxos.disk.threads import Threads
from paxos.steps import Read, Steps, Write, read, write
from tests.support.storage import PlainDisk

LENGTHS = [512, 64 << 10, 1 << 20]
MECHANISMS = [Aio, Threads, *([IoUring] if available() else [])]
FULL_SPEED = 10.0


@pytest.fixture(scope="module")
def disk() -> Iterator[PlainDisk]:
    with PlainDisk() as made:
        yield made


@pytest.fixture(scope="module")
def device(disk: PlainDisk) -> Device:
    return Device.open(disk.path)


def transfer(mechanism: Mechanism, device: Device, length: int, writing: bool) -> Callable[[], None]:
    buffer = Pool().take(length)

    def once() -> None:
        mechanism.queue(0, device.fd, buffer, length, 0, writing)
        mechanism.submit()
        while not mechanism.wait(FULL_SPEED):
            pass

    return once


@pytest.mark.parametrize("length", LENGTHS)
class TestRead:
    @pytest.fixture(autouse=True)
    def in_a_group(self, benchmark: BenchmarkFixture, length: int) -> None:
        benchmark.group = f"read {length}"

    def test_preadv(self, benchmark: BenchmarkFixture, device: Device, length: int) -> None:
        memory = [Pool().take(length).memory[:length]]
        benchmark(os.preadv, device.fd, memory, 0)

    def test_preadv_ordinary_memory(self, benchmark: BenchmarkFixture, device: Device, length: int) -> None:
        memory = [mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)]
        benchmark(os.preadv, device.fd, memory, 0)

    @pytest.mark.parametrize("kind", MECHANISMS)
    def test_mechanism(
        self, benchmark: BenchmarkFixture, device: Device, length: int, kind: Callable[[int], Mechanism]
    ) -> None:
        benchmark(transfer(kind(64), device, length, False))

    @pytest.mark.parametrize("kind", MECHANISMS)
    def test_engine(
        self, benchmark: BenchmarkFixture, disk: PlainDisk, length: int, kind: Callable[[int], Mechanism]
    ) -> None:
        with Engine(mechanism=kind) as engine:
            engine.devices.open(disk.path, FULL_SPEED)
            benchmark(lambda: engine.run(read(disk.path, 0, length, FULL_SPEED)))


class TestWrite:
    @pytest.fixture(autouse=True)
    def in_a_group(self, benchmark: BenchmarkFixture) -> None:
        benchmark.group = "write 512"

    def test_pwritev(self, benchmark: BenchmarkFixture, device: Device) -> None:
        memory = [Pool().take(512).memory[:512]]
        benchmark(os.pwritev, device.fd, memory, 0)

    @pytest.mark.parametrize("kind", MECHANISMS)
    def test_mechanism(self, benchmark: BenchmarkFixture, device: Device, kind: Callable[[int], Mechanism]) -> None:
        benchmark(transfer(kind(64), device, 512, True))

    @pytest.mark.parametrize("kind", MECHANISMS)
    def test_engine(self, benchmark: BenchmarkFixture, disk: PlainDisk, kind: Callable[[int], Mechanism]) -> None:
        with Engine(mechanism=kind) as engine:
            engine.devices.open(disk.path, FULL_SPEED)
            data = bytes(512)
            benchmark(lambda: engine.run(write(disk.path, 0, data, FULL_SPEED)))


@pytest.mark.benchmark(group="32 protocols at once, 100 reads and 100 writes of 512 each")
@pytest.mark.parametrize("kind", MECHANISMS)
def test_many_at_once(benchmark: BenchmarkFixture, disk: PlainDisk, kind: Callable[[int], Mechanism]) -> None:
    def protocol(number: int) -> Steps[None]:
        for _ in range(100):
            view: memoryview = yield Read(disk.path, number * 512, 512, FULL_SPEED)
            yield Write(disk.path, number * 512, bytes(view), FULL_SPEED)

    with Engine(Devices(), mechanism=kind) as engine:
        engine.devices.open(disk.path, FULL_SPEED)
        start = time.process_time()
        rounds = 5
        benchmark.pedantic(lambda: engine.run_all([protocol(n) for n in range(32)]), rounds=rounds)
        benchmark.extra_info["cpu_us_per_io"] = (time.process_time() - start) / rounds / 6400 * 1e6
