"""A host of the simulated cluster: a lease program that joins, renews and recovers, and clients that use leases.

The protocols are the ones that ship, or for some hosts the reference's (leases/sim/rules.py). Around them is what the
daemon does with them: one operation on a resource at a time; after an I/O error on a resource, settling before
anything else; when the host lease can't be renewed, the recovery ladder.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from leases.keeper.decisions import Holder, Stop, Vitals, keep_renewing, stand_guard, stop_holders
from leases.sim.checkers import Holding, Membership, Remains
from leases.sim.disk import InFlight
from leases.sim.machine import Machine, Process, Task, Until
from leases.sim.rules import Rules
from paxos import host_lease
from paxos.errors import DiskError, HeldElsewhere, IOTimeout, LeaseholdError, TryAgain
from paxos.host_lease import HostLease, Renewal
from paxos.lease_area import LeaseArea
from paxos.liveness import HostTable, Member
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.resource import Held, Want
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Sleep, Steps, Write, reap
from paxos.timing import Timing

if TYPE_CHECKING:
    from leases.sim.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Work:
    """What clients do: how many for each host, and how often and how long (seconds) they use a lease."""

    clients: int = 3
    period_s: float = 3.0
    hold_s: float = 1.0
    #: share of holds that last until something ends them, or `long_hold_s`
    long_holds: float = 0.02
    long_hold_s: float = 600.0
    shared: float = 0.25
    convert: float = 0.2
    nowait: float = 0.3
    #: leaving and joining again, for each host and hour
    leaves: float = 0.5


class Host:
    """One machine with its lease program and its clients."""

    def __init__(
        self, cluster: Cluster, machine: Machine, host_id: int, timing: Timing, name: str, rules: Rules
    ) -> None:
        self.cluster = cluster
        self.rules = rules
        self.machine = machine
        self.host_id = host_id
        self.timing = timing
        self.name = name
        self.random: Random = cluster.world.stream(f"host {machine.number}")
        self.daemon: Daemon | None = None
        self.grants: dict[int, int] = {}
        #: what clients held that were stopped; nobody gave it back on the disk
        self.abandoned: list[Holding] = []
        machine.on_boot = self._booted
        machine.on_reset = self._reset

    def start_daemon(self, _: Any = None) -> None:
        if self.machine.up and (self.daemon is None or not self.daemon.process.alive):
            self.daemon = Daemon(self)

    def kill_daemon(self) -> None:
        """By SIGKILL. Where its watchdog is armed, the machine will be reset; else it is started again."""
        if self.daemon is not None:
            self.daemon.process.on_gone = self._daemon_gone
            self.daemon.process.kill()

    def kill_client(self, random: Random) -> None:
        clients = [process for process in self.machine.processes if process.name.startswith("c")]
        if clients:
            random.choice(clients).kill()

    def _daemon_gone(self, process: Process) -> None:
        if not self.machine.watchdog.armed:
            self.cluster.world.after(self.random.uniform(0.5, 5.0), self.start_daemon)

    def _booted(self, machine: Machine) -> None:
        self.start_daemon()

    def _reset(self, machine: Machine) -> None:
        self.daemon = None
        self.abandoned.clear()
        if self.cluster.two_ids and machine.number == len(self.cluster.hosts):
            delay = self.random.uniform(5.0, 600.0)
        else:
            delay = self.random.uniform(5.0, 120.0)
        self.cluster.world.after(delay, machine.boot)


@dataclass(eq=False, slots=True)
class Use:
    """One use of a resource, from before it is acquired until it was given back, by one of the daemon's tasks."""

    task: Task


