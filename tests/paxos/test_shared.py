"""Shared leases and conversions (ondisk.md section 6, 10.4).

"An exclusive acquirer's ballot for the next version starts after our leader is free again, so its phase-1 read
necessarily sees our mode block."
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from paxos import host_lease, resource
from paxos.errors import (
    AlreadyHeld,
    DiskError,
    HeldElsewhere,
    LeaseHeld,
    LeaseholdError,
    LeaseOther,
    ReleaseOwner,
    SharedHolders,
    SharedRetries,
)
from paxos.geometry import MAX_HOSTS, MIB, Geometry
from paxos.records import RELEASED, SHARED, SHORT_HOLD, Block, Leader
from paxos.resource import Held, Want
from paxos.steps import Read, Sleep, Write
from tests.paxos.comparison import without_clocks
from tests.paxos.golden import image
from tests.paxos.test_resource import Place, put_block, put_leader
from tests.support.cluster import Cluster, Host
from tests.support.memory import Running

GEOMETRIES = [pytest.param(Geometry(*sizes), id=f"{sizes[0]}-{sizes[1] // MIB}M") for sizes in MAX_HOSTS]
SHARE = Want(shared=True)


def crowd(geometry: Geometry | None = None, count: int = 3) -> tuple[Cluster, list[Host]]:
    """A cluster with hosts 1, 2, ... that live."""
    cluster = Cluster(geometry)
    hosts = [cluster.join(number) for number in range(1, count + 1)]
    cluster.keep_alive(*hosts)
    return cluster, hosts


def die(cluster: Cluster, host: Host) -> None:
    """It stops renewing, and so much time passes that everybody knows."""
    cluster.alive.remove(host)
    for _ in range(20):
        cluster.world.pass_time(5)


def to_exclusive(host: Host, held: Held) -> Held:
    converted: Held = host._tracked(resource.convert_to_exclusive(host.member, held, nowait=True), 1000.0)
    return converted


def to_shared(host: Host, held: Held, lvb: bytes | None = None) -> Held:
    converted: Held = host._tracked(resource.convert_to_shared(host.member, held, lvb), 1000.0)
    return converted


# --- the I/O of each operation (10.4) ---


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sharing_is_owning_the_leader_marking_and_freeing_it(geometry: Geometry) -> None:
    """10.4: "the six of EX; W (h+1)*512+512; R 0+512; W 0+512"; ours looks whether the mark is there."""
    cluster = Cluster(geometry)
    host = cluster.join(3)
    cluster.world.io.clear()
    host.acquire(cluster.lease, SHARE)
    place = Place(cluster)
    marking = [place.block("W", 3), place.block("R", 3), place.leader("R"), place.leader("W")]
    assert cluster.world.io == place.six_of_exclusive(3) + marking


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_giving_up_a_share_is_one_write(geometry: Geometry) -> None:
    """10.4: "release SH: W (h+1)*512+512"; ours looks at the block first."""
    cluster = Cluster(geometry)
    host = cluster.join(3)
    held = host.acquire(cluster.lease, SHARE)
    cluster.world.io.clear()
    host.release(held)
    place = Place(cluster)
    assert cluster.world.io == [place.block("R", 3), place.block("W", 3)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_converting_to_exclusive_takes_the_mark_away_last(geometry: Geometry) -> None:
    """10.4: "the six of EX; W (h+1)*512+512"."""
    cluster = Cluster(geometry)
    host = cluster.join(3)
    held = host.acquire(cluster.lease, SHARE)
    cluster.world.io.clear()
    to_exclusive(host, held)
    place = Place(cluster)
    assert cluster.world.io == [*place.six_of_exclusive(3), place.block("W", 3)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_converting_to_shared_marks_before_it_frees_the_leader(geometry: Geometry) -> None:
    """10.4: "W (h+1)*512+512; R 0+512; W 0+512"; ours looks whether the mark is there."""
    cluster = Cluster(geometry)
    host = cluster.join(3)
    held = host.acquire(cluster.lease)
    cluster.world.io.clear()
    to_shared(host, held)
    place = Place(cluster)
    assert cluster.world.io == [place.block("W", 3), place.block("R", 3), place.leader("R"), place.leader("W")]


def io_on_lease(cluster: Cluster) -> list[tuple[str, int, int]]:
    return [io for io in cluster.world.io if io[1] >= cluster.lease.place.offset]


def test_an_exclusive_acquire_that_meets_a_sharer_gives_all_back() -> None:
    """10.4: "the six of EX; [R (k+1)*512+512;] W (h+1)*512+512; R 0+512; W 0+512"; ours need not look again."""
    cluster, (a, b, _) = crowd()
    b.acquire(cluster.lease, SHARE)
    cluster.world.io.clear()
    with pytest.raises(SharedHolders) as raised:
        a.acquire(cluster.lease)
    assert (raised.value.code, raised.value.hosts) == (-11, [2])
    place = Place(cluster)
    assert io_on_lease(cluster) == [
        *place.six_of_exclusive(1),
        place.block("W", 1),
        place.leader("R"),
        place.leader("W"),
    ]


def test_a_conversion_that_meets_a_sharer_frees_the_leader_only() -> None:
    """10.4: "the six of EX; [R (k+1)*512+512;] R 0+512; W 0+512"; "the own block keeps SHARED"."""
    cluster, (a, b, _) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    b.acquire(cluster.lease, SHARE)
    cluster.world.io.clear()
    with pytest.raises(SharedHolders):
        to_exclusive(a, held)
    place = Place(cluster)
    assert io_on_lease(cluster) == [*place.six_of_exclusive(1), place.leader("R"), place.leader("W")]
    assert cluster.block(1).shared and cluster.leader().free


def test_a_dead_sharer_s_sector_is_zeroed() -> None:
    """10.4: "the six of EX; [R (k+1)*512+512;] W (k+1)*512+512 (zeros)"."""
    cluster, (a, b, _) = crowd()
    b.acquire(cluster.lease, SHARE)
    die(cluster, b)
    cluster.world.io.clear()
    a.acquire(cluster.lease)
    place = Place(cluster)
    assert io_on_lease(cluster) == [*place.six_of_exclusive(1), place.block("W", 2)]
    at = cluster.lease.place.at(cluster.geometry.block_offset(2))
    assert cluster.bytes_of(at, 512) == bytes(512)


# --- against the reference's bytes ---


def like(name: str) -> tuple[bytes, Cluster, list[Host]]:
    golden = image(name)
    leader = Leader.unpack(golden.data)
    cluster = Cluster(golden.geometry, name=leader.space_name.rstrip(b"\0"))
    cluster.lease = replace(cluster.lease, name=leader.resource_name.rstrip(b"\0"))
    fresh = Leader.unpack(cluster.bytes_of(cluster.lease.place.offset, 200))
    put_leader(cluster, fresh.changed(resource_name=leader.resource_name))
    hosts = [cluster.join(1), cluster.join(2)]
    cluster.keep_alive(*hosts)
    return without_clocks(golden.data, golden.geometry), cluster, hosts


def area_of(cluster: Cluster) -> bytes:
    return without_clocks(cluster.area_bytes(), cluster.geometry)


@pytest.mark.parametrize("name", ["res_512_1m_sh_host1", "res_4k_1m_sh_host1"])
def test_a_first_share_is_the_reference_s_byte_for_byte(name: str) -> None:
    golden, cluster, (a, _) = like(name)
    a.acquire(cluster.lease, SHARE)
    assert area_of(cluster) == golden


def test_the_reference_s_story_of_two_sharers_and_conversions_byte_for_byte() -> None:
    """sh_two, converted_ex, converted_sh, sh_released were made one after the other on one lease."""
    golden, cluster, (a, b) = like("res_512_1m_sh_two")
    mine, theirs = a.acquire(cluster.lease, SHARE), b.acquire(cluster.lease, SHARE)
    assert area_of(cluster) == golden
    with pytest.raises(SharedHolders):  # version 3, as in the reference's story
        to_exclusive(a, mine)
    b.release(theirs)
    mine = to_exclusive(a, mine)
    assert area_of(cluster) == like("res_512_1m_converted_ex")[0]
    mine = to_shared(a, mine)
    assert area_of(cluster) == like("res_512_1m_converted_sh")[0]
    with pytest.raises(SharedHolders):
        b.acquire(cluster.lease)
    a.release(mine)
    assert area_of(cluster) == like("res_512_1m_sh_released")[0]


@pytest.mark.parametrize(("before", "after"), [("res_512_1m_sh_dead", "res_512_1m_sh_dead_cleared")])
def test_a_dead_sharer_cleared_is_the_reference_s_byte_for_byte(before: str, after: str) -> None:
    golden, cluster, (a, b) = like(before)
    b.acquire(cluster.lease, SHARE)
    assert area_of(cluster) == golden
    die(cluster, b)
    a.acquire(cluster.lease)
    assert area_of(cluster) == like(after)[0]


# --- who may be together ---


@pytest.mark.parametrize("first", ["shared", "exclusive"])
@pytest.mark.parametrize("second", ["shared", "exclusive"])
def test_only_sharers_hold_together(first: str, second: str) -> None:
    cluster, (a, b, c) = crowd()
    a.acquire(cluster.lease, Want(shared=first == "shared"))
    want = Want(shared=second == "shared", nowait=True)
    if (first, second) == ("shared", "shared"):
        b.acquire(cluster.lease, want)
        c.acquire(cluster.lease, want)
        assert [owner.host_id for owner in cluster.owners()] == [1, 2, 3]
    else:
        with pytest.raises(LeaseHeld if first == "exclusive" else SharedHolders):
            b.acquire(cluster.lease, want)
        assert [owner.host_id for owner in cluster.owners()] == [1]


def test_after_the_last_sharer_left_it_can_be_had_exclusively() -> None:
    cluster, (a, b, c) = crowd()
    shares = [(host, host.acquire(cluster.lease, SHARE)) for host in (a, b)]
    for host, held in shares:
        with pytest.raises(SharedHolders):
            c.acquire(cluster.lease)
        host.release(held)
    held = c.acquire(cluster.lease)
    assert held.lver == 5, "two shares, two refused tries, and this one"


def test_a_share_costs_a_version_and_leaves_the_leader_free() -> None:
    cluster, (a, b, _) = crowd()
    assert a.acquire(cluster.lease, SHARE).lver == 1
    assert b.acquire(cluster.lease, SHARE).lver == 2
    leader = cluster.leader()
    assert leader.free and not leader.flags & SHORT_HOLD


def test_a_refused_exclusive_acquire_leaves_no_owner_behind() -> None:
    cluster, (a, b, c) = crowd()
    share = b.acquire(cluster.lease, SHARE)
    with pytest.raises(SharedHolders):
        a.acquire(cluster.lease)
    assert [owner.host_id for owner in cluster.owners()] == [2] and cluster.block(1).released
    c.release(c.acquire(cluster.lease, SHARE))
    b.release(share)


# --- the moment in which a sharer owns the leader ---


def test_while_it_marks_the_leader_says_short_hold() -> None:
    """6.1 step 1: "Acquire as 5.2, with SHORT_HOLD set in the committed leader"."""
    cluster, (a, _, _) = crowd()
    running = cluster.world.start(resource.acquire(a.member, cluster.lease, SHARE))
    running.until(lambda s: isinstance(s, Write) and s.offset == cluster.lease.place.offset)
    running.advance()
    assert cluster.leader().flags & SHORT_HOLD
    running.finish()
    assert not cluster.leader().flags & SHORT_HOLD


def in_short_hold(cluster: Cluster, host: Host) -> None:
    """The host owns the leader for a share, and stays there."""
    running = cluster.world.start(resource.acquire(host.member, cluster.lease, SHARE))
    running.until(lambda s: isinstance(s, Write) and s.offset == cluster.lease.place.offset)
    running.advance()


def test_a_sharer_waits_for_another_s_short_hold_and_then_says_so() -> None:
    """6.1: "sleep random 0..1 s and retry, at most 8 retries (configurable), then -246"."""
    cluster, (a, b, _) = crowd()
    in_short_hold(cluster, a)
    cluster.world.io.clear()
    with pytest.raises(SharedRetries) as raised:
        b.acquire(cluster.lease, SHARE)
    assert (raised.value.code, raised.value.retries) == (-246, 8)
    looks = [io for io in cluster.world.io if io[0] == "R" and io[1] == cluster.lease.place.offset]
    assert len(looks) == 9


def test_how_often_it_retries_can_be_said() -> None:
    cluster, (a, b, _) = crowd()
    in_short_hold(cluster, a)
    with pytest.raises(SharedRetries) as raised:
        b.acquire(cluster.lease, Want(shared=True, sh_retries=0))
    assert raised.value.retries == 0


def test_a_short_hold_that_ends_lets_the_next_sharer_in() -> None:
    cluster, (a, b, _) = crowd()
    first = cluster.world.start(resource.acquire(a.member, cluster.lease, SHARE))
    first.until(lambda s: isinstance(s, Write) and s.offset == cluster.lease.place.offset)
    first.advance()
    second = cluster.world.start(resource.acquire(b.member, cluster.lease, SHARE))
    for _ in range(6):
        second.advance()
    first.finish()
    assert second.finish().shared


@pytest.mark.parametrize("seed", range(10))
def test_hosts_that_share_at_the_same_moment_do_not_refuse_each_other(seed: int) -> None:
    """With the reference's rule alone every third of them was refused: a competitor's leader has no SHORT_HOLD."""
    cluster, hosts = crowd()
    dice = random.Random(seed)
    awake = [cluster.world.start(resource.acquire(host.member, cluster.lease, SHARE)) for host in hosts]
    asleep: list[tuple[float, Running]] = []
    while awake or asleep:
        if not awake:
            cluster.world.pass_time(max(0.0, min(wakes for wakes, _ in asleep) - cluster.world.time) + 1e-6)
        for one in [one for one in asleep if one[0] <= cluster.world.time]:
            asleep.remove(one)
            one[1].wake()
            awake.append(one[1])
        if awake:
            running = dice.choice(awake)
            running.advance()
            if running.step is None or isinstance(running.step, Sleep):
                awake.remove(running)
            if isinstance(running.step, Sleep):
                asleep.append((cluster.world.time + running.step.seconds, running))
    assert [owner.host_id for owner in cluster.owners()] == [1, 2, 3]


def test_an_exclusive_owner_whose_leader_a_competitor_wrote_refuses_sharers_after_some_tries() -> None:
    cluster, (a, b, _) = crowd()
    a.acquire(cluster.lease)
    put_leader(cluster, cluster.leader().changed(write_id=3))
    with pytest.raises(LeaseHeld):
        b.acquire(cluster.lease, SHARE)


def test_an_exclusive_acquirer_does_not_wait_for_a_short_hold() -> None:
    cluster, (a, b, _) = crowd()
    in_short_hold(cluster, a)
    with pytest.raises(LeaseHeld):
        b.acquire(cluster.lease)


def test_a_sharer_does_not_wait_for_an_exclusive_owner() -> None:
    """6.1: "Without SHORT_HOLD return the error"."""
    cluster, (a, b, _) = crowd()
    a.acquire(cluster.lease)
    start = cluster.world.time
    with pytest.raises(LeaseHeld):
        b.acquire(cluster.lease, SHARE)
    assert cluster.world.time == start


def test_a_share_whose_leader_was_taken_meanwhile_takes_its_mark_back() -> None:
    """6.1 step 3: "Failure in 2 or 3 -> undo"."""
    cluster, (a, _, _) = crowd()
    running = cluster.world.start(resource.acquire(a.member, cluster.lease, SHARE))
    running.until(lambda s: isinstance(s, Read) and s.length == 512 and s.offset == cluster.lease.place.offset)
    put_leader(cluster, cluster.leader().changed(timestamp=7))
    with pytest.raises(ReleaseOwner):
        running.finish()
    assert not cluster.block(1).shared


# --- marks of hosts that are gone (6.2) ---


@pytest.mark.parametrize("how", ["died", "left", "came back"])
def test_marks_of_hosts_that_are_gone_are_cleared(how: str) -> None:
    cluster, (a, b, _) = crowd()
    b.acquire(cluster.lease, SHARE)
    if how == "died":
        die(cluster, b)
    else:
        cluster.alive.remove(b)
        cluster.world.run(host_lease.release(b.lease, b.timing))
        if how == "came back":
            cluster.alive.append(cluster.join(2))
        cluster.world.pass_time(2.5)
        cluster.world.pass_time(2.5)
    a.acquire(cluster.lease)
    assert cluster.block(2) == Block()
    assert [owner.host_id for owner in cluster.owners()] == [1]


def test_of_several_marks_the_dead_ones_are_cleared_though_a_live_one_refuses() -> None:
    cluster, (a, b, c) = crowd()
    for host in (b, c):
        host.acquire(cluster.lease, SHARE)
    die(cluster, b)
    with pytest.raises(SharedHolders) as raised:
        a.acquire(cluster.lease)
    assert raised.value.hosts == [3]
    assert cluster.block(2) == Block() and cluster.block(3).shared


def test_before_the_hosts_were_examined_every_mark_is_respected() -> None:
    """6.2: "alive if no history or never examined"."""
    cluster = Cluster()
    sharer = cluster.join(2)
    sharer.acquire(cluster.lease, SHARE)
    cluster.world.time += 1000
    newcomer = cluster.join(1)
    with pytest.raises(SharedHolders):
        newcomer.acquire(cluster.lease)


def test_our_own_older_instance_s_mark_goes_with_our_first_ballot() -> None:
    cluster, (a, _, _) = crowd()
    a.acquire(cluster.lease, SHARE)
    cluster.keep_alive()
    again = cluster.join(1)
    cluster.keep_alive(again)
    again.release(again.acquire(cluster.lease))
    assert not cluster.block(1).shared


# --- converting ---


def test_a_lone_sharer_becomes_the_owner_and_back() -> None:
    cluster, (a, b, _) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    held = to_exclusive(a, held)
    assert not held.shared and not cluster.block(1).shared
    with pytest.raises(LeaseHeld):
        b.acquire(cluster.lease, SHARE)
    held = to_shared(a, held)
    assert held.shared and cluster.block(1).shared
    b.acquire(cluster.lease, SHARE)


def test_a_refused_conversion_keeps_the_share() -> None:
    cluster, (a, b, c) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    theirs = b.acquire(cluster.lease, SHARE)
    with pytest.raises(SharedHolders):
        to_exclusive(a, held)
    cluster.world.run(resource.verify_held(a.member, held))
    with pytest.raises(SharedHolders) as raised:
        c.acquire(cluster.lease)
    assert sorted(raised.value.hosts) == [1, 2]
    b.release(theirs)
    assert not to_exclusive(a, held).shared


def test_a_refused_conversion_lets_others_share_though_a_competitor_wrote_the_leader() -> None:
    """The leader goes on naming us the owner, and nobody would free it while we share."""
    cluster, (a, b, c) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    b.acquire(cluster.lease, SHARE)
    running = cluster.world.start(resource.convert_to_exclusive(a.member, held))
    leader_write = lambda s: isinstance(s, Write) and s.offset == cluster.lease.place.offset  # noqa: E731
    running.until(leader_write)
    running.advance()
    put_leader(cluster, cluster.leader().changed(write_id=3))  # C finished the same ballot for us
    with pytest.raises(SharedHolders):
        running.finish()
    assert cluster.block(1).shared and cluster.block(1).released
    assert c.acquire(cluster.lease, Want(shared=True, nowait=True)).shared
    cluster.world.run(resource.verify_held(a.member, held))


def test_of_two_sharers_that_convert_at_once_neither_gets_it_and_both_keep_theirs() -> None:
    cluster, (a, b, _) = crowd()
    shares = [a.acquire(cluster.lease, SHARE), b.acquire(cluster.lease, SHARE)]
    for host, held in zip((a, b), shares, strict=True):
        with pytest.raises(HeldElsewhere):
            to_exclusive(host, held)
    assert [owner.host_id for owner in cluster.owners()] == [1, 2]


def test_the_mark_never_leaves_the_disk_before_the_lease_is_exclusive() -> None:
    """6.4: "else a crash would lose the shared lease"."""
    cluster, (a, _, _) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    running = cluster.world.start(resource.convert_to_exclusive(a.member, held))
    while running.step is not None:
        if not cluster.block(1).shared:
            raise AssertionError("the mark is gone")
        running.advance()
        if running.step is None:
            break
        assert cluster.block(1).shared
    assert not cluster.block(1).shared and running.failure is None


def test_a_share_given_up_after_a_refused_conversion_keeps_the_ballot_s_values() -> None:
    """Another host's ballot for that version must still find what was decided."""
    cluster, (a, b, _) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    b.acquire(cluster.lease, SHARE)
    with pytest.raises(SharedHolders):
        to_exclusive(a, held)
    voted = cluster.block(1)
    assert voted.lver == 3 and voted.accepted
    a.release(held)
    assert cluster.block(1) == voted.changed(flags=RELEASED, mode_flags=0, mode_generation=0)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_held_in_that_mode_already_is_not_converted(shared: bool) -> None:
    """-114 on the wire; nothing is read or written."""
    cluster, (a, _, _) = crowd()
    held = a.acquire(cluster.lease, Want(shared=shared))
    cluster.world.io.clear()
    with pytest.raises(AlreadyHeld):
        cluster.world.run((resource.convert_to_shared if shared else resource.convert_to_exclusive)(a.member, held))
    assert cluster.world.io == []


