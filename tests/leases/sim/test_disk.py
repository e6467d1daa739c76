"""Every fault of the disk can be seen by somebody, and does what it says."""

from __future__ import annotations

import pytest

from leases.sim.faults import ALL, NONE, PROFILES, Faults, Plan
from paxos.errors import DiskError, InvalidUse, IOTimeout, ShortIO
from paxos.steps import Read, Write, now, read, sleep, write

OLD, NEW = b"o" * 512, b"n" * 512


def _io(step, seen):
    """Do one I/O and note what came of it, and when."""
    start = yield from now()
    try:
        value = yield step
        result = None if value is None else bytes(value)
    except DiskError as error:
        result = error
    seen.append((result, (yield from now()) - start))


def _outcomes(ground, faults, step, runs=60, until=2000.0, before=None):
    """Outcome of a single faulty I/O for many seeds, with the disk after it."""
    found = []
    for seed in range(runs):
        it, seen = ground(seed=seed, hosts=1, faults=faults), []
        it.disk.put(0, OLD * 8)
        it.world.run(until=1)
        if before:
            before(it)
        it.processes[0].spawn("io", _io(step, seen))
        it.world.run(until=until)
        found.append((*seen[0], it))
    return found


WRITE, WIDE_WRITE = Write("disk", 0, NEW, 1.0), Write("disk", 0, NEW * 8, 1.0)
READ = Read("disk", 0, 4096, 1.0)


def test_without_faults_an_io_takes_milliseconds(ground):
    for result, took, it in _outcomes(ground, NONE, WRITE, runs=5):
        assert result is None and took < 0.01 and it.disk.view[0] == NEW[0]


def test_slow_takes_up_to_its_timeout_but_not_longer(ground):
    took = [took for result, took, _ in _outcomes(ground, Faults(slow=1), WRITE) if result is None]
    assert len(took) == 60 and max(took) <= 1.0 and max(took) > 0.3


def test_hung_times_out_and_never_happens(ground):
    for result, took, it in _outcomes(ground, Faults(hung=1), WRITE):
        assert isinstance(result, IOTimeout) and took == pytest.approx(1.0)
        assert it.disk.view[0] == OLD[0]
        assert it.processes[0].in_flight == 0  # the kernel gave it back in the end


def test_late_times_out_and_lands_later_also_minutes_later(ground):
    landed_at = []
    for seed in range(60):
        it = ground(seed=seed, hosts=1, faults=Faults(late=1))
        it.processes[0].spawn("io", _io(WRITE, []))
        it.world.run(until=1.001)
        assert it.disk.view[0] == 0
        while it.disk.view[0] != NEW[0]:
            it.world.run(until=it.world.now + 1)
        landed_at.append(it.world.now)
    assert min(landed_at) < 10 and max(landed_at) > 120


def test_error_fails_and_the_write_may_have_landed(ground):
    found = _outcomes(ground, Faults(error=1), WRITE)
    assert all(type(result) is DiskError for result, _, _ in found)
    assert {it.disk.view[0] for _, _, it in found} == {OLD[0], NEW[0]}


def test_unacked_lands_at_once_and_says_so_late(ground):
    found = _outcomes(ground, Faults(unacked=1), WRITE)
    assert all(it.disk.view[0] == NEW[0] for _, _, it in found)
    assert any(isinstance(result, IOTimeout) for result, _, _ in found)


def test_torn_leaves_part_of_the_sectors_and_never_part_of_one(ground):
    found = _outcomes(ground, Faults(torn=1), WIDE_WRITE, until=5.0)
    partly = 0
    for _, _, it in found:
        sectors = [bytes(it.disk.view[at : at + 512]) for at in range(0, 4096, 512)]
        assert set(sectors) <= {OLD, NEW}
        partly += len(set(sectors)) == 2
    assert partly > 10


def _overwritten_meanwhile(it):
    def overwrite():
        for sector in range(8):
            it.disk.put(sector * 512, NEW)
            yield from sleep(0.02)

    it.processes[0].spawn("other", overwrite())


def test_split_sees_the_parts_of_a_read_at_different_times(ground):
    seen = {result for result, _, _ in _outcomes(ground, Faults(split=1), READ, before=_overwritten_meanwhile)}
    assert any(
        isinstance(result, bytes) and b"on" in result for result in seen
    )  # a later sector is newer than an earlier one


