"""Contention in virtual time: how soon one of N hosts gets a free lease, and all of them; and who gets how much.

    python -m bench.contention [--seeds 5] [--hosts 2 4 8 ...] [--minutes 5]

The very protocols run against the simulator's disk: every I/O takes 0.4 to 2 ms, whatever its size and whoever else
has one. Hosts follow leasehold's rules, the reference's, or half of them each. A host that is refused waits in the
same way by either rules (leases/waiting.py) and tries again, so that what differs is the ballots and their back-off.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from leases.sim.checkers import Holding, Judge, Membership, all_rules
from leases.sim.disk import Path, SimDisk
from leases.sim.faults import NONE, Plan
from leases.sim.layout import Layout
from leases.sim.machine import Machine, Process
from leases.sim.rules import Leasehold, Reference, Rules
from leases.sim.trace import Trace
from leases.sim.world import World
from leases.waiting import until_worth_a_try
from paxos.errors import LeaseholdError
from paxos.lease_area import LeaseArea
from paxos.liveness import HostHistory, Member
from paxos.lockspace_area import LockspaceArea
from paxos.records import Leader
from paxos.resource import Want
from paxos.steps import now, sleep
from paxos.timing import Timing

HOSTS = (2, 4, 8, 16, 32, 64, 128, 200)
_TIMING = Timing(10, 60)
_LAYOUT_IO_TIMEOUT = 10
#: whose rules the hosts of a rush follow
_CASTS = ("ours", "reference", "mixed")
#: seconds for which a host uses the lease, and rests before it wants it again
HOLD_S = 0.02
REST_S = 0.02
#: true seconds after which a rush has failed
_PATIENCE_S = 3600.0


class EverybodyLives:
    """Stands in for a HostTable: every host has been seen to renew just now."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world, self._machine = world, machine

    def get(self, host_id: int) -> HostHistory:
        seen = self._machine.clock.read(self._world.now)
        return HostHistory(host_id, host_id, 1, b"host", 1, _TIMING.io_timeout, 1.0, seen, seen)

    def shared_holder_alive(self, host_id: int, generation: int) -> bool:
        return True


@dataclass(slots=True)
class Served:
    """When (true seconds) whom the lease was granted, and how often anybody was refused."""

    grants: list[tuple[float, int]] = field(default_factory=list)
    refusals: int = 0

    @property
    def all_s(self) -> float:
        return self.grants[-1][0]

    def shares(self, hosts: int) -> list[float]:
        """Each host's share of the grants."""
        return [sum(host == one for _, host in self.grants) / len(self.grants) for one in range(1, hosts + 1)]


class Contest:
    """N hosts, and one lease that all of them want. `rules` has one entry a host."""

    def __init__(self, seed: int, rules: list[Rules]) -> None:
        self.layout = Layout(1, max(8, len(rules)), _LAYOUT_IO_TIMEOUT)
        self.world = World(seed, Judge(all_rules(self.layout)), Trace(10))
        self.served = Served()
        self.running = len(rules)
        self._rules = rules
        disk = self.layout.make(self.world)
        plan = Plan(seed, NONE, None)
        self._machines = []
        for number in range(1, len(rules) + 1):
            self._join(disk, number)
            machine = Machine(self.world, number, fire=60, margin=_TIMING.feed_margin)
            Path(machine, disk, plan)
            self._machines.append(machine)

    def first_of_rush(self) -> float:
        """Everybody wants it at once: true seconds until one has it."""
        self._start(turns=1, until=_PATIENCE_S)
        while not self.served.grants:
            self.world.run(self.world.now + 0.005)
        return self.served.grants[0][0]

    def rush(self) -> Served:
        """Everybody wants it at once, once."""
        self._start(turns=1, until=_PATIENCE_S)
        while self.running and self.world.now < _PATIENCE_S:
            self.world.run(self.world.now + 1.0)
        assert not self.running, "not everybody was served"
        return self.served

    def loop(self, seconds: float) -> Served:
        """Everybody wants it again and again, for so long."""
        self._start(turns=1 << 60, until=seconds)
        self.world.run(seconds)
        return self.served

    def _join(self, disk: SimDisk, number: int) -> None:
        """Host ids are taken already: whole lockspaces start elsewhere (leases/sim/host.py)."""
        offset, size = self.layout.geometry.delta_offset(number), self.layout.geometry.sector_size
        fresh = Leader.unpack(disk.view[offset : offset + size])
        name = b"host".ljust(48, b"\0")
        disk.put(
            offset, fresh.changed(owner_id=number, owner_generation=1, timestamp=1, resource_name=name).sector(size)
        )

    def _start(self, turns: int, until: float) -> None:
        for machine, rules in zip(self._machines, self._rules, strict=True):
            machine.boot()
            process = Process(machine, "d")
            process.host_id = machine.number
            process.reference = rules.reference
            self.world.judge.joined(Membership(process, machine.number, 1))
            process.spawn("user", self._user(process, rules, turns, until))

    def _user(self, process: Process, rules: Rules, turns: int, until: float) -> Generator[Any, Any, None]:
        machine, number = process.machine, process.host_id
        layout, judge = self.layout, self.world.judge
        lease = LeaseArea(layout.lockspace, layout.name(1), layout.place(1), layout.geometry)
        area = LockspaceArea(layout.lockspace, layout.lockspace_place, layout.geometry)
        hosts: Any = EverybodyLives(self.world, machine)
        member = Member(area, number, 1, _TIMING, hosts, machine.random)
        while turns and self.world.now < until:
            try:
                held = yield from rules.acquire(member, lease, Want())
            except LeaseholdError as refused:
                self.served.refusals += 1
                yield from until_worth_a_try(member, lease, refused, (yield from now()) + 3600)
                continue
            holding = Holding(1, True, process, number, 1, held.lver)
            judge.granted(holding)
            self.served.grants.append((self.world.now, number))
            yield from sleep(HOLD_S)
            judge.letting_go(holding)
            judge.released(holding)
            yield from rules.release(member, held)
            turns -= 1
            if turns:
                yield from sleep(machine.random.uniform(0, 2 * REST_S))
        self.running -= 1


