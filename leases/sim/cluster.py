"""A cluster: hosts, one shared disk, faults; run for some hours of virtual time, every event judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from leases.sim.checkers import Judge, Remains, Violation, all_rules
from leases.sim.disk import InFlight, Path
from leases.sim.faults import Faults, Key, Plan, between
from leases.sim.host import Host, Work
from leases.sim.layout import Layout
from leases.sim.machine import Machine
from leases.sim.rules import Leasehold, Reference, Rules
from leases.sim.trace import Trace
from leases.sim.world import World
from paxos.errors import LeaseholdError
from paxos.geometry import MIB, Geometry
from paxos.steps import Read, Write
from paxos.timing import Timing


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated. Everything a run does follows from this."""

    seed: int = 1
    hosts: int = 3
    #: how many of them, the last ones, follow the reference's rules
    reference: int = 0
    leases: int = 3
    hours: float = 1.0
    faults: Faults = field(default_factory=Faults)
    io_timeout: int = 10
    fire_timeout: int = 60
    work: Work = field(default_factory=Work)
    #: of all faults drawn, let only these happen
    only: frozenset[Key] | None = None
    #: true seconds without new faults at the end, in which every lease must become usable again
    calm_s: float = 0.0
    trace_length: int = 4000
    #: whether two hosts of the reference that hold one lease end the run like any violation
    stop_at_double: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run. `failure` is a Violation, or what a protocol must never raise."""

    setup: Setup
    seconds: float
    operations: int
    grants: int
    events: int
    digest: int
    chosen: tuple[tuple[Key, str], ...]
    failure: Exception | None
    trace: Trace
    #: what hosts of the reference did to each other: the rules they broke, without anybody else
    doubles: tuple[Violation, ...] = ()


class Cluster:
    """Everything of one run."""

    def __init__(self, setup: Setup, rules: list[Any] | None = None) -> None:
        self.setup = setup
        self.work = setup.work
        seed, faults = setup.seed, setup.faults
        random = Random(f"{seed}/cluster")
        self.layout = Layout(setup.leases, max(8, setup.hosts + 1), setup.io_timeout, geometry=Geometry(4096, MIB))
        judge = Judge(all_rules(self.layout) if rules is None else rules, self._forgive)
        self.doubles: list[Violation] = []
        self.world = World(seed, judge, Trace(setup.trace_length, Description(self.layout)))
        self.plan = Plan(seed, faults, setup.only)
        self.disk = self.layout.make(self.world, remember_s=faults.stale_s if faults.stale else 0.0)
        #: whether hosts keep their names when they start again
        self.fixed_names = random.random() < 0.3
        #: whether the last host is configured with the first one's host id
        self.two_ids = setup.hosts > 1 and faults.kill > 0 and random.random() < 0.1
        self.operations = 0
        self.hosts: list[Host] = []
        timing = Timing(setup.io_timeout, setup.fire_timeout)
        for number in range(1, setup.hosts + 1):
            rate = 1.0 + faults.clock_rate * random.uniform(-1, 1)
            machine = Machine(self.world, number, fire=setup.fire_timeout, margin=timing.feed_margin, rate=rate)
            machine.watchdog_early = faults.watchdog_early * setup.fire_timeout
            Path(machine, self.disk, self.plan)
            host_id = 1 if self.two_ids and number == setup.hosts else number
            rules_of_host: Rules = Reference() if number > setup.hosts - setup.reference else Leasehold()
            self.hosts.append(Host(self, machine, host_id, timing, f"node{number}", rules_of_host))
            self.world.after(random.uniform(0, 5), machine.boot)
            self._next_life(machine, 0)
        self._next_relaid(0)

    def run(self) -> Outcome:
        """To the end, or to the first violation."""
        failure: Exception | None = None
        try:
            self.world.run(self.setup.hours * 3600)
            if self.setup.calm_s:
                self._come_to_rest()
        except (Violation, AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as failed:
            failure = failed
            self.world.note(0, "judge", "V", 0, failed)
        return Outcome(
            setup=self.setup,
            seconds=self.world.now,
            operations=self.operations,
            grants=self.world.judge.grants,
            events=self.world.events,
            digest=self.world.trace.digest,
            chosen=tuple(self.plan.chosen),
            failure=failure,
            trace=self.world.trace,
            doubles=tuple(self.doubles),
        )

    def _forgive(self, double: Violation) -> None:
        """Hosts of the reference did this among themselves: tell, and go on."""
        if self.setup.stop_at_double and double.rule == "one owner":
            raise double
        self.doubles.append(double)
        self.world.note(0, "judge", "D", 0, double)

    def _come_to_rest(self) -> None:
        """No more faults: what hangs may end, the dead may come back; then every lease must be usable."""
        self.plan.quiet = True
        timing = Timing(self.setup.io_timeout, self.setup.fire_timeout)
        faults = self.plan.faults
        self.world.run(self.world.now + self.setup.calm_s + faults.late_s + 3 * timing.host_dead)
        before = self._grants()
        self.world.run(self.world.now + 600 + self.work.long_hold_s)
        after = self._grants()
        for number in range(1, self.layout.leases + 1):
            if after.get(number, 0) == before.get(number, 0):
                raise Violation("usable again", f"nobody could get r{number} though nothing went wrong any more")

    def _grants(self) -> dict[int, int]:
        total: dict[int, int] = {}
        for host in self.hosts:
            for number, count in host.grants.items():
                total[number] = total.get(number, 0) + count
        return total

    # --- what happens to hosts ---

    def _next_life(self, machine: Machine, number: int) -> None:
        delay = self.plan.next_life(machine.number, number)
        if delay < float("inf"):
            self.world.after(delay, self._disturb, (machine, number + 1))

    def _disturb(self, what: tuple[Machine, int]) -> None:
        machine, number = what
        self._next_life(machine, number)
        fault = self.plan.life_fault(machine.number, number)
        if fault is None or not machine.up:
            return
        kind, random = fault
        self.world.note(machine.number, "fate", "!", number, kind)
        host = self.hosts[machine.number - 1]
        faults = self.plan.faults
        if kind == "kill":
            host.kill_daemon()
        elif kind == "kill_client":
            host.kill_client(random)
        elif kind == "reset":
            machine.reset("by hand")
        elif kind == "outage":
            for path in machine.paths.values():
                path.go_down(self.world.now + between(random, 0.5, faults.outage_s))
        elif kind == "pause" and host.daemon is not None and host.daemon.process.alive:
            process = host.daemon.process
            process.pause()
            self.world.after(between(random, 0.1, faults.pause_s), lambda _: process.run_on())
        elif kind in ("suspend", "freeze"):
            machine.suspend(clock_still=kind == "freeze")
            self.world.after(between(random, 0.1, faults.pause_s), machine.wake, machine.boots)

    # --- what happens to the volume ---

    def _next_relaid(self, number: int) -> None:
        delay = self.plan.next_relaid(number)
        if delay < float("inf"):
            self.world.after(delay, self._relay, number + 1)

    def _relay(self, number: int) -> None:
        """Somebody initialises the lockspace, or a lease, as if nobody used it."""
        self._next_relaid(number)
        random = self.plan.relaid(number)
        if random is None:
            return
        area = 0 if random.random() < 0.3 else random.randrange(1, self.layout.leases + 1)
        self.world.note(0, "fate", "!", area, f"{f'r{area}' if area else 'the lockspace'} is initialised anew")
        self.layout.lay_out_area(self.disk, area)
        self.world.judge.laid_out(area, self._remains(area))

    def _remains(self, area: int) -> list[Remains]:
        """What of before may still act on an area: operations, memberships, holders, writes in flight."""
        judge = self.world.judge
        remains: list[Remains] = []
        for host in self.hosts:
            if host.daemon is not None:
                remains += host.daemon.remains(area)
        for holding in judge.holdings:
            if area in (0, holding.resource):
                remains.append(lambda holding=holding: holding in judge.holdings)  # type: ignore[misc]
        for io in set(filter(lambda argument: isinstance(argument, InFlight), self.world.pending())):
            if type(io.step) is Write and self.layout.where(io.step.offset)[0] == area:
                remains.append(lambda io=io: not io.ended)  # type: ignore[misc]
        return remains


class Description:
    """Turns an event's offset and detail into words: which sector, and what is in it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __call__(self, number: int, detail: Any) -> str:
        if isinstance(detail, Read | Write):
            return self._io(detail)
        if isinstance(detail, LeaseholdError):
            return repr(detail)
        return str(detail)

    def _io(self, step: Read | Write) -> str:
        area, sector = self._layout.where(step.offset)
        if area == 0:
            where = f"host lease {sector + 1}"
        else:
            where = f"r{area} {'leader' if sector == 0 else f'block {sector - 1}' if sector > 1 else 'request'}"
        if isinstance(step, Read):
            length = step.length // self._layout.geometry.sector_size
            return where if length == 1 else f"{'lockspace' if area == 0 else f'r{area}'}, {length} sectors"
        return f"{where} {self._words(area, sector, step.data)}"

    def _words(self, area: int, sector: int, data: bytes) -> str:
        from paxos.records import Block, Leader

        if area == 0 or sector == 0:
            leader = Leader.unpack(data)
            lver = "" if area == 0 else f"lver={leader.lver} "
            by = "" if area == 0 else f" by={leader.write_id}/{leader.write_generation}"
            return f"{lver}owner={leader.owner_id}/{leader.owner_generation} t={leader.timestamp}{by}"
        block = Block.unpack(data)
        flags = (" RELEASED" if block.released else "") + (f" SHARED/{block.mode_generation}" if block.shared else "")
        return f"lver={block.lver} mbal={block.mbal} bal={block.bal} inp={block.inp}/{block.inp2}{flags}"
