"""Engines shared by threads, Ctrl-C that waits, aborts that are passed on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from leases.aborting import passing_on
from leases.engines import Engines, ctrl_c_waits
from leases.volume import Volume
from paxos.disk.abort import AbortSignal
from paxos.errors import Aborted
from paxos.steps import Steps, sleep


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_engines_are_used_again() -> None:
    engines = Engines()
    with engines.engine() as first:
        pass
    with engines.engine() as second, engines.engine() as third:
        assert second is first and third is not first
    engines.close()


def test_a_volume_that_is_forgotten_leaves_nothing_open(volume: Volume) -> None:
    volume.probe()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Volume(volume.path).probe()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits() as ctrl_c:
        press_ctrl_c()
        assert ctrl_c.pressed
        done.append(True)
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_pressed_twice_it_does_not_wait() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
        press_ctrl_c()
        press_ctrl_c()
        done.append(True)
    assert not done


def test_ctrl_c_ends_what_merely_waits() -> None:
    abort = AbortSignal()

    def steps() -> Steps[None]:
        press_ctrl_c()
        yield from sleep(1000)

    engines = Engines()
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits(abort):
        engines.run(steps(), abort)
    engines.close()


def test_a_programs_own_handler_is_left_alone() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        with ctrl_c_waits() as ctrl_c:
            press_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed and not ctrl_c.pressed


def test_other_threads_have_nothing_to_do_with_ctrl_c() -> None:
    found = []

    def work() -> None:
        with ctrl_c_waits():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_an_abort_is_passed_on_whenever_it_comes() -> None:
    target, early, late, after = AbortSignal(), AbortSignal(), AbortSignal(), AbortSignal()
    early.set("early")
    with passing_on(early, None, late, to=target.set):
        assert target.reason == "early"
    reasons: list[str] = []
    with passing_on(late, after, to=reasons.append):
        late.set("late")
    after.set("after")
    assert reasons == ["late"]


def test_one_of_several_sources_ends_a_wait() -> None:
    target, source = AbortSignal(), AbortSignal()
    engines = Engines()
    threading.Timer(0.05, source.set, ("enough",)).start()
    start = time.monotonic()
    with passing_on(source, to=target.set), pytest.raises(Aborted, match="enough"):
        engines.run(sleep(1000), target)
    assert time.monotonic() - start < 100
    engines.close()