def by_rules(hosts: int, who: str) -> list[Rules]:
    """`who`: ours, reference, or mixed: every second host follows the reference's rules."""
    turns: dict[str, list[Rules]] = {
        "ours": [Leasehold()],
        "reference": [Reference()],
        "mixed": [Leasehold(), Reference()],
    }
    return [turns[who][number % len(turns[who])] for number in range(hosts)]


def first_winner(hosts: int, who: str, seeds: int) -> list[float]:
    """True seconds until one host of a rush has the lease, ascending."""
    return sorted(Contest(seed, by_rules(hosts, who)).first_of_rush() for seed in range(seeds))


def all_served(hosts: int, who: str, seeds: int) -> float:
    """Mean of the true seconds until every host of a rush has had the lease."""
    return mean(Contest(seed, by_rules(hosts, who)).rush().all_s for seed in range(seeds))


def first_table(counts: list[int], seeds: int) -> Iterator[str]:
    """Mean, median and worst in milliseconds.

    A back-off strikes in a part of the rushes, so it shows in the mean. Our median is the longer one: a version that
    rivals took part in deciding is never held (paxos/election.py), one more is decided.
    """
    yield f"{'hosts':5}" + "".join(f" | {who:>9}: mean median worst" for who in _CASTS)
    for hosts in counts:
        line = f"{hosts:5}"
        for who in _CASTS:
            times = [1000 * seconds for seconds in first_winner(hosts, who, seeds)]
            line += f" | {mean(times):15.1f} {median(times):6.1f} {times[-1]:5.0f}"
        yield line


def rush_table(counts: list[int], seeds: int) -> Iterator[str]:
    """Mean seconds until all were served."""
    yield f"{'hosts':5}" + "".join(f" | {who:>9}" for who in _CASTS)
    for hosts in counts:
        yield f"{hosts:5}" + "".join(f" | {all_served(hosts, who, seeds):9.2f}" for who in _CASTS)


def share_table(minutes: float) -> Iterator[str]:
    ours, reference = Leasehold(), Reference()
    casts: dict[str, list[Rules]] = {
        "three of ours": [ours, ours, ours],
        "the reference has id 1": [reference, ours, ours],
        "the reference has id 3": [ours, ours, reference],
        "three of the reference": [reference, reference, reference],
    }
    for name, rules in casts.items():
        served = Contest(1, rules).loop(60 * minutes)
        shares = "  ".join(f"{share:5.1%}" for share in served.shares(3))
        yield f"{name:24} {shares}   {len(served.grants) / (60 * minutes):5.1f} grants a second"


def main() -> None:
    parser = argparse.ArgumentParser(description="Contention for one lease, in virtual time.")
    parser.add_argument("--hosts", type=int, nargs="+", default=list(HOSTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=5.0)
    asked = parser.parse_args()
    print(f"A rush: hosts that all want one free lease at once, and hold it {HOLD_S * 1000:.0f} ms")
    print(f"\nMilliseconds until one has it, {8 * asked.seeds} rushes each")
    for line in first_table(asked.hosts, 8 * asked.seeds):
        print(line, flush=True)
    print(f"\nSeconds until all were served, mean of {asked.seeds} rushes")
    for line in rush_table(asked.hosts, asked.seeds):
        print(line, flush=True)
    print(f"\nShares of hosts 1, 2, 3 in a loop of {asked.minutes:g} minutes")
    for line in share_table(asked.minutes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
