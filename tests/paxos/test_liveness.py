"""Who lives, since when, and whether we stood still ourselves (ondisk.md 4.6).

"Timestamps ... are only ever compared for equality/change by other hosts, never for order."
"""

from __future__ import annotations

from typing import Any

import pytest

from paxos.errors import BallotReadFailed, StaleRead
from paxos.geometry import MAX_HOSTS, MIB, Geometry, Place
from paxos.liveness import HostState, HostTable
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.records import EMPTY_BLOCK, Leader, bitmap_of, fresh_lockspace
from paxos.steps import Read, Write
from paxos.timing import Timing
from tests.paxos.golden import image
from tests.support.cluster import Cluster

GEOMETRY = Geometry(512, MIB)
IO = 10
TIMING = Timing(IO)
OWN = 1


class Lockspace:
    """A lockspace area that others write as the story wants, and our table of it."""

    def __init__(self, geometry: Geometry = GEOMETRY, own: int = OWN) -> None:
        self.geometry = geometry
        area, first = fresh_lockspace(b"LS", geometry, IO)
        self.area = bytearray(first + area[len(first) :])
        self.table = HostTable(LockspaceArea(b"LS", Place("d"), geometry), own, TIMING)
        self.now = 1000.0

    def record(self, host: int) -> Leader:
        at = self.geometry.delta_offset(host)
        return Leader.unpack(self.area[at : at + 200])

    def write(self, host: int, **fields: Any) -> None:
        """Change a host's record; by default it joins, or renews at the present time."""
        record = self.record(host)
        fields = {
            "owner_id": host,
            "owner_generation": record.owner_generation or 1,
            "timestamp": int(self.now) + 77 * host,  # each by its own clock
            **fields,
        }
        at = self.geometry.delta_offset(host)
        self.area[at : at + 200] = record.changed(**fields).pack()

    def call(self, host: int, whom: int) -> None:
        at = self.geometry.delta_offset(host)
        self.area[at + 256 : at + 512] = bitmap_of([whom])

    def look(self, after: float = 0.0, renewing: tuple[int, ...] = ()) -> Observation:
        """Time passes; then these hosts have just renewed; then we examine."""
        self.now += after
        for host in renewing:
            self.write(host)
        return self.table.observe(memoryview(bytes(self.area)), self.now)

    def live(self, seconds: float, *hosts: int) -> list[Observation]:
        """These hosts renew every 20 s and so do we."""
        return [self.look(20.0, hosts) for _ in range(int(seconds / 20))]

    def state(self, host: int) -> HostState:
        return self.table.state(host, self.now)


@pytest.fixture
def space() -> Lockspace:
    return Lockspace()


# --- examining ---


def test_before_the_first_examination_nothing_is_known(space: Lockspace) -> None:
    """4.6: "Before the first examination queries give -EAGAIN"."""
    assert not space.table.examined
    assert space.table.get(2) is None and space.table.used() == []
    assert space.state(2) is HostState.UNKNOWN


def test_the_first_examination_counts_as_a_change_for_any_used_slot(space: Lockspace) -> None:
    space.write(2)
    space.write(3, timestamp=0)  # it left
    seen = space.look()
    assert seen.changed == (2, 3)
    history = space.table.get(2)
    assert history is not None and history.last_live == history.first_check == history.last_check == 1000.0


def test_a_slot_that_was_never_used_was_never_live(space: Lockspace) -> None:
    space.look()
    space.look(20)
    history = space.table.get(2)
    assert history is not None and history.last_live == 0.0
    assert space.state(2) is HostState.FREE


@pytest.mark.parametrize("field", ["timestamp", "owner_generation", "owner_id"])
def test_a_change_of_timestamp_generation_or_owner_is_a_sign_of_life(space: Lockspace, field: str) -> None:
    space.write(2)
    space.look()
    space.now += 20
    record = space.record(2)
    space.write(2, **{"timestamp": record.timestamp, field: getattr(record, field) + 1})
    seen = space.look()
    history = space.table.get(2)
    assert seen.changed == (2,) and history is not None and history.last_live == space.now


