"""Aborting: a protocol hears of it where it merely waits, once, and can tidy up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from paxos.disk.abort import AbortSignal
from paxos.disk.aio import Aio
from paxos.disk.engine import Engine
from paxos.disk.threads import Threads
from paxos.errors import Aborted, IOTimeout
from paxos.steps import Read, Reap, Sleep, Steps, Write, now
from tests.support.storage import LateDisk, PlainDisk

LONG = 30.0


@pytest.fixture(params=[Aio, Threads])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(mechanism=request.param) as made:
        yield made


@pytest.fixture
def abort() -> AbortSignal:
    return AbortSignal()


def sleeper(disk: str) -> Steps[str]:
    """Sleeps, and tidies up with every kind of step when it is aborted."""
    try:
        yield Sleep(LONG)
    except Aborted as aborted:
        yield Write(disk, 512, b"tidy" * 128, LONG)
        yield Sleep(0.01)
        view: memoryview = yield Read(disk, 512, 4096, LONG)
        return f"{aborted.reason}, {bytes(view[:4]).decode()}"
    raise AssertionError("slept to the end")


def test_a_sleeping_protocol_is_woken_by_another_thread(
    engine: Engine, abort: AbortSignal, plain_disk: PlainDisk
) -> None:
    threading.Timer(0.05, abort.set, args=("shutting down",)).start()
    assert engine.run(sleeper(plain_disk.path), abort) == "shutting down, tidy"


def test_all_that_sleep_are_woken(engine: Engine, abort: AbortSignal, plain_disk: PlainDisk) -> None:
    threading.Timer(0.05, abort.set, args=("stop",)).start()
    results = engine.run_all([sleeper(plain_disk.path) for _ in range(20)], abort)
    assert results == ["stop, tidy"] * 20


def test_a_signal_handler_may_abort(engine: Engine, abort: AbortSignal, plain_disk: PlainDisk) -> None:
    before = signal.signal(signal.SIGALRM, lambda number, frame: abort.set("signal"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert engine.run(sleeper(plain_disk.path), abort) == "signal, tidy"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_one_who_does_io_hears_of_it_at_the_next_sleep(
    engine: Engine, abort: AbortSignal, plain_disk: PlainDisk
) -> None:
    def protocol() -> Steps[str]:
        yield Write(plain_disk.path, 0, b"1" * 512, LONG)
        abort.set()
        yield Write(plain_disk.path, 512, b"2" * 512, LONG)
        try:
            yield Sleep(LONG)
        except Aborted:
            return "aborted while asleep"
        raise AssertionError

    assert engine.run(protocol(), abort) == "aborted while asleep"
    assert plain_disk.read(0, 1024) == b"1" * 512 + b"2" * 512


def test_one_that_ends_without_waiting_ends_well(engine: Engine, abort: AbortSignal, plain_disk: PlainDisk) -> None:
    def protocol() -> Steps[str]:
        yield Write(plain_disk.path, 0, b"1" * 512, LONG)
        abort.set()
        yield Read(plain_disk.path, 0, 512, LONG)
        return "done"

    assert engine.run(protocol(), abort) == "done"


def test_what_is_aborted_beforehand_does_not_begin(engine: Engine, abort: AbortSignal) -> None:
    abort.set("too late")
    with pytest.raises(Aborted, match="too late"):
        engine.run(now(), abort)


def test_the_first_reason_counts(abort: AbortSignal) -> None:
    assert not abort.is_set()
    abort.set("first")
    abort.set("second")
    assert abort.is_set()
    assert abort.reason == "first"


@pytest.mark.storage
def test_waiting_for_an_overdue_write_can_be_aborted(engine: Engine, abort: AbortSignal, late_disk: LateDisk) -> None:
    late_disk.hold("a")

    def protocol() -> Steps[bool]:
        try:
            yield Write(late_disk.path, 512, b"x" * 512, 0.05)
        except IOTimeout as failure:
            threading.Timer(0.05, abort.set).start()
            with pytest.raises(Aborted):
                yield Reap(failure.pending, LONG)
            yield Sleep(0.01)
            late_disk.release()
            yield Reap(failure.pending, LONG)
            return True
        raise AssertionError

    assert engine.run(protocol(), abort)


@pytest.mark.storage
def test_a_write_in_flight_is_seen_through(engine: Engine, abort: AbortSignal, late_disk: LateDisk) -> None:
    rule = late_disk.hold("a")
    order: list[str] = []

    def protocol() -> Steps[None]:
        yield Write(late_disk.path, 512, b"x" * 512, LONG)
        order.append("written")
        yield Sleep(LONG)

    def another_thread() -> None:
        late_disk.wait_held(rule)
        abort.set()
        order.append("set")
        late_disk.release(rule)

    thread = threading.Thread(target=another_thread)
    thread.start()
    with pytest.raises(Aborted):
        engine.run(protocol(), abort)
    thread.join()
    assert order == ["set", "written"]
    assert late_disk.read(512, 512) == b"x" * 512
