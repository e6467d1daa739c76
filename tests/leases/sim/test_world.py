"""Virtual time: in order, reproducible, and cheap when everybody sleeps."""

from __future__ import annotations

from leases.sim.clock import HostClock
from leases.sim.faults import ALL, Plan
from leases.sim.world import World
from paxos.errors import LeaseholdError
from paxos.steps import now, read, sleep, write


def test_things_happen_in_the_order_of_their_times_and_of_asking_when_equal():
    world, seen = World(1), []
    for time, name in [(2, "c"), (1, "a"), (2, "d"), (1, "b")]:
        world.at(time, seen.append, name)
    world.run(until=1.5)
    assert (seen, world.now) == (["a", "b"], 1.5)
    world.run(until=9)
    assert seen == ["a", "b", "c", "d"]


def test_what_is_due_in_the_past_happens_now():
    world, seen = World(1), []
    world.at(5, lambda _: world.at(1, lambda _: seen.append(world.now)))
    world.run(until=10)
    assert seen == [5]


def test_streams_are_the_same_for_the_same_seed_and_name_and_differ_otherwise():
    assert World(7).stream("a").random() == World(7).stream("a").random()
    assert World(7).stream("a").random() != World(7).stream("b").random()
    assert World(7).stream("a").random() != World(8).stream("a").random()


def test_a_clock_runs_at_its_rate_and_stands_still_when_told():
    clock = HostClock(100.0, start=7.0, rate=1.01)
    assert clock.read(100.0) == 7.0
    assert round(clock.read(200.0), 6) == 108.0
    clock.stand_still(200.0)
    assert round(clock.read(5000.0), 6) == 108.0
    clock.run_on(5000.0)
    assert round(clock.read(5001.0), 6) == 109.01
    assert round(clock.true_delay(1.01), 6) == 1.0


def _busy(offset: int):
    """Writes and reads and sleeps for ever, whatever happens."""
    for turn in range(100_000):
        try:
            yield from write("disk", offset, turn.to_bytes(512, "little"), 1.0)
            yield from read("disk", 0, 8192, 1.0)
        except LeaseholdError:
            yield from sleep(0.3)
        yield from sleep((turn * 7919 % 100) / 100)
        yield from now()


def _run(ground, seed: int):
    it = ground(seed=seed, hosts=3, faults=ALL)
    for number, process in enumerate(it.processes):
        process.spawn("busy", _busy(512 * number))
    it.world.run(until=3600)
    return it


def test_the_same_seed_gives_the_same_run_to_the_last_event(ground):
    first, again, other = _run(ground, 3), _run(ground, 3), _run(ground, 4)
    assert first.world.trace.count > 10_000
    assert first.world.trace.digest == again.world.trace.digest
    assert list(first.world.trace.lines()) == list(again.world.trace.lines())
    assert first.plan.chosen == again.plan.chosen != []
    assert first.world.trace.digest != other.world.trace.digest


def test_leaving_faults_out_leaves_those_that_stay_as_they_were(ground):
    everything = _run(ground, 3)
    keys = [key for key, _ in everything.plan.chosen]
    kept = frozenset(keys[::2])
    fewer = Plan(3, ALL, only=kept)
    for key, kind in everything.plan.chosen:
        chosen = fewer.io_fault(key[0], key[2])
        assert (chosen[0] if chosen else None) == (kind if key in kept else None)


def test_the_trace_reads_one_line_an_event(ground):
    it = ground(hosts=1)
    it.processes[0].spawn("busy", _busy(0))
    it.world.run(until=0.5)
    text = it.world.trace.text(last=3)
    assert "W write landed on the disk" in text
    assert len(text.splitlines()) > 10
    assert "test.busy" in text.splitlines()[-1]