def test_a_change_of_anything_else_is_none(space: Lockspace) -> None:
    space.write(2)
    space.look()
    space.now += 20
    record = space.record(2)
    space.write(2, timestamp=record.timestamp, resource_name=b"x".ljust(48, b"\0"), write_generation=5)
    assert space.look().changed == ()


def test_a_timestamp_that_goes_back_is_a_sign_of_life_too(space: Lockspace) -> None:
    """A host that was booted anew counts from zero."""
    space.write(2)
    space.look()
    space.write(2, timestamp=3)
    assert space.look(20).changed == (2,)


def test_the_states_that_users_see(space: Lockspace) -> None:
    """4.6: age <= 8 io UNKNOWN or LIVE, then FAIL, DEAD after host_dead."""
    space.write(2)
    space.look()
    assert space.state(2) is HostState.UNKNOWN, "seen once only"
    space.look(20, renewing=(2,))
    assert space.state(2) is HostState.LIVE
    space.look(8 * IO)
    assert space.state(2) is HostState.LIVE
    space.look(0.1)
    assert space.state(2) is HostState.FAIL
    space.look(60 - 0.1)
    assert space.state(2) is HostState.FAIL
    space.look(0.1)
    assert space.state(2) is HostState.DEAD
    space.write(2, timestamp=0)
    space.look(20)
    assert space.state(2) is HostState.FREE


def test_we_are_live_to_ourselves(space: Lockspace) -> None:
    space.write(OWN)
    space.look()
    space.look(1000)
    assert space.state(OWN) is HostState.LIVE


def test_a_host_is_judged_by_the_io_timeout_it_stored(space: Lockspace) -> None:
    space.write(2, io_timeout=3)
    space.write(3, io_timeout=0)
    space.write(4, io_timeout=300)
    space.look()
    judged = [space.table.get(host).io_timeout for host in (2, 3, 4)]  # type: ignore[union-attr]
    assert judged == [3, IO, 300]
    space.look(8 * 3 + 60 + 1)
    assert space.state(2) is HostState.DEAD
    assert space.state(3) is HostState.FAIL


@pytest.mark.parametrize("damage", ["magic", "space_name"])
def test_a_bad_sector_s_names_are_not_believed_but_its_pulse_is(space: Lockspace, damage: str) -> None:
    """4.6: "timestamp copied whenever (owner, generation, timestamp) differ ... even if the sector is bad"."""
    space.write(2, resource_name=b"good".ljust(48, b"\0"))
    space.look()
    bad: dict[str, Any] = {"magic": 1} if damage == "magic" else {"space_name": b"no".ljust(48, b"\0")}
    space.now += 20
    space.write(2, **bad, resource_name=b"bad".ljust(48, b"\0"))
    assert space.look().changed == (2,)
    history = space.table.get(2)
    assert history is not None and history.name == b"good" and history.last_live == space.now
    assert history.timestamp == space.record(2).timestamp


def test_a_wrong_checksum_must_not_look_like_a_death(space: Lockspace) -> None:
    """4.6: "checksum and version are not checked here"."""
    space.write(2)
    space.look()
    space.now += 20
    space.write(2)
    at = space.geometry.delta_offset(2)
    space.area[at + 168] ^= 0xFF
    assert space.look().changed == (2,)


def test_used_slots_are_those_with_a_timestamp(space: Lockspace) -> None:
    for host in (9, 3, 5):
        space.write(host)
    space.write(5, timestamp=0)
    space.look()
    assert [history.host_id for history in space.table.used()] == [3, 9]


@pytest.mark.parametrize("sizes", MAX_HOSTS)
def test_the_last_slot_of_each_size_is_watched(sizes: tuple[int, int]) -> None:
    geometry = Geometry(*sizes)
    space = Lockspace(geometry)
    space.write(geometry.max_hosts)
    assert space.look().changed == (geometry.max_hosts,)
    assert space.table.get(geometry.max_hosts + 1) is None and space.table.get(0) is None


