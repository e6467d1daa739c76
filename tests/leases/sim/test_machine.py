"""What can happen to a process and to its machine."""

from __future__ import annotations

from paxos.errors import IOTimeout
from paxos.steps import Now, Reap, Sleep, Write, now, sleep, write


def _note_wakes(seen, seconds=10.0):
    yield from sleep(seconds)
    seen.append((yield from now()))


def test_a_task_ends_with_a_result_or_with_a_typed_error(ground):
    it, ended = ground(), []

    def returns():
        yield Sleep(1)
        return 42

    def fails():
        yield Sleep(1)
        raise IOTimeout(operation="write")

    it.processes[0].spawn("returns", returns(), ended.append)
    it.processes[0].spawn("fails", fails(), ended.append)
    it.world.run(until=2)
    assert ended[0].result == 42 and ended[0].error is None
    assert isinstance(ended[1].error, IOTimeout)
    assert it.processes[0].tasks == {}


def test_a_paused_process_misses_nothing_but_is_late(ground):
    it, seen = ground(), []
    it.processes[0].spawn("sleeper", _note_wakes(seen))
    it.world.at(5, lambda _: it.processes[0].pause())
    it.world.at(50, lambda _: it.processes[0].run_on())
    it.world.run(until=49)
    assert seen == []
    start = it.machines[0].clock.read(0.0)
    it.world.run(until=60)
    assert [wake - start for wake in seen] == [50.0]


def test_when_the_clock_stood_still_too_the_sleep_goes_on_where_it_was(ground):
    it, seen = ground(), []
    it.processes[0].spawn("sleeper", _note_wakes(seen))
    boots = it.machines[0].boots
    it.world.at(5, lambda _: it.machines[0].suspend(clock_still=True))
    it.world.at(50, lambda _: it.machines[0].wake(boots))
    it.world.run(until=54)
    assert seen == []
    it.world.run(until=56)
    assert len(seen) == 1


def test_a_killed_process_takes_no_further_step_and_its_write_lands_all_the_same(ground):
    it, seen, gone = ground(), [], []

    def writer():
        yield from write("disk", 0, b"x" * 512, 1.0)
        seen.append("acknowledged")

    process = it.processes[0]
    process.on_gone = lambda process: gone.append(it.world.now)
    process.spawn("writer", writer())
    it.world.at(0.0001, lambda _: process.kill())
    it.world.run(until=0.0002)
    assert gone == []  # its I/O is still in flight
    it.world.run(until=1)
    assert seen == [] and bytes(it.disk.view[:3]) == b"xxx"
    assert len(gone) == 1


def _renewed(it, times, every=2.0):
    """A process that renews its watchdog `times` times, each time until 8 seconds later."""
    machine = it.machines[0]

    def renewals():
        for _ in range(times):
            machine.watchdog.renew((yield from now()) + 8)
            yield Sleep(every)

    it.processes[0].spawn("renewals", renewals())


def test_a_watchdog_resets_the_machine_when_it_is_not_renewed_and_never_after_its_deadline(ground):
    it, resets = ground(), []
    machine = it.machines[0]
    machine.watchdog_early = 12.0
    machine.on_reset = lambda machine: resets.append(it.world.now)
    _renewed(it, 10)
    it.world.run(until=1000)
    last_feed = 18 + 8 - machine.margin
    assert len(resets) == 1 and last_feed + 48 <= resets[0] <= last_feed + 60.001
    assert not machine.up and machine.processes == {}


def test_a_watchdog_that_has_expired_is_not_fed_again(ground):
    it, resets = ground(), []
    it.machines[0].on_reset = lambda machine: resets.append(it.world.now)
    _renewed(it, 10, every=6.5)
    it.world.run(until=1000)
    assert [round(time) for time in resets] == [6 + 60]


def test_a_disarmed_watchdog_does_nothing(ground):
    it = ground()
    _renewed(it, 1)
    it.world.at(30, lambda _: it.machines[0].watchdog.disarm())
    it.world.run(until=1000)
    assert it.machines[0].up


def test_the_watchdog_of_a_suspended_machine_counts_on_whatever_its_clock_does(ground):
    for still in (False, True):
        it, resets = ground(), []
        it.machines[0].on_reset = lambda machine, resets=resets, it=it: resets.append(it.world.now)
        _renewed(it, 1000)
        it.world.at(101, lambda _, it=it, still=still: it.machines[0].suspend(clock_still=still))
        it.world.run(until=1000)
        assert resets == [101 + 60]


def test_a_machine_that_wakes_with_its_clock_behind_is_fed_again(ground):
    """That is what makes a clock that stands still so dangerous: its own time says that nothing happened."""
    it = ground()
    machine = it.machines[0]
    _renewed(it, 1)
    boots = machine.boots
    it.world.at(1, lambda _: machine.suspend(clock_still=True))
    it.world.at(51, lambda _: machine.wake(boots))
    it.world.run(until=55)
    assert machine.watchdog.deadline == 55 + 60


def test_a_machine_comes_up_with_a_new_clock_and_an_unarmed_watchdog(ground):
    it = ground()
    machine = it.machines[0]
    _renewed(it, 1)
    it.world.run(until=500)
    assert not machine.up
    machine.boot()
    assert machine.up and not machine.watchdog.armed
    assert machine.clock.read(it.world.now) < 100


def test_a_write_of_a_machine_that_was_reset_may_land_later_or_never(ground):
    landed = set()
    for seed in range(30):
        it = ground(seed=seed)
        it.paths[0].go_down(until=200)
        it.processes[0].spawn("writer", write("disk", 0, b"x" * 512, 1.0))
        it.world.at(100, lambda _, it=it: it.machines[0].reset("by hand"))
        it.world.run(until=100)
        assert it.disk.view[0] == 0
        it.world.run(until=1000)
        landed.add(it.disk.view[0] == ord("x"))
    assert landed == {True, False}


def test_an_overdue_write_can_be_reaped(ground):
    it, seen = ground(), []

    def writer():
        try:
            yield Write("disk", 0, b"x" * 512, 1.0)
        except IOTimeout as timeout:
            seen.append("timeout")
            try:
                yield Reap(timeout.pending, 5.0)
            except IOTimeout as again:
                assert again.pending is timeout.pending
                seen.append("still not")
            yield Reap(timeout.pending, 1000.0)
            seen.append("reaped")
            yield Now()

    for seed in range(20):
        it = ground(seed=seed)
        seen.clear()
        it.paths[0].go_down(until=30)
        it.processes[0].spawn("writer", writer())
        it.world.run(until=100)
        if "reaped" in seen:
            break
    assert seen == ["timeout", "still not", "reaped"]