def test_a_value_is_written_before_others_may_share() -> None:
    """6.5: "(LVB if modified), W: own block"."""
    cluster, (a, _, _) = crowd()
    held = a.acquire(cluster.lease)
    cluster.world.io.clear()
    to_shared(a, held, lvb=b"value")
    assert cluster.world.io[0] == ("W", cluster.lease.place.at(2002 * 512), 512)
    assert cluster.world.run(resource.read_lvb(cluster.lease, 1.0)).startswith(b"value")


def test_a_convert_that_finds_the_leader_elsewhere_is_refused_and_keeps_the_share() -> None:
    cluster, (a, b, _) = crowd()
    held = a.acquire(cluster.lease, SHARE)
    in_short_hold(cluster, b)
    with pytest.raises(LeaseHeld):
        to_exclusive(a, held)
    assert cluster.block(1).shared


# --- a share is not exclusive's, whatever fails ---


@pytest.mark.parametrize("which", range(1, 10))
def test_a_share_that_fails_half_way_hinders_nobody_after_settling(which: int) -> None:
    cluster, (a, b, _) = crowd()
    count = 0

    def verdict(step: Read | Write) -> str | None:
        nonlocal count
        if step.offset < cluster.lease.place.offset:
            return None
        count += 1
        return "fail" if count == which else None

    cluster.world.verdict = verdict
    with pytest.raises(DiskError):
        a.acquire(cluster.lease, SHARE)
    cluster.world.verdict = lambda _step: None
    a.settle(cluster.lease)
    assert cluster.owners() == []
    for _ in range(3):
        try:
            b.acquire(cluster.lease)
            break
        except LeaseOther:
            continue
    else:
        raise AssertionError("nobody can have it")


def test_sharing_hundreds_of_times_wears_nothing_out() -> None:
    cluster, hosts = crowd(count=3)
    held: dict[int, Held] = {}
    for turn in range(120):
        host = hosts[turn % 3]
        if host.host_id in held:
            host.release(held.pop(host.host_id))
        else:
            held[host.host_id] = host.acquire(cluster.lease, SHARE)
    assert {owner.host_id for owner in cluster.owners()} == set(held)


def test_a_mark_of_generation_0_is_of_nobody() -> None:
    """6.2: "generation 0 -> skip (odd)"."""
    cluster, (a, _, _) = crowd()
    put_block(cluster, 2, Block().changed(mode_flags=SHARED))
    try:
        a.acquire(cluster.lease)
    except LeaseholdError as refused:
        raise AssertionError("an odd mark must not lock a lease for good") from refused
