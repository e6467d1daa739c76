"""The keeper's ladder on one machine: renewals that fail in several ways, holders that do not go, and the times of all.

The renewals and the guard run as they ship, in processes of their own, on a simulated machine and disk. What they
have carried out is written down and held against the table at the top of leases/keeper/decisions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from leases.keeper.decisions import (
    RECOVERY_TICK,
    SIGNAL_INTERVAL,
    WATCH_TICK,
    Holder,
    Stop,
    Vitals,
    keep_renewing,
    stand_guard,
)
from leases.sim.checkers import Judge, Violation
from leases.sim.disk import InFlight, Path
from leases.sim.faults import NONE, Plan
from leases.sim.layout import Layout
from leases.sim.machine import Machine, Process
from leases.sim.world import World
from paxos import host_lease
from paxos.errors import LeaseholdError
from paxos.host_lease import HostLease, Renewal
from paxos.liveness import HostTable, Member
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.resource import Held
from paxos.steps import Write
from paxos.timing import Timing

_TIMING = Timing(2, 60)
#: how late a decision may come: the guard looks so often, and an I/O takes its time
_SLACK_S = WATCH_TICK + RECOVERY_TICK + 0.1


class Keeping:
    """A host that has joined and is being kept, with one holder that ignores every signal until `goes_at`."""

    def __init__(self) -> None:
        layout = Layout(leases=1, num_hosts=2, io_timeout=int(_TIMING.io_timeout))
        self.world = World(1, Judge([]))
        self.disk = layout.make(self.world)
        self.layout = layout
        self.machine = Machine(self.world, 1, fire=_TIMING.fire_timeout, margin=_TIMING.feed_margin)
        self.path = Path(self.machine, self.disk, Plan(1, NONE))
        self.machine.boot()
        self.renewing = Process(self.machine, "renewing")
        self.guarding = Process(self.machine, "guarding")
        self.area = LockspaceArea(layout.lockspace, layout.lockspace_place, layout.geometry)
        self.hosts = HostTable(self.area, 1, _TIMING)
        self.holder = Holder(100)
        self.holder_gone = False
        self.lease: HostLease | None = None
        self.vitals: Vitals | None = None
        #: host times
        self.renewals: list[float] = []
        self.signals: list[tuple[float, Stop]] = []
        self.recovery_at: float | None = None
        self.guard_ended_at: float | None = None
        self.expires_after_failure: float | None = None
        self.renewing.spawn("join", self._join())
        self.world.run(2 * _TIMING.join_settle)
        assert self.vitals is not None

    @property
    def now(self) -> float:
        return self.machine.clock.read(self.world.now)

    def _join(self) -> Generator[Any, Any, None]:
        self.lease = yield from host_lease.acquire(self.area, 1, b"host", _TIMING)
        self.vitals = vitals = Vitals(_TIMING, self.lease.last_success)
        member = Member(self.area, 1, self.lease.generation, _TIMING, self.hosts, self.world.stream("dice"))
        self.renewing.spawn("renew", keep_renewing(self.lease, member, vitals, self))
        self.guarding.spawn("guard", stand_guard(vitals, self), lambda task: self._guard_ended())

    def _guard_ended(self) -> None:
        self.guard_ended_at = self.now

    def run(self, seconds: float) -> Keeping:
        self.world.run(self.world.now + seconds)
        return self

    # --- hands ---

    def examine(self, view: memoryview, at: float) -> Observation:
        return self.hosts.observe(view, at)

    def renewed(self, renewal: Renewal, expires: float) -> None:
        self.renewals.append(self.now)

    def renewal_failed(self, error: LeaseholdError) -> None:
        if self.vitals is not None and self.vitals.failure is not None and self.expires_after_failure is None:
            self.expires_after_failure = self.vitals.expires

    def held(self) -> Iterable[Held]:
        return ()

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        pass

    def warn(self, seconds: float) -> None:
        pass

    def recovery(self, reason: LeaseholdError) -> None:
        self.recovery_at = self.now

    def holders(self) -> list[Holder]:
        return [] if self.holder_gone else [self.holder]

    def stop(self, holder: Holder, how: Stop) -> None:
        self.signals.append((self.now, how))

    # --- what must hold ---

    def check(self, last_success: float) -> None:
        """The ladder was walked in time, counted from `last_success` (host time)."""
        _demand(self.recovery_at is not None, "recovery never began")
        assert self.recovery_at is not None
        late = self.recovery_at - last_success - _TIMING.renewal_fail
        _demand(late <= _SLACK_S, f"recovery began {late:.1f} s late")
        fed = [at for at in self.renewals if at > self.recovery_at]
        _demand(not fed, "a renewal counted after recovery had begun")
        kill_from = last_success + _TIMING.sigkill
        kills = [at for at, how in self.signals if how is Stop.KILL]
        _demand(bool(kills), "SIGKILL was never sent")
        _demand(kills[0] <= kill_from + SIGNAL_INTERVAL + _SLACK_S, f"SIGKILL came {kills[0] - kill_from:.1f} s late")
        terms = [at for at, how in self.signals if how is Stop.TERMINATE]
        _demand(bool(terms) and terms[0] <= self.recovery_at + _SLACK_S, "no SIGTERM when recovery began")
        _demand(self.guard_ended_at is None, "recovery ended with a holder alive")


def _demand(met: bool, otherwise: str) -> None:
    if not met:
        raise Violation("the ladder", otherwise)


def _last_success(keeping: Keeping) -> float:
    assert keeping.vitals is not None
    return keeping.vitals.last_success


def a_disk_that_is_gone() -> None:
    """No I/O comes back."""
    keeping = Keeping().run(10)
    keeping.path.go_down(float("inf"))
    keeping.run(1)
    last = _last_success(keeping)
    keeping.run(_TIMING.sigkill + 10)
    keeping.check(last)


def a_disk_that_comes_back_too_late() -> None:
    """I/O comes back once recovery has begun."""
    keeping = Keeping().run(10)
    keeping.path.go_down(keeping.world.now + _TIMING.renewal_fail + 10)
    keeping.run(1)
    last = _last_success(keeping)
    keeping.run(_TIMING.sigkill + 30)
    keeping.check(last)


def a_guard_that_wakes_last() -> None:
    """Both stood still for too long, the guard a moment longer: the renewal that comes first must not hide it."""
    keeping = Keeping().run(10)
    last = _last_success(keeping)
    keeping.renewing.pause()
    keeping.guarding.pause()
    keeping.run(_TIMING.renewal_fail + 3)
    keeping.renewing.run_on()
    keeping.run(2)
    keeping.guarding.run_on()
    keeping.run(_TIMING.sigkill)
    _demand(keeping.recovery_at is not None, "renewals stood still too long, and nobody noticed")
    _demand(
        not [at for at in keeping.renewals if at > last + _TIMING.renewal_fail], "a renewal counted that came too late"
    )


def a_renewal_that_is_not_there() -> None:
    """The disk acknowledged a renewal and does not have it: deadlines count from the one before."""
    keeping = Keeping().run(10)
    assert keeping.vitals is not None
    before = _last_success(keeping)
    sector = bytes(keeping.disk.view[: keeping.layout.geometry.sector_size])
    while _last_success(keeping) == before:
        keeping.run(0.01)
    keeping.disk.put(0, sector)
    keeping.run(3 * _TIMING.renewal_interval)
    _demand(keeping.recovery_at is not None, "a renewal that was lost was not noticed")
    _demand(
        keeping.expires_after_failure is not None
        and keeping.expires_after_failure <= before + _TIMING.renewal_fail + 0.001,
        "a renewal that was lost still counts",
    )


def an_acknowledgement_that_takes_long() -> None:
    """A renewal is on the disk at once, and its host learns of it seconds later: others count from before."""
    keeping = Keeping().run(10)
    before = _last_success(keeping)
    answer = keeping.path._answer
    written: list[float] = []

    def slowly(io: InFlight) -> None:
        if isinstance(io.step, Write) and not written:
            written.append(keeping.now)
            keeping.world.after(2 * _TIMING.renewal_interval, answer, io)
        else:
            answer(io)

    keeping.path._answer = slowly  # type: ignore[method-assign]
    while _last_success(keeping) == before:
        keeping.run(0.1)
    _demand(_last_success(keeping) <= written[0], "a deadline is counted from when a renewal was acknowledged")


STORIES: tuple[Callable[[], None], ...] = (
    a_disk_that_is_gone,
    a_disk_that_comes_back_too_late,
    a_guard_that_wakes_last,
    a_renewal_that_is_not_there,
    an_acknowledgement_that_takes_long,
)


def whole_ladder() -> None:
    for story in STORIES:
        story()
