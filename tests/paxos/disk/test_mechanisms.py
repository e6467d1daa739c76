"""Both ways of doing I/O keep the same promises."""

from __future__ import annotations

import errno
import os
import platform
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from paxos.disk.aio import Aio
from paxos.disk.buffers import Buffer, Pool
from paxos.disk.channel import best_mechanism
from paxos.disk.device import Device
from paxos.disk.mechanism import Mechanism
from paxos.disk.threads import Threads
from tests.support.storage import PlainDisk

CAPACITY = 8


@pytest.fixture(params=[Aio, Threads])
def mechanism(request: pytest.FixtureRequest) -> Iterator[Mechanism]:
    made: Mechanism = request.param(CAPACITY)
    yield made
    made.close()


@pytest.fixture
def device(plain_disk: PlainDisk) -> Device:
    return Device.open(plain_disk.path)


@pytest.fixture
def pool() -> Pool:
    return Pool()


def ended(mechanism: Mechanism, number_of_transfers: int = 1) -> dict[int, int]:
    """Wait for so many transfers; what became of each."""
    ends: dict[int, int] = {}
    while len(ends) < number_of_transfers:
        some: Sequence[tuple[int, int]] = mechanism.wait(30.0)
        assert some, "nothing ended in 30 s"
        ends.update(some)
    return ends


def filled(pool: Pool, data: bytes) -> Buffer:
    buffer = pool.take(len(data))
    buffer.memory[: len(data)] = data
    return buffer


def test_what_was_written_is_read(mechanism: Mechanism, device: Device, pool: Pool) -> None:
    data = os.urandom(1 << 20)
    mechanism.queue(3, device.fd, filled(pool, data), len(data), 4096, True)
    assert not mechanism.submit()
    assert ended(mechanism) == {3: len(data)}
    buffer = pool.take(len(data))
    mechanism.queue(5, device.fd, buffer, len(data), 4096, False)
    assert not mechanism.submit()
    assert ended(mechanism) == {5: len(data)}
    assert bytes(buffer.view) == data


def test_as_many_as_its_capacity_are_in_flight_at_once(mechanism: Mechanism, device: Device, pool: Pool) -> None:
    for number in range(CAPACITY):
        mechanism.queue(number, device.fd, filled(pool, bytes([number]) * 512), 512, number * 512, True)
    assert not mechanism.submit()
    assert ended(mechanism, CAPACITY) == dict.fromkeys(range(CAPACITY), 512)
    for number in range(CAPACITY):
        assert os.pread(os.open(device.path, os.O_RDONLY), 512, number * 512) == bytes([number]) * 512


def test_a_read_over_the_end_moves_less(mechanism: Mechanism, device: Device, pool: Pool) -> None:
    mechanism.queue(0, device.fd, pool.take(4096), 4096, device.size - 512, False)
    assert not mechanism.submit()
    assert ended(mechanism) == {0: 512}


def test_an_impossible_transfer_fails_alone(mechanism: Mechanism, device: Device, pool: Pool) -> None:
    """The kernel refuses it when it is submitted; what was queued before and after it is done all the same."""
    gone = os.open(device.path, os.O_RDONLY)
    os.close(gone)
    for number, fd in enumerate((device.fd, gone, device.fd)):
        mechanism.queue(number, fd, pool.take(512), 512, 0, False)
    refused = dict(mechanism.submit())
    assert refused | ended(mechanism, 3 - len(refused)) == {0: 512, 1: -errno.EBADF, 2: 512}


def test_nothing_to_do_is_nothing_to_wait_for(mechanism: Mechanism) -> None:
    assert not mechanism.submit()
    assert not mechanism.wait(0.0)
    assert not mechanism.wait(0.01)


def test_another_thread_wakes_it_again_and_again(mechanism: Mechanism) -> None:
    for _ in range(3):
        waker = threading.Timer(0.01, mechanism.wake)
        waker.start()
        assert not mechanism.wait(30.0)
        waker.join()


def test_a_wake_that_came_before_the_wait_counts(mechanism: Mechanism) -> None:
    mechanism.wake()
    assert not mechanism.wait(30.0)
    assert not mechanism.wait(0.0)


def test_waking_what_is_closed_is_harmless() -> None:
    for made in (Aio(1), Threads(1)):
        made.close()
        made.wake()
        made.close()


def test_where_the_kernel_forbids_asynchronous_io_threads_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert isinstance(best_mechanism(CAPACITY), Threads)


def test_where_no_context_is_left_threads_do_it() -> None:
    limit = int(Path("/proc/sys/fs/aio-max-nr").read_text())
    assert isinstance(best_mechanism(limit + 1), Threads)


def test_otherwise_the_kernel_does_it() -> None:
    made = best_mechanism(CAPACITY)
    assert isinstance(made, Aio)
    made.close()