class Daemon:
    """One run of the lease program: from its start until it is killed or the machine goes."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.cluster = host.cluster
        self.world = host.cluster.world
        self.judge = host.cluster.world.judge
        self.random = host.random
        self.timing = host.timing
        self.process = Process(host.machine, f"d{host.machine.boots}")
        self.process.host_id = host.host_id
        self.process.reference = host.rules.reference
        self.rules = host.rules
        suffix = "" if self.cluster.fixed_names else f".{host.machine.boots}.{self.random.randrange(1 << 30)}"
        self.name = f"{host.name}{suffix}".encode()
        layout = self.cluster.layout
        self.area = LockspaceArea(layout.lockspace, layout.lockspace_place, layout.geometry)
        self.leases = [
            LeaseArea(layout.lockspace, layout.name(number), layout.place(number), layout.geometry)
            for number in range(1, layout.leases + 1)
        ]
        #: resources with an operation running, or held
        self.busy: dict[int, Use] = {}
        #: resources in doubt, with the I/O that may still happen
        self.doubt: dict[int, list[Pending]] = {}
        #: writes of the own host lease that may still happen
        self.host_writes: list[Pending] = []
        self.hosts = HostTable(self.area, host.host_id, self.timing)
        self.member: Member | None = None
        self.vitals: Vitals | None = None
        #: joined, and clients may come as soon as the first renewal has shown the other hosts
        self.admits_clients = False
        self.membership: Membership | None = None
        self.clients: dict[Process, Holder] = {}
        #: what is held now, and by whom
        self.holds: dict[int, tuple[Held, Holding]] = {}
        self.workers: dict[Task, int] = {}
        self._client_number = 0
        #: counts how often the host id was given up or lost
        self.lives = 0
        self._settles: Task | None = None
        self._main_task = self.process.spawn("main", self._main())

    # --- the host lease ---

    def _main(self) -> Generator[Any, Any, None]:
        while True:
            yield Sleep(self.random.uniform(0.1, 1.0))
            yield from self._reap_host_writes()
            self._forget_abandoned()  # a new generation of our host lease tells everybody
            try:
                lease = yield from host_lease.acquire(self.area, self.host.host_id, self.name, self.timing)
            except LeaseholdError as refused:
                self._note("main", "g", 0, refused)
                self._remember_host_write(pending_of(refused) if isinstance(refused, DiskError) else None)
                yield Sleep(self.random.uniform(1.0, 4 * self.timing.io_timeout))
                continue
            yield from self._keep(lease)
            self.lives += 1

    def _keep(self, lease: HostLease) -> Steps[None]:
        """Be a member until we leave, or until recovery has ended with every client gone."""
        vitals = self.vitals = Vitals(self.timing, lease.last_success, nap=self.timing.renewal_interval)
        watchdog = self.host.machine.watchdog
        watchdog.renew(vitals.expires)
        if not watchdog.armed:  # no time was left
            return
        self.hosts = HostTable(self.area, self.host.host_id, self.timing)
        self.member = Member(self.area, self.host.host_id, lease.generation, self.timing, self.hosts, self.random)
        self.membership = Membership(self.process, self.host.host_id, lease.generation)
        self._note("main", "J", lease.generation, f"host id {self.host.host_id} generation {lease.generation}")
        self.judge.joined(self.membership)
        self.admits_clients = True
        renewals = self.process.spawn("renew", keep_renewing(lease, self.member, vitals, self))
        if self.cluster.work.leaves:
            self._note_leave(vitals, renewals)
        failure = yield from stand_guard(vitals, self)
        if failure is None:
            yield from self._leave(lease, vitals, renewals)
        else:
            self._remember_host_write(renewals.waiting)
            renewals.stop()
        watchdog.disarm()
        self._not_member()

    def _note_leave(self, vitals: Vitals, renewals: Task) -> None:
        def leave(_: Any) -> None:
            vitals.leaving = True
            if renewals.alive:
                renewals.wake()
                self._main_task.wake()

        self.world.after(self.random.expovariate(self.cluster.work.leaves / 3600), leave)

    def _leave(self, lease: HostLease, vitals: Vitals, renewals: Task) -> Steps[None]:
        """Stop the clients, give up what they held, and give the host id back if it was renewed to the last."""
        self._stop_workers()
        yield from stop_holders(vitals, self, at_once=True)
        while renewals.alive:
            yield Sleep(0.1)
        self.host.machine.watchdog.disarm()
        self._not_member()
        self._forget_abandoned()
        if vitals.trouble is None and vitals.failure is None:
            try:
                yield from host_lease.release(lease, self.timing)
            except DiskError as failed:
                self._note("main", "<", 0, failed)
                self._remember_host_write(pending_of(failed))
        yield Sleep(self.random.uniform(1, 30))

    def _remember_host_write(self, pending: object) -> None:
        if isinstance(pending, InFlight) and isinstance(pending.step, Write):
            self.host_writes.append(pending)

    def _reap_host_writes(self) -> Steps[None]:
        """An old write that landed over a new host lease would bring back a generation of the past."""
        for pending in self.host_writes:
            with suppress(DiskError):
                while True:
                    try:
                        yield from reap(pending, 60.0)
                    except IOTimeout:
                        continue
                    break
        self.host_writes.clear()

    def _forget_abandoned(self) -> None:
        """Nobody uses what was abandoned, so that others may be told so."""
        while self.host.abandoned:
            self.judge.released(self.host.abandoned.pop())

    def _not_member(self) -> None:
        self.member = None
        if self.membership is not None:
            self._note("main", "L", self.membership.generation, "")
            self.judge.left(self.membership)
            self.membership = None

    # --- what the keeper decides is carried out here ---

    def examine(self, view: memoryview, at: float) -> Observation:
        return self.hosts.observe(view, at)

    def renewed(self, renewal: Renewal, expires: float) -> None:
        self.host.machine.watchdog.renew(expires)
        if not self.workers and self.admits_clients:
            self.admits_clients = False
            self._start_workers()

    def renewal_failed(self, error: LeaseholdError) -> None:
        self._note("renew", "g", 0, error)
        self._main_task.wake()  # the guard looks at once
        if self.vitals is not None and self.vitals.failure is not None:
            self.host.machine.watchdog.renew(self.vitals.expires)
        self._remember_host_write(pending_of(error) if isinstance(error, DiskError) else None)

    def held(self) -> list[Held]:
        """What is looked at after we stood still. The reference never looks."""
        if self.rules.reference:
            return []
        return [held for held, _ in self.holds.values()]

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        self._note("renew", "x", 0, reason)
        for other, holding in list(self.holds.values()):
            if other is held:
                holding.process.kill()

    def warn(self, seconds: float) -> None:
        pass

    def recovery(self, reason: LeaseholdError) -> None:
        self._note("guard", "x", 0, reason)
        self._stop_workers()
        self._not_member()

    def holders(self) -> list[Holder]:
        return list(self.clients.values())

    def stop(self, holder: Holder, how: Stop) -> None:
        hangs_in_kernel = holder.pid % 7 == 0
        if not hangs_in_kernel and (how is Stop.KILL or self.random.random() < 0.1):
            for client, other in list(self.clients.items()):
                if other is holder:
                    client.kill()

    # --- the clients ---

    def _start_workers(self) -> None:
        for number in range(1, self.cluster.work.clients + 1):
            self.workers[self.process.spawn(f"w{number}", self._worker(number))] = number
        if self.doubt:
            self._start_settling()

    def _stop_workers(self) -> None:
        """Stop where they stand. What they had in flight leaves its resource in doubt."""
        self.admits_clients = False
        workers, self.workers, self._settles = self.workers, {}, None
        for task in workers:
            waits_for = task.waiting
            task.stop()
            self.process.tasks.pop(task, None)
            for number, use in list(self.busy.items()):
                if use.task is task:
                    self._in_doubt(number, waits_for if isinstance(waits_for, InFlight) else None)
        self.busy.clear()
        self.host.abandoned += [holding for _, holding in self.holds.values()]
        self.holds.clear()

    def _in_doubt(self, number: int, pending: Pending | None) -> None:
        if not self.rules.settles:
            return
        in_flight = self.doubt.setdefault(number, [])
        if pending is not None:
            in_flight.append(pending)
        if self.workers and self._settles is None:
            self._start_settling()

    def _start_settling(self) -> None:
        self._settles = self.process.spawn("settle", self._settler())
        self.workers[self._settles] = 0

    def _worker(self, number: int) -> Generator[Any, Any, None]:
        """Use leases at times that are laid down for the whole run, so that a disturbance dies away."""
        task = next(task for task, n in self.workers.items() if n == number)
        period = self.cluster.work.period_s
        turn = int(self.world.now / period)
        while True:
            turn = max(turn + 1, int(self.world.now / period))
            random = self.world.stream(f"turn {self.host.machine.number} {number} {turn}")
            start = (turn + random.random()) * period
            if start < self.world.now:
                continue
            yield Until(start)
            wanted = random.randrange(1, len(self.leases) + 1)
            if wanted in self.busy or wanted in self.doubt:
                continue
            self.busy[wanted] = Use(task)
            yield from self._use(task, wanted, random)
            del self.busy[wanted]

    def _use(self, task: Task, number: int, random: Random) -> Steps[None]:
        """Acquire, hold, perhaps convert, release; whatever happens on the way."""
        work = self.cluster.work
        assert self.member is not None
        member = replace(self.member, dice=random)
        want = Want(shared=random.random() < work.shared, nowait=random.random() < work.nowait)
        client = self._new_client()
        self.cluster.operations += 1
        try:
            held = yield from self.rules.acquire(member, self.leases[number - 1], want)
        except LeaseholdError as refused:
            self._note(task.name, "g", number, f"r{number} {refused!r}")
            self._doubtful(number, refused)
            self._end_client(client)
            return
        holding = self._granted(client, number, held)
        yield from self._hold(random)
        if random.random() < work.convert:
            self.cluster.operations += 1
            converted = yield from self._convert(task, member, number, held, holding, client)
            if converted is None:
                self._end_client(client)
                self.holds.pop(number, None)
                if not self.rules.settles:
                    yield from self._release(task, member, number, held)
                return
            held, holding = converted
        self.cluster.operations += 1
        self.judge.letting_go(holding)
        self.judge.released(holding)
        self._end_client(client)
        self.holds.pop(number, None)
        yield from self._release(task, member, number, held)

    def _release(self, task: Task, member: Member, number: int, held: Held) -> Steps[None]:
        try:
            yield from self.rules.release(member, held)
        except LeaseholdError as failed:
            self._note(task.name, "<", number, f"r{number} {failed!r}")
            self._doubtful(number, failed)
        else:
            self._note(task.name, "-", number, f"r{number}")

    def _hold(self, random: Random) -> Steps[None]:
        work = self.cluster.work
        if random.random() < work.long_holds:
            yield Sleep(work.long_hold_s * random.random())
        else:
            yield Sleep(random.expovariate(1 / work.hold_s))

    def _convert(
        self, task: Task, member: Member, number: int, held: Held, holding: Holding, client: Process
    ) -> Steps[tuple[Held, Holding] | None]:
        """To the other mode. None: it is in doubt what we hold, and the client is stopped."""
        if not held.shared:
            # from its first write on others may share the lease
            self.judge.letting_go(holding)
            self.judge.released(holding)
        try:
            after = yield from self.rules.convert(member, held)
        except LeaseholdError as refused:
            self._note(task.name, "g", number, f"convert r{number} {refused!r}")
            if held.shared and isinstance(refused, HeldElsewhere | TryAgain):
                return held, holding
            self.judge.letting_go(holding)
            self.judge.released(holding)
            self._in_doubt(number, pending_of(refused) if isinstance(refused, DiskError) else None)
            return None
        self.judge.letting_go(holding)
        self.judge.released(holding)
        return after, self._granted(client, number, after, before=holding)

    def _granted(self, client: Process, number: int, held: Held, before: Holding | None = None) -> Holding:
        """`before`: what it was converted from."""
        holding = Holding(number, not held.shared, client, held.host_id, held.generation, held.lver)
        if before is not None:
            holding.exposed, holding.doubled = before.exposed, before.doubled
        self._note(client.name, "G", number, holding)
        self.holds[number] = (held, holding)
        if client.alive:
            self.judge.granted(holding)
            self.host.grants[number] = self.host.grants.get(number, 0) + 1
        return holding

    def _new_client(self) -> Process:
        self._client_number += 1
        client = Process(self.host.machine, f"c{self.host.machine.boots}.{self._client_number}")
        client.reference = self.rules.reference
        self.clients[client] = Holder(self._client_number)
        client.on_gone = self._client_gone
        return client

    def _client_gone(self, client: Process) -> None:
        self.clients.pop(client, None)

    def _end_client(self, client: Process) -> None:
        client.on_gone = None
        self.clients.pop(client, None)
        self.host.machine.processes.pop(client, None)
        client.alive = False

    # --- what an I/O error leaves behind ---

    def _doubtful(self, number: int, error: LeaseholdError) -> None:
        if isinstance(error, DiskError):
            self._in_doubt(number, pending_of(error))

    def _settler(self) -> Generator[Any, Any, None]:
        """Settle one resource in doubt after the other, again and again until none is."""
        task = self._settles
        assert task is not None
        while self.doubt:
            yield Sleep(self.random.uniform(0.2, 1.0))
            member = self.member
            assert member is not None
            for number in list(self.doubt):
                if number in self.busy:
                    continue
                self.busy[number] = Use(task)
                in_flight = self.doubt[number]
                try:
                    yield from settle(member, self.leases[number - 1], in_flight)
                except LeaseholdError as failed:
                    self._note(task.name, "g", number, f"settle r{number} {failed!r}")
                    pending = pending_of(failed) if isinstance(failed, DiskError) else None
                    if pending is not None and pending not in in_flight:
                        in_flight.append(pending)
                else:
                    del self.doubt[number]
                del self.busy[number]
        self._settles = None
        del self.workers[task]

    # --- what an area that is initialised anew leaves behind here ---

    def remains(self, area: int) -> list[Remains]:
        """What we know of, or do in, an area as it is now (0: the lockspace). Each tells whether that goes on."""
        if area == 0:
            lives = self.lives
            return [lambda: self.process.alive and self.lives == lives]
        use, doubt = self.busy.get(area), self.doubt.get(area)
        remains: list[Remains] = []
        if use is not None:
            remains.append(lambda: self.process.alive and self.busy.get(area) is use)
        if doubt is not None:
            remains.append(lambda: self.process.alive and self.doubt.get(area) is doubt)
        return remains

    def _note(self, who: str, event: str, number: int, detail: object) -> None:
        self.world.note(self.host.machine.number, who, event, number, detail)