def test_a_lockspace_that_the_reference_wrote_is_understood() -> None:
    golden = image("ls_512_1m_two_joined")
    table = HostTable(LockspaceArea(b"LS", Place("d"), golden.geometry), 1, Timing(1))
    table.observe(memoryview(golden.data), 5.0)
    assert [(h.host_id, h.generation, h.name) for h in table.used()] == [(1, 1, b"hostA"), (2, 1, b"hostB")]


# --- being called ---


def test_a_host_that_calls_us_is_heard_when_it_renews(space: Lockspace) -> None:
    space.write(2)
    space.call(2, OWN)
    assert space.look().calling == (2,)
    assert space.look(1).calling == (), "nothing new"
    assert space.look(20, renewing=(2,)).calling == (2,)


def test_a_call_for_others_is_not_for_us_nor_our_own(space: Lockspace) -> None:
    space.write(2)
    space.call(2, 3)
    space.write(OWN)
    space.call(OWN, OWN)
    assert space.look().calling == ()


def test_a_call_that_the_reference_sent_is_heard() -> None:
    golden = image("ls_512_1m_request_bitmap")
    table = HostTable(LockspaceArea(b"LS", Place("d"), golden.geometry), 1, Timing(1))
    assert table.observe(memoryview(golden.data), 5.0).calling == (2,)


# --- shared marks of hosts (6.2) ---


def test_a_mark_is_respected_as_long_as_its_host_may_live(space: Lockspace) -> None:
    """6.2 host_live: "alive if no history or never examined"."""
    assert space.table.shared_holder_alive(2, 1)
    space.write(2)
    space.look()
    space.look(TIMING.host_dead)
    assert space.table.shared_holder_alive(2, 1)
    space.look(0.5)
    assert not space.table.shared_holder_alive(2, 1)


def test_silence_counts_only_while_we_looked(space: Lockspace) -> None:
    """Better than the reference: who was stopped itself would take everybody for dead."""
    space.write(2)
    space.look()
    space.now += 10 * TIMING.host_dead
    assert space.table.shared_holder_alive(2, 1)


def test_a_mark_ends_when_its_host_left_or_came_back(space: Lockspace) -> None:
    space.write(2)
    space.write(3, owner_generation=5)
    space.look()
    space.write(2, timestamp=0)
    space.look(1)
    assert not space.table.shared_holder_alive(2, 1)
    assert not space.table.shared_holder_alive(3, 4)
    assert space.table.shared_holder_alive(3, 5)


def test_a_mark_of_a_host_that_joined_since_we_looked_is_respected(space: Lockspace) -> None:
    space.write(2)
    space.look()
    assert space.table.shared_holder_alive(2, 2)


def test_a_mark_of_a_host_never_seen_live_ends_after_host_dead(space: Lockspace) -> None:
    """6.2: "not alive if last_live==0 and now-first_check > host_dead"."""
    space.look()
    history = space.table.get(2)
    assert history is not None and history.dead_at(60) == 1000 + 8 * IO + 60


# --- standing still ourselves ---


def test_while_all_goes_well_no_pause_is_suspected(space: Lockspace) -> None:
    space.write(2)
    space.write(3)
    assert not any(seen.paused_for for seen in space.live(1000, 2, 3))


def test_others_clocks_that_moved_far_more_than_ours_tell_of_a_pause(space: Lockspace) -> None:
    """A virtual machine that is stopped with its clock: for it no time passed."""
    space.live(100, 2, 3)
    space.now += 500
    space.write(2)
    space.write(3)
    space.now -= 500  # our clock stood still
    seen = space.look(0.5)
    assert seen.paused_for == pytest.approx(500, abs=25)


def test_one_honest_clock_is_enough_to_say_that_no_time_was_lost(space: Lockspace) -> None:
    space.live(100, 2, 3)
    space.now += 20
    space.write(2)
    space.write(3, timestamp=space.record(3).timestamp + 5000)
    assert space.look().paused_for == 0


def test_storage_that_was_merely_slow_gives_no_alarm(space: Lockspace) -> None:
    """Our own clock ran on meanwhile, as did theirs."""
    space.live(100, 2, 3)
    assert space.look(300.0, renewing=(2, 3)).paused_for == 0


