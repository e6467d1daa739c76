"""Steps: a protocol only asks; results and failures come from whoever drives it."""

from __future__ import annotations

import pytest

from paxos.errors import DiskError, IOTimeout
from paxos.steps import Now, Pending, Read, Reap, Sleep, Steps, Write, now, read, reap, sleep, write
from tests.support.memory import Endless, MemoryWorld


def test_each_typed_form_asks_for_its_one_step() -> None:
    pending = Pending(Read("d", 0, 512, 1.0))
    assert next(read("d", 0, 512, 1.0)) == Read("d", 0, 512, 1.0)
    assert next(write("d", 0, b"x", 1.0)) == Write("d", 0, b"x", 1.0)
    assert next(sleep(2.0)) == Sleep(2.0)
    assert next(now()) == Now()
    assert next(reap(pending, 3.0)) == Reap(pending, 3.0)


def test_what_is_sent_back_is_the_result() -> None:
    steps = now()
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(7.5)
    assert end.value.value == 7.5


def test_steps_cannot_be_changed_after_they_were_asked_for() -> None:
    for step in (Read("d", 0, 512, 1.0), Write("d", 0, b"", 1.0), Sleep(1.0), Now()):
        with pytest.raises((AttributeError, TypeError)):
            step.disk = "e"  # type: ignore[union-attr, misc]


def copy_of_sector(results: list[str]) -> Steps[bytes]:
    try:
        view = yield from read("d", 0, 512, 1.0)
    except IOTimeout as late:
        results.append("timeout")
        again = yield from reap(late.pending, 5.0)
        assert again is not None
        return bytes(again)
    except DiskError:
        results.append("error")
        return b""
    return bytes(view)


def test_an_overdue_read_brings_what_the_disk_gave_at_last() -> None:
    world = MemoryWorld(d=512)
    world.disks["d"][:3] = b"abc"
    world.verdict = lambda _step: "late"
    seen: list[str] = []
    running = world.start(copy_of_sector(seen))
    running.advance()
    world.disks["d"][:3] = b"xyz"
    world.late[0].land()
    assert running.finish()[:3] == b"xyz" and seen == ["timeout"]
    assert world.time == 1001.0


def test_failures_of_a_step_are_thrown_into_the_protocol() -> None:
    world = MemoryWorld(d=512)
    world.verdict = lambda _step: "fail"
    seen: list[str] = []
    assert world.run(copy_of_sector(seen)) == b"" and seen == ["error"]


def test_reading_beyond_the_end_of_the_disk_is_a_short_io() -> None:
    world = MemoryWorld(d=512)
    with pytest.raises(DiskError) as raised:
        world.run(read("d", 512, 512, 1.0))
    assert raised.value.code == -90


def test_a_protocol_that_never_ends_is_stopped() -> None:
    def for_ever() -> Steps[None]:
        while True:
            yield from sleep(1.0)

    with pytest.raises(Endless):
        MemoryWorld().run(for_ever(), within=10.0)