def test_early_sees_the_disk_some_time_before_it_is_answered(ground):
    found = _outcomes(ground, Faults(early=1), Read("disk", 512, 512, 1.0), before=_overwritten_meanwhile)
    assert any(result == OLD and took > 0.1 for result, took, _ in found)


def test_misdirected_hits_another_sector_and_says_that_all_went_well(ground):
    for result, _, it in _outcomes(ground, Faults(misdirected=1), WRITE):
        assert result is None and it.disk.view[0] == OLD[0] and NEW in bytes(it.disk.view)


def test_stale_sees_the_disk_of_seconds_ago(ground):
    found = _outcomes(
        ground,
        Faults(stale=1, stale_s=15),
        READ,
        before=lambda it: (it.world.run(until=20), it.disk.put(0, NEW), it.world.run(until=21)),
    )
    assert {result[0] for result, _, _ in found} == {OLD[0], NEW[0]}


def test_an_outage_stops_everything_of_one_host_and_only_of_that(ground):
    it, here, there = ground(), [], []
    it.paths[0].go_down(until=100)
    it.processes[0].spawn("io", _io(WRITE, here))
    it.processes[1].spawn("io", _io(READ, there))
    it.world.run(until=50)
    assert isinstance(here[0][0], IOTimeout) and isinstance(there[0][0], bytes)
    assert it.disk.view[0] == 0


def test_an_io_beyond_the_end_moves_too_little(ground):
    it, seen = ground(), []
    it.processes[0].spawn("io", _io(Read("disk", 4 << 20, 512, 1.0), seen))
    it.world.run(until=1)
    assert isinstance(seen[0][0], ShortIO)


def test_a_read_that_timed_out_brings_the_bytes_of_when_it_happened(ground):
    it = ground(hosts=1, faults=Faults(late=1))
    brought = []

    def reader():
        try:
            yield from read("disk", 0, 512, 1.0)
        except IOTimeout as timeout:
            yield from sleep(400)
            it.disk.put(0, NEW)
            view = timeout.pending.value
            brought.append(bytes(view[:1]))

    it.disk.put(0, OLD)
    it.processes[0].spawn("reader", reader())
    it.world.run(until=1000)
    assert brought == [b"o"]


def test_the_past_of_the_disk_is_remembered(ground):
    it = ground(faults=Faults(stale=1, stale_s=30))
    for second in range(10):
        it.world.run(until=second + 1)
        it.disk.put(512, bytes([second]) * 512)
    assert [it.disk.past(0, 1536, time + 1.5)[512] for time in range(10)] == list(range(10))


def test_every_kind_of_fault_is_chosen_about_as_often_as_its_rate_says():
    plan = Plan(1, Faults(late=0.02, error=0.01))
    assert plan.io_rate == pytest.approx(0.03)
    chosen = [fault[0] for moment in range(3000) if (fault := plan.io_fault(1, moment))]
    assert 1900 < chosen.count("late") < 2100 and 900 < chosen.count("error") < 1100


def test_an_io_meets_a_fault_as_often_as_the_rate_says(ground):
    it = ground(hosts=1, faults=Faults(slow=0.1))

    def many():
        for _ in range(5000):
            yield from read("disk", 0, 512, 1.0)

    it.processes[0].spawn("many", many())
    it.world.run(until=1000)
    assert 400 < len(it.plan.chosen) < 600


def test_profiles_and_rates_are_read_from_text():
    assert Faults.parse("all") == ALL and Faults.parse("") == NONE
    mixed = Faults.parse("gentle, late=0.5 ,kill=3")
    assert (mixed.late, mixed.kill, mixed.slow) == (0.5, 3.0, PROFILES["gentle"].slow)
    for bad in ("everything", "late=much", "tardy=1", "late=2", "kill=-1"):
        with pytest.raises(InvalidUse):
            Faults.parse(bad)


def test_all_means_all():
    assert all(getattr(ALL, name) > 0 for name in Faults.__slots__)


def test_quiet_chooses_no_new_fault(ground):
    it, seen = ground(hosts=1, faults=Faults(hung=1)), []
    it.plan.quiet = True
    it.processes[0].spawn("io", write("disk", 0, NEW, 1.0), seen.append)
    it.world.run(until=1)
    assert seen[0].error is None