def test_the_phase_between_two_renewals_gives_no_alarm(space: Lockspace) -> None:
    """The other renewed just before our last look and just after: its clock seems ahead by one interval."""
    space.live(100, 2)
    space.now += 20
    space.write(2)
    space.now -= 20
    assert space.look(0.5).paused_for == 0


def test_a_pause_too_short_to_lose_a_lease_gives_no_alarm(space: Lockspace) -> None:
    space.live(100, 2)
    space.now += TIMING.pause_suspected - 1
    space.write(2)
    space.now -= TIMING.pause_suspected - 1
    assert space.look(0.5).paused_for == 0


def test_a_lone_newcomer_where_all_others_are_silent_may_have_taken_over(space: Lockspace) -> None:
    """It may have joined, waited and taken over while we stood still: nobody else's clock says otherwise."""
    space.live(100)
    space.write(7)
    assert space.look(0.5).paused_for == TIMING.host_dead


def test_a_newcomer_among_others_that_go_on_is_no_alarm(space: Lockspace) -> None:
    space.live(100, 2)
    space.write(7)
    assert space.look(20, renewing=(2,)).paused_for == 0


def test_a_host_that_came_back_is_a_newcomer_too(space: Lockspace) -> None:
    space.live(100, 2)
    space.write(2, owner_generation=2)
    assert space.look(0.5).paused_for == TIMING.host_dead


def test_a_host_that_left_tells_nothing_about_time(space: Lockspace) -> None:
    space.live(100, 2)
    space.write(2, timestamp=0)
    assert space.look(20).paused_for == 0


def test_a_lone_host_never_suspects_a_pause(space: Lockspace) -> None:
    assert not any(seen.paused_for for seen in space.live(1000, OWN))


def test_the_first_look_after_joining_suspects_nothing(space: Lockspace) -> None:
    space.write(2)
    assert space.look().paused_for == 0


# --- what we wrote ourselves must be seen ---


def test_a_read_that_shows_less_than_we_wrote_is_stale() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    member, lease = host.member, cluster.lease
    block = lease.sector_place(lease.geometry.block_offset(1))
    held = host.acquire(lease)
    member.check_fresh(lease.place, block, held.block)
    with pytest.raises(StaleRead) as raised:
        member.check_fresh(lease.place, block, held.block.changed(mbal=held.block.mbal - 1))
    assert (raised.value.found, raised.value.written) == (held.block.mbal - 1, held.block.mbal)


def test_the_first_phase_of_a_ballot_is_older_than_its_second() -> None:
    """A read that shows it would have us write over the value that we accepted."""
    cluster = Cluster()
    host = cluster.join(1)
    place = cluster.lease.sector_place(cluster.lease.geometry.block_offset(1))
    held = host.acquire(cluster.lease)
    with pytest.raises(StaleRead):
        host.member.check_fresh(cluster.lease.place, place, held.block.changed(bal=0, inp=0, inp2=0, inp3=0))


def test_what_a_ballot_wrote_before_its_read_failed_is_remembered() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    member, lease = host.member, cluster.lease
    reads = 0

    def second_look_fails(step: Read | Write) -> str | None:
        nonlocal reads
        reads += isinstance(step, Read)
        return "fail" if isinstance(step, Read) and reads == 2 else None

    cluster.world.verdict = second_look_fails
    with pytest.raises(BallotReadFailed):
        host.acquire(lease)
    assert member.ballots[lease.place].mbal == 1
    with pytest.raises(StaleRead):
        member.check_fresh(lease.place, lease.sector_place(lease.geometry.block_offset(1)), EMPTY_BLOCK)


def test_an_empty_own_block_is_believed_when_it_is_seen_again() -> None:
    """A host that took us for dead clears our shared mark so, and the rest of the sector with it."""
    cluster = Cluster()
    host = cluster.join(1)
    member, lease = host.member, cluster.lease
    block = lease.sector_place(lease.geometry.block_offset(1))
    host.acquire(lease)
    with pytest.raises(StaleRead):
        member.check_fresh(lease.place, block, EMPTY_BLOCK)
    member.check_fresh(lease.place, block, EMPTY_BLOCK)
