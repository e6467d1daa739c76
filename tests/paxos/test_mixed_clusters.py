"""Clusters of leasehold and reference hosts, interleaved I/O by I/O, with late, lost and failing I/O and crashes.

Where test_late_writes.py tells every story with one late write, this one lets chance tell stories with several, among
hosts that share, convert, crash and come back. The rules are the same: one owner, no way back, usable again. A run
ends where two reference hosts betray each other. Writes of a reference host's own block land only while it rests:
against its own late write over its own later block it has no defence, and neither has anybody else.
"""

from __future__ import annotations

import random

import pytest

from leases.sim import reference
from paxos import resource
from paxos.errors import DiskError, HeldElsewhere, LeaseholdError, ReleaseOwner, TryAgain
from paxos.geometry import MIB, Geometry
from paxos.resource import Held, Want
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Read, Sleep, Steps, Write
from tests.support.cluster import Cluster
from tests.support.memory import Landed, Running

GEOMETRY = Geometry(4096, MIB)
#: what a client may be told without anything being in doubt
REFUSED = (HeldElsewhere, TryAgain)


class ReferenceBetrayed(Exception):
    """Two reference hosts hold the lease, which they do among themselves."""


class World:
    """One run. `kinds`: "l" for each leasehold host, "r" for each of the reference."""

    def __init__(self, seed: int, kinds: str) -> None:
        self.dice = random.Random(f"{seed}/{kinds}")
        self.cluster = Cluster(GEOMETRY, num_hosts=8)
        self.memory = self.cluster.world
        self.hosts = [self.cluster.join(number, reference=kind == "r") for number, kind in enumerate(kinds, 1)]
        self.cluster.keep_alive(*self.hosts)
        self.memory.pass_time(3)
        self.faults_left = self.dice.choice([1, 2, 3, 6])
        self.fault_rate = self.dice.choice([0.003, 0.01, 0.03])
        self.crash_rate = self.dice.choice([0, 0, 0.001, 0.004])
        self.memory.verdict = self.fate
        self.held: dict[int, Held] = {}
        self.resting = [False] * len(kinds)
        self.grants = [0] * len(kinds)
        self.goal: list[int] | None = None
        self.last_lver = 0
        #: the generation in which a host's late write was sent
        self.sent_by: dict[int, int] = {}
        self.running: list[Running | None] = [self.memory.start(self.client(i)) for i in range(len(kinds))]
        self.wakes = [0.0] * len(kinds)
        self.down: dict[int, float] = {}

    # --- what goes wrong ---

    def fate(self, step: Read | Write) -> str | None:
        if self.goal is not None or step.offset < self.cluster.lease.place.offset or not self.faults_left:
            return None
        if self.dice.random() > self.fault_rate:
            return None
        self.faults_left -= 1
        return "fail" if self.dice.random() < 0.15 else "late"

    def writer(self, late: Landed) -> int | None:
        """The host whose own block it is."""
        if not isinstance(late.step, Write):
            return None
        sector = (late.step.offset - self.cluster.lease.place.offset) // GEOMETRY.sector_size
        return sector - 2 if 2 <= sector < 2 + len(self.hosts) else None

    def may_land(self, late: Landed) -> bool:
        host = self.writer(late)
        if host is None:
            return True
        earlier_life = self.sent_by[id(late)] != self.hosts[host].member.generation
        return self.resting[host] or not (self.hosts[host].reference or earlier_life)

    def land_some(self, rate: float) -> None:
        for late in self.memory.late:
            host = self.writer(late)
            self.sent_by.setdefault(id(late), self.hosts[host].member.generation if host is not None else 0)
            if not late.landed and self.dice.random() < rate and self.may_land(late):
                (late.lose if self.dice.random() < 0.15 else late.land)()

    def crash(self, host: int) -> None:
        running = self.running[host]
        if running is None:
            return
        running.protocol.close()
        self.running[host] = None
        self.held.pop(host, None)
        self.cluster.alive.remove(self.hosts[host])
        away = self.dice.uniform(0.1, 5) if self.dice.random() < 0.6 else self.dice.uniform(60, 120)
        self.down[host] = self.memory.time + away

    def come_back(self, host: int) -> None:
        del self.down[host]
        self.hosts[host] = self.cluster.join(host + 1, reference=self.hosts[host].reference)
        self.cluster.alive.append(self.hosts[host])
        self.resting[host] = False
        self.running[host] = self.memory.start(self.client(host))

    # --- what clients do ---

    def client(self, me: int) -> Steps[None]:
        """Acquire, hold, convert, release, for ever; after an I/O error settle first, as a lease program must."""
        keep: Held | None = None
        while True:
            doubt: DiskError | None = None
            try:
                held = keep or (yield from self.acquire(me))
                keep = None
                yield from self.hold()
                if held.shared and not self.hosts[me].reference and self.dice.random() < 0.3 and self.goal is None:
                    held, keep = (yield from self.convert(me, held)), None
                    yield from self.hold()
                del self.held[me]
                by = reference if self.hosts[me].reference else resource
                yield from by.release(self.hosts[me].member, held)
            except DiskError as error:
                doubt, keep = error, self.held.get(me)
            except REFUSED:
                keep = self.held.get(me)
            except ReleaseOwner:
                pass
            if doubt is not None and not self.hosts[me].reference:
                yield from self.settled(me, doubt, keep)

    def acquire(self, me: int) -> Steps[Held]:
        self.resting[me] = True
        yield Sleep(self.dice.expovariate(1.0))
        while self.goal is not None and self.grants[me] >= self.goal[me]:
            yield Sleep(1.0)
        self.resting[me] = False
        by = reference if self.hosts[me].reference else resource
        want = Want(shared=self.dice.random() < 0.3, nowait=True)
        held: Held = yield from by.acquire(self.hosts[me].member, self.cluster.lease, want)
        self.granted(me, held)
        return held

    def hold(self) -> Steps[None]:
        yield Sleep(self.dice.expovariate(0.7) if self.goal is None else 0.1)

    def convert(self, me: int, held: Held) -> Steps[Held]:
        after = yield from resource.convert_to_exclusive(self.hosts[me].member, held, nowait=True)
        del self.held[me]
        self.granted(me, after)
        return after

    def settled(self, me: int, error: DiskError, keep: Held | None) -> Steps[None]:
        in_flight: list[Pending] = []
        failure: DiskError | None = error
        while failure is not None:
            pending = pending_of(failure)
            if pending is not None and pending not in in_flight:
                in_flight.append(pending)
            try:
                yield from settle(self.hosts[me].member, self.cluster.lease, in_flight, keep)
                failure = None
            except DiskError as again:
                failure = again
                yield Sleep(self.dice.uniform(0.1, 3))

    def granted(self, me: int, held: Held) -> None:
        self.grants[me] += 1
        for other, theirs in self.held.items():
            if other != me and not (held.shared and theirs.shared):
                if self.hosts[me].reference and self.hosts[other].reference:
                    raise ReferenceBetrayed
                raise AssertionError(f"two owners: hosts {me + 1} and {other + 1}")
        if not self.hosts[me].reference:
            assert held.lver > self.last_lver, "the version went back"
            self.last_lver = held.lver
        self.held[me] = held

    # --- running it ---

    def step(self) -> None:
        """One step of one host that is ready, or time goes on to the next that wakes."""
        for host in [host for host, back in self.down.items() if back <= self.memory.time or self.goal]:
            self.come_back(host)
        ready = [host for host, running in enumerate(self.running) if running is not None and self.is_ready(host)]
        if not ready:
            waiting = [self.wakes[host] for host, running in enumerate(self.running) if running is not None]
            self.memory.pass_time(max(0.0, min(waiting + list(self.down.values())) - self.memory.time) + 1e-6)
            return
        host = self.dice.choice(ready)
        running = self.running[host]
        assert running is not None
        if isinstance(running.step, Sleep):
            running.wake()
        else:
            running.advance()
        if running.failure is not None:
            raise running.failure
        if isinstance(running.step, Sleep):
            self.wakes[host] = self.memory.time + running.step.seconds

    def is_ready(self, host: int) -> bool:
        running = self.running[host]
        assert running is not None
        return not isinstance(running.step, Sleep) or self.wakes[host] <= self.memory.time

    def live(self, steps: int) -> None:
        for _ in range(steps):
            if self.crash_rate and self.dice.random() < self.crash_rate:
                self.crash(self.dice.randrange(len(self.hosts)))
            self.step()
            self.land_some(0.004)

    def come_to_rest(self) -> None:
        """Nothing goes wrong any more: everybody must get the lease once again."""
        self.goal = [grants + 1 for grants in self.grants]
        for late in self.memory.late:
            self.sent_by.setdefault(id(late), 0)
            if not late.landed:
                (late.land if self.may_land(late) else late.lose)()
        end = self.memory.time + 400
        while any(grants < goal for grants, goal in zip(self.grants, self.goal, strict=True)):
            assert self.memory.time < end, f"not usable any more: {self.grants}, wanted {self.goal}"
            self.step()


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["ll", "lll", "llll", "lr", "llr", "lrr", "llrr"])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_there_is_one_owner_at_a_time_and_then_one_again(kinds: str, seed: int) -> None:
    world = World(seed, kinds)
    try:
        world.live(world.dice.choice([300, 800, 1500]))
        world.come_to_rest()
    except ReferenceBetrayed:
        assert kinds.count("r") > 1
    except LeaseholdError as error:
        raise AssertionError(f"a client was told what nobody could expect: {error!r}") from error
