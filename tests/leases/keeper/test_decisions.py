"""When to renew, when it is late, when holders are stopped; and that nothing calls recovery off."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from leases.keeper.decisions import (
    Holder,
    Paused,
    RenewalsFailed,
    Stop,
    Vitals,
    keep_renewing,
    next_stop,
    stand_guard,
    stop_holders,
)
from paxos.errors import DiskError, LeaderChecksumError, LeaseholdError, RenewDiff, RenewOwner
from paxos.host_lease import Beacon, Renewal
from paxos.lockspace_area import Observation
from paxos.records import bitmap_hosts
from paxos.resource import Held
from paxos.steps import Read, Write
from paxos.timing import MAX_KILLS, Timing
from tests.support.cluster import Cluster, Host
from tests.support.crew import Crew

IO = 10


class Keeper:
    """Hands that write down what they are told to do, and a host of which they are."""

    def __init__(self, cluster: Cluster, host: Host) -> None:
        self.cluster, self.host, self.world = cluster, host, cluster.world
        self.vitals = Vitals(host.timing, host.lease.last_success)
        self.crew = Crew(cluster.world)
        self.users: list[Holder] = []
        self.leases: list[Held] = []
        #: a pause to be found by the next examination
        self.pause = 0.0
        self.expiries: list[tuple[float, float]] = []
        self.failures: list[LeaseholdError] = []
        self.warnings: list[float] = []
        self.recoveries: list[tuple[float, LeaseholdError]] = []
        self.stops: list[tuple[float, int, Stop]] = []
        self.losses: list[tuple[Held, LeaseholdError]] = []
        self.renewals = self.crew.add(keep_renewing(host.lease, host.member, self.vitals, self))
        self.guard = self.crew.add(stand_guard(self.vitals, self))

    def examine(self, view: memoryview, at: float) -> Observation:
        seen = self.host.member.hosts.observe(view, at)
        pause, self.pause = self.pause or seen.paused_for, 0.0
        return Observation(seen.changed, seen.calling, pause)

    def renewed(self, renewal: Renewal, expires: float) -> None:
        self.expiries.append((self.world.time, expires))

    def renewal_failed(self, error: LeaseholdError) -> None:
        self.failures.append(error)

    def held(self) -> Iterable[Held]:
        return self.leases

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        self.losses.append((held, reason))

    def warn(self, seconds: float) -> None:
        self.warnings.append(seconds)

    def recovery(self, reason: LeaseholdError) -> None:
        self.recoveries.append((self.world.time, reason))

    def holders(self) -> list[Holder]:
        return list(self.users)

    def stop(self, holder: Holder, how: Stop) -> None:
        self.stops.append((self.world.time, holder.pid, how))

    # --- the story ---

    def run(self, seconds: float) -> None:
        self.crew.run(self.world.time + seconds)

    def break_disk(self, kind: type[Read] | type[Write] = Read) -> None:
        self.world.verdict = lambda step: "fail" if isinstance(step, kind) else None

    def mend_disk(self) -> None:
        self.world.verdict = lambda _step: None


@pytest.fixture
def keeper() -> Keeper:
    cluster = Cluster(io_timeout=IO)
    return Keeper(cluster, cluster.join(1))


# --- renewing ---


def test_the_host_lease_is_renewed_every_two_io_timeouts(keeper: Keeper) -> None:
    """ondisk.md 4.3: "Measured period: 2 io + about 0.5 s"."""
    keeper.run(210)
    times = [at for at, _ in keeper.expiries]
    periods = {round(later - earlier, 3) for earlier, later in pairwise(times)}
    assert periods == {2 * IO + 0.5}


def test_each_success_moves_the_expiry_to_eight_io_timeouts_after_its_start(keeper: Keeper) -> None:
    keeper.run(100)
    assert all(expires == at + 8 * IO for at, expires in keeper.expiries)
    assert keeper.vitals.expires == keeper.host.lease.last_success + 8 * IO


def test_after_a_failed_renewal_the_next_is_tried_at_once(keeper: Keeper) -> None:
    """4.3: "After a failed attempt the next one starts at once (only the 0.5 s pause)"."""
    keeper.break_disk()
    keeper.run(5.2)  # joining took 2 io, so the first is due at once
    assert len(keeper.failures) == 10
    assert all(isinstance(error, DiskError) for error in keeper.failures)
    keeper.mend_disk()
    keeper.run(1)
    assert keeper.vitals.trouble is None and keeper.vitals.failure is None


def test_whom_to_look_at_us_is_sent_with_the_next_renewal(keeper: Keeper) -> None:
    keeper.vitals.beacon = Beacon(frozenset({7, 9}), (1, 2, 3))
    keeper.run(25)
    assert bitmap_hosts(keeper.cluster.bytes_of(0, 512)) == [7, 9]
    assert keeper.host.lease.record.write_generation == 2


def test_leaving_ends_renewing_and_guarding_within_a_second_or_so(keeper: Keeper) -> None:
    keeper.run(5)
    keeper.vitals.leaving = True
    keeper.run(1.6)
    assert keeper.renewals.step is None and keeper.guard.step is None
    assert keeper.guard.result is None and not keeper.recoveries


# --- lateness ---


def test_warnings_begin_six_io_timeouts_after_the_last_success(keeper: Keeper) -> None:
    keeper.break_disk()
    keeper.crew.run(keeper.host.lease.last_success + 6 * IO - 0.1)
    assert not keeper.warnings
    keeper.run(5)
    assert len(keeper.warnings) == 5 and not keeper.recoveries


def test_recovery_begins_eight_io_timeouts_after_the_last_success(keeper: Keeper) -> None:
    last = keeper.host.lease.last_success
    keeper.break_disk()
    keeper.crew.run(last + 8 * IO - 0.1)
    assert not keeper.recoveries
    keeper.run(1.2)
    ((at, reason),) = keeper.recoveries
    assert last + 8 * IO <= at <= last + 8 * IO + 1
    assert isinstance(reason, RenewalsFailed) and isinstance(reason.cause, DiskError)


def test_a_renewal_that_succeeds_after_recovery_began_calls_nothing_off(keeper: Keeper) -> None:
    """Section 8: recovery, once begun, ends only with every holder gone or the machine reset."""
    keeper.users = [Holder(100)]
    keeper.break_disk()
    keeper.run(8 * IO + 2)
    assert keeper.recoveries
    pushed = len(keeper.expiries)
    expires = keeper.vitals.expires
    keeper.mend_disk()
    keeper.run(200)
    assert len(keeper.expiries) == pushed, "the watchdog was fed again"
    assert keeper.vitals.expires == expires
    assert isinstance(keeper.vitals.failure, RenewalsFailed)
    assert keeper.guard.step is not None, "the guard went home while somebody still held"


def test_renewing_goes_on_at_its_pace_after_recovery_began(keeper: Keeper) -> None:
    """4.5: "Renewal attempts continue meanwhile", so that others see this host alive as long as it is."""
    keeper.users = [Holder(100)]
    keeper.break_disk()
    keeper.run(8 * IO + 2)
    keeper.mend_disk()
    keeper.world.io.clear()
    keeper.run(10 * (2 * IO + 0.5))
    assert len([io for io in keeper.world.io if io[0] == "W"]) in (10, 11)


def test_a_success_that_comes_too_late_fails_the_lockspace_though_nobody_looked(keeper: Keeper) -> None:
    """As after a SIGSTOP: the guard never ran while it was late, the renewal that ends it notices itself."""
    keeper.run(25)
    keeper.world.time += 8 * IO  # everything stood still but the clock
    before = len(keeper.expiries)
    keeper.crew.sleeping.remove(next(one for one in keeper.crew.sleeping if one[0] is keeper.guard))
    keeper.run(5)
    assert isinstance(keeper.vitals.failure, RenewalsFailed)
    assert len(keeper.expiries) == before


def test_the_same_stop_a_little_shorter_is_no_failure(keeper: Keeper) -> None:
    keeper.run(25)
    keeper.world.time = keeper.vitals.expires - 1.0
    keeper.run(5)
    assert keeper.vitals.failure is None and keeper.expiries[-1][0] > keeper.world.time - 6


def test_time_spent_in_the_write_of_a_renewal_counts_as_late(keeper: Keeper) -> None:
    """The success is dated before the write: what others may have seen of it is as old as that."""
    keeper.run(1)

    def slow(step: Read | Write) -> str | None:
        if isinstance(step, Write):
            keeper.world.time += 8 * IO
        return None

    keeper.world.verdict = slow
    keeper.run(2 * IO)
    keeper.mend_disk()
    keeper.run(3)
    assert isinstance(keeper.vitals.failure, RenewalsFailed)


@pytest.mark.parametrize("how", ["another owner", "changed", "damaged"])
def test_a_host_lease_that_is_not_ours_any_more_starts_recovery_at_once(keeper: Keeper, how: str) -> None:
    """4.5: "recovery begins at the next 1 s check, without waiting for 8 io"."""
    keeper.run(25)
    disk, record = keeper.world.disks["d"], keeper.host.lease.record
    if how == "another owner":
        disk[:512] = record.changed(owner_generation=9, resource_name=b"rival".ljust(48, b"\0")).sector(512)
    elif how == "changed":
        disk[:512] = record.changed(timestamp=record.timestamp + 1).sector(512)
    else:
        disk[120] ^= 0xFF
    expected = {"another owner": RenewOwner, "changed": RenewDiff, "damaged": LeaderChecksumError}[how]
    keeper.run(2 * IO + 2)
    ((at, reason),) = keeper.recoveries
    assert isinstance(reason, expected)
    assert at < keeper.vitals.expires


def test_the_first_failure_is_the_one_that_is_told(keeper: Keeper) -> None:
    keeper.users = [Holder(100)]
    keeper.run(25)
    keeper.world.disks["d"][120] ^= 0xFF
    keeper.run(12 * IO)
    assert isinstance(keeper.vitals.failure, LeaderChecksumError)


# --- after a pause ---


def lease_of(keeper: Keeper, number: int = 0) -> Held:
    held = keeper.host.acquire(keeper.cluster.leases[number])
    keeper.leases.append(held)
    return held


def taken_by_another(keeper: Keeper, held: Held) -> None:
    """As a host that took over while we stood still would have left it."""
    taken = held.leader.changed(owner_id=2, owner_generation=1, lver=held.lver + 1, write_id=2)
    offset = held.lease.place.offset
    keeper.world.disks["d"][offset : offset + 512] = taken.sector(512)


def test_after_a_pause_every_lease_is_looked_at_before_the_renewal_counts(keeper: Keeper) -> None:
    held = lease_of(keeper)
    taken_by_another(keeper, held)
    keeper.pause = 300.0
    keeper.run(25)
    ((lost, reason),) = keeper.losses
    assert lost is held and isinstance(reason, Paused) and reason.seconds == 300.0


def test_after_a_pause_leases_that_are_still_ours_stay_ours(keeper: Keeper) -> None:
    lease_of(keeper)
    keeper.pause = 300.0
    keeper.run(25)
    assert not keeper.losses and keeper.vitals.failure is None


def test_a_pause_is_not_forgotten_when_the_renewal_that_saw_it_fails(keeper: Keeper) -> None:
    """The next examination sees nothing odd any more: it compares with the one before."""
    held = lease_of(keeper)
    taken_by_another(keeper, held)
    keeper.pause = 300.0
    keeper.break_disk(Write)
    keeper.run(25)
    assert keeper.failures and not keeper.losses
    keeper.mend_disk()
    keeper.run(2)
    assert [lost for lost, _ in keeper.losses] == [held]


def test_a_lease_that_could_not_be_looked_at_is_looked_at_again(keeper: Keeper) -> None:
    held = lease_of(keeper)
    taken_by_another(keeper, held)
    offset = held.lease.place.offset
    keeper.world.verdict = lambda step: "fail" if step.offset >= offset else None
    keeper.pause = 300.0
    keeper.run(25)
    assert not keeper.losses and keeper.vitals.failure is None
    keeper.mend_disk()
    keeper.run(25)
    assert [lost for lost, _ in keeper.losses] == [held]


def test_without_a_pause_no_lease_is_read(keeper: Keeper) -> None:
    held = lease_of(keeper)
    keeper.world.io.clear()
    keeper.run(100)
    assert not [io for io in keeper.world.io if io[1] >= held.lease.place.offset]


# --- stopping holders ---


def signals(keeper: Keeper, pid: int) -> list[tuple[float, Stop]]:
    return [(at, how) for at, who, how in keeper.stops if who == pid]


def failing(keeper: Keeper, *holders: Holder) -> float:
    """Start recovery; returns when the last renewal succeeded."""
    keeper.users = list(holders)
    last = keeper.host.lease.last_success
    keeper.break_disk()
    keeper.crew.run(last + 8 * IO + 1.2)
    assert keeper.recoveries
    return last


def test_holders_get_sigterm_each_second_then_sigkill_after_the_grace(keeper: Keeper) -> None:
    """Section 8, io 10: recovery at 80 s, SIGKILL each second from 120 s on."""
    last = failing(keeper, Holder(100))
    keeper.crew.run(last + 130)
    sent = signals(keeper, 100)
    assert {how for at, how in sent if at < last + 120} == {Stop.TERMINATE}
    assert {how for at, how in sent if at >= last + 120} == {Stop.KILL}
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(sent)]
    assert all(1.0 <= gap <= 1.2 for gap in gaps)


def test_a_kill_path_is_run_once_and_nothing_else_is_sent_during_the_grace(keeper: Keeper) -> None:
    last = failing(keeper, Holder(100, has_kill_path=True))
    keeper.crew.run(last + 119)
    assert [how for _, how in signals(keeper, 100)] == [Stop.KILL_PATH]
    keeper.crew.run(last + 122)
    assert signals(keeper, 100)[1][1] is Stop.KILL


def test_the_grace_is_counted_from_the_last_success_not_from_when_recovery_was_noticed(keeper: Keeper) -> None:
    """A host that stood still until the grace was over kills at once."""
    keeper.users = [Holder(100)]
    keeper.run(25)
    last = keeper.vitals.last_success
    keeper.world.time = last + 125
    keeper.run(3)
    assert signals(keeper, 100)[0][1] is Stop.KILL


def test_the_guard_goes_home_with_the_failure_once_all_holders_are_gone(keeper: Keeper) -> None:
    failing(keeper, Holder(100))
    keeper.users.clear()
    keeper.run(1)
    assert keeper.guard.step is None and keeper.guard.result is keeper.vitals.failure


def test_a_holder_that_comes_late_is_stopped_too(keeper: Keeper) -> None:
    failing(keeper, Holder(100))
    keeper.users.append(Holder(200))
    keeper.run(1)
    assert signals(keeper, 200)


def test_after_a_hundred_signals_the_watchdog_has_to_do_it(keeper: Keeper) -> None:
    last = failing(keeper, Holder(100))
    keeper.crew.run(last + 400)
    assert len(signals(keeper, 100)) == MAX_KILLS
    assert keeper.guard.step is not None, "a stuck holder is still a holder"


def test_leaving_by_command_kills_at_once(keeper: Keeper) -> None:
    """4.5: "rem_lockspace and forced shutdown use SIGKILL immediately"."""
    keeper.users = [Holder(100, has_kill_path=True)]
    keeper.crew.add(stop_holders(keeper.vitals, keeper, at_once=True))
    assert [how for _, how in signals(keeper, 100)] == [Stop.KILL]


@pytest.mark.parametrize(
    ("holder", "in_grace", "after_it"),
    [
        (Holder(1), Stop.TERMINATE, Stop.KILL),
        (Holder(1, never_kill=True), Stop.TERMINATE, Stop.TERMINATE),
        (Holder(1, never_terminate=True), Stop.KILL, Stop.KILL),
        (Holder(1, has_kill_path=True), Stop.KILL_PATH, Stop.KILL),
        (Holder(1, has_kill_path=True, never_kill=True), Stop.KILL_PATH, Stop.TERMINATE),
    ],
)
def test_a_holder_is_spared_the_signals_it_must_not_get(holder: Holder, in_grace: Stop, after_it: Stop) -> None:
    assert next_stop(holder, at=100.0, kill_from=110.0) is in_grace
    assert next_stop(holder, at=111.0, kill_from=110.0) is after_it


@pytest.mark.parametrize(("fire", "grace"), [(60, 40), (59, 15), (30, 15), (29, 0), (0, 0)])
def test_the_grace_leaves_the_watchdog_its_time(fire: float, grace: float) -> None:
    """Section 3: kill grace 40, 15 if 30 <= fire < 60, 0 if fire < 30."""
    assert Timing(10, fire).kill_grace == grace
    assert Timing(10, fire).sigkill == 80 + grace
