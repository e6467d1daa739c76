"""Who may still hold a lease, and when it may be decided anew (ondisk.md 5.3).

"Safety: the owner's last renewal was at or before last_live; its watchdog ... fires at most `fire` later, so after
8 io + fire it has been reset and can neither use the resource nor issue writes."
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leases.sim.reference import ERASED
from paxos import host_lease, resource
from paxos.errors import BadRecord, LeaseHeld, LeaseholdError, OwnerMayBeDead
from paxos.ownership import Claim, claims
from paxos.records import RELEASED, Block, Leader
from paxos.resource import Held, Want
from paxos.steps import Read, Sleep, Write
from paxos.timing import Timing
from tests.support.cluster import Cluster, Host


def put_leader(cluster: Cluster, leader: Leader) -> None:
    at = cluster.lease.place.offset
    cluster.world.disks["d"][at : at + 200] = leader.pack()


def put_block(cluster: Cluster, host_id: int, block: Block) -> None:
    at = cluster.lease.place.at(cluster.geometry.block_offset(host_id))
    cluster.world.disks["d"][at : at + 512] = block.sector(512)


def delta_of(cluster: Cluster, host_id: int) -> Leader:
    return Leader.unpack(cluster.bytes_of((host_id - 1) * 512, 200))


def put_delta(cluster: Cluster, host_id: int, record: Leader) -> None:
    cluster.world.disks["d"][(host_id - 1) * 512 : (host_id - 1) * 512 + 200] = record.pack()


def who(cluster: Cluster, host: Host) -> list[Claim]:
    return claims(cluster.scene(), host.member)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def two(cluster: Cluster, io_timeout: int = 1) -> tuple[Host, Host, Held]:
    """The owner, another host that has seen it renew twice, and the lease that is held."""
    owner = cluster.join(1, timing=Timing(io_timeout))
    other = cluster.join(2)
    held = owner.acquire(cluster.lease)
    for _ in range(2):
        cluster.world.time += 2.5
        owner.renew()
        other.renew()
    return owner, other, held


# --- waiting for a dead owner ---


@pytest.mark.parametrize("io_timeout", [1, 3, 10])
def test_a_take_over_waits_exactly_host_dead_since_the_last_sign_of_life(cluster: Cluster, io_timeout: int) -> None:
    """5.3 2f: "now - wait_start > host_dead(owner's io) (strictly)"; 10.5: "io 3, last_live 1229, committed 1314"."""
    _, other, _ = two(cluster, io_timeout)
    last_live = cluster.world.time
    cluster.world.time += 1
    other.renew()
    held = other.acquire(cluster.lease)
    dead = 8 * io_timeout + 60
    committed = cluster.world.time
    assert last_live + dead < committed <= last_live + dead + 0.5
    assert held.lver == 2


def test_not_one_second_sooner(cluster: Cluster) -> None:
    _, other, _ = two(cluster)
    last_live = cluster.world.time
    cluster.world.time += 1
    other.renew()
    running = cluster.world.start(resource.acquire(other.member, cluster.lease))
    while cluster.world.time <= last_live + 68:
        assert cluster.leader().owner_id == 1
        assert not isinstance(running.step, Write), "a ballot began before the owner was dead"
        running.advance()
    assert running.finish().lver == 2


def test_the_time_that_passed_since_the_last_sign_of_life_counts(cluster: Cluster) -> None:
    _, other, _ = two(cluster)
    cluster.world.time += 1000
    other.renew()
    start = cluster.world.time
    other.acquire(cluster.lease)
    assert cluster.world.time == start


def test_while_it_waits_it_reads_the_host_lease_and_the_leader_once_a_second(cluster: Cluster) -> None:
    """10.5: "each second: R delta sector k, (1 s), R 0+512"."""
    _, other, _ = two(cluster)
    cluster.world.time += 60
    other.renew()
    cluster.world.io.clear()
    other.acquire(cluster.lease)
    at = cluster.lease.place.offset
    whole, block = ("R", at, 1 << 20), ("W", at + 3 * 512, 512)
    waiting = [("R", 0, 512), ("R", at, 512)]
    io = cluster.world.io
    assert io[0] == whole
    seconds = (len(io) - 7) // 2
    assert io[1 : 1 + 2 * seconds] == waiting * seconds and 7 <= seconds <= 10
    assert io[1 + 2 * seconds :] == [("R", 0, 512), block, whole, block, whole, ("W", at, 512)]


def test_without_waiting_it_says_how_long_it_would_take(cluster: Cluster) -> None:
    """5.3 2f: "Else if nowait: -247"."""
    _, other, _ = two(cluster)
    cluster.world.time += 30
    other.renew()
    before = cluster.area_bytes()
    with pytest.raises(OwnerMayBeDead) as raised:
        other.acquire(cluster.lease, Want(nowait=True))
    assert raised.value.code == -247 and raised.value.wait == 68 - 30
    assert cluster.area_bytes() == before


def test_an_owner_that_renews_during_the_wait_keeps_its_lease(cluster: Cluster) -> None:
    owner, other, _ = two(cluster)
    cluster.world.time += 30
    other.renew()
    running = cluster.world.start(resource.acquire(other.member, cluster.lease))
    for _ in range(20):
        running.advance()
    owner.renew()
    with pytest.raises(LeaseHeld):
        running.finish()
    assert cluster.leader().owner_id == 1


def test_an_owner_that_was_never_examined_gets_the_whole_time_from_now(cluster: Cluster) -> None:
    """5.3 step 1: "Else wait_start = now, last_ts = none"."""
    owner = cluster.join(1)
    owner.acquire(cluster.lease)
    other = cluster.join(2)
    cluster.world.time += 1000
    start = cluster.world.time
    other.acquire(cluster.lease)
    assert start + 68 < cluster.world.time <= start + 69


def test_an_owner_known_as_another_instance_gets_the_whole_time_from_now(cluster: Cluster) -> None:
    _, other, _ = two(cluster)
    put_leader(cluster, cluster.leader().changed(owner_generation=2))
    put_delta(cluster, 1, delta_of(cluster, 1).changed(owner_generation=2))
    cluster.world.time += 1000
    start = cluster.world.time
    other.acquire(cluster.lease)
    assert start + 68 < cluster.world.time


def test_a_stored_io_timeout_of_0_counts_as_our_own(cluster: Cluster) -> None:
    """Section 3: "if that is 0 use your own"."""
    _, other, _ = two(cluster)
    last_live = cluster.world.time
    put_delta(cluster, 1, replace(delta_of(cluster, 1), io_timeout=0))
    cluster.world.time += 1
    other.renew()
    other.acquire(cluster.lease)
    assert last_live + 68 < cluster.world.time <= last_live + 69


def test_an_io_timeout_that_no_host_can_have_makes_the_wait_longer(cluster: Cluster) -> None:
    """13 item 7: "distrust 0 and implausible values"."""
    _, other, _ = two(cluster)
    put_delta(cluster, 1, replace(delta_of(cluster, 1), io_timeout=300))
    cluster.world.time += 100
    other.renew()
    with pytest.raises(OwnerMayBeDead):
        other.acquire(cluster.lease, Want(nowait=True))


def test_the_leader_changing_during_the_wait_makes_it_look_again(cluster: Cluster) -> None:
    """5.3 2g: "if any of the 200 bytes changed -> restart S"."""
    owner, other, held = two(cluster)
    cluster.world.time += 30
    other.renew()
    running = cluster.world.start(resource.acquire(other.member, cluster.lease))
    for _ in range(20):
        running.advance()
    owner.release(held)
    start = cluster.world.time
    assert running.finish().lver == 2
    assert cluster.world.time - start <= 2


# --- owners that have ended ---


def test_an_owner_that_left_the_lockspace_holds_nothing(cluster: Cluster) -> None:
    """5.3 2b: "it cannot become free earlier than host_dead after a crash"."""
    owner, other, _ = two(cluster)
    cluster.world.run(host_lease.release(owner.lease, owner.timing))
    start = cluster.world.time
    assert other.acquire(cluster.lease).lver == 2
    assert cluster.world.time == start


def test_an_owner_whose_host_id_was_taken_anew_holds_nothing(cluster: Cluster) -> None:
    """5.3 2c: "the host id was re-acquired since, which itself required host_dead (or the same machine)"."""
    _, other, _ = two(cluster)
    cluster.join(1, b"host1")
    start = cluster.world.time
    assert other.acquire(cluster.lease).lver == 2
    assert cluster.world.time == start


@pytest.mark.parametrize(
    "change", [{"owner_id": 5}, {"owner_id": 0}, {"owner_generation": 0}], ids=["other id", "no id", "earlier"]
)
def test_a_host_lease_of_another_host_or_an_earlier_instance_proves_nothing(
    cluster: Cluster, change: dict[str, Any]
) -> None:
    """Stricter than the reference: a read that went astray, or that an old path served, shows such."""
    _, other, _ = two(cluster)
    put_delta(cluster, 1, delta_of(cluster, 1).changed(**change))
    before = cluster.area_bytes()
    with pytest.raises(LeaseholdError) as raised:
        other.acquire(cluster.lease, Want(nowait=True))
    assert isinstance(raised.value, LeaseHeld | OwnerMayBeDead)
    assert cluster.area_bytes() == before


def test_a_damaged_host_lease_of_the_owner_is_an_error_not_a_death(cluster: Cluster) -> None:
    """5.3 2a: "R: owner's delta sector, verify. Failure -> that error code"."""
    _, other, _ = two(cluster)
    cluster.world.disks["d"][40] ^= 0xFF
    with pytest.raises(BadRecord) as raised:
        other.acquire(cluster.lease)
    assert raised.value.code == -229


def test_we_are_in_nobody_s_way_ourselves(cluster: Cluster) -> None:
    """5.2 cases 3 and 4: our own, or our older instance's."""
    host = cluster.join(1)
    host.acquire(cluster.lease)
    assert who(cluster, host) == []
    assert who(cluster, cluster.join(1)) == []


def test_a_later_instance_of_our_host_id_is_another_host(cluster: Cluster) -> None:
    """Two hosts with one id: the one that has lost the id must not take what its successor holds."""
    early = cluster.join(1, b"same")
    late = cluster.join(1, b"same")
    late.acquire(cluster.lease)
    assert who(cluster, early) == [Claim(1, 2)]
    for _ in range(2):
        cluster.world.time += 2.5
        late.renew()
    with pytest.raises(LeaseHeld):
        cluster.world.start(resource.acquire(early.member, cluster.lease)).until(
            lambda step: isinstance(step, Sleep) and late.renew() is None
        ).finish()


# --- facts of a refusal ---


def test_a_refusal_says_who_holds_it_and_when_it_last_renewed(cluster: Cluster) -> None:
    owner, other, _ = two(cluster)
    cluster.world.time += 2.5
    owner.renew()
    with pytest.raises(LeaseHeld) as raised:
        other.acquire(cluster.lease)
    facts = raised.value
    assert (facts.code, facts.owner_host, facts.generation) == (-243, 1, 1)
    assert facts.owner_name.rstrip(b"\0") == b"host1" and facts.renewed_ago == pytest.approx(2.5)


def test_right_after_joining_even_a_dead_owner_is_called_alive(cluster: Cluster) -> None:
    """13 item 12: "a caller can repeat after two renewal intervals"."""
    cluster.join(1).acquire(cluster.lease)
    other = cluster.join(2)
    cluster.world.time += 1000
    other.renew()
    with pytest.raises(LeaseHeld):
        other.acquire(cluster.lease)
    cluster.world.time += 69
    other.renew()
    assert other.acquire(cluster.lease).lver == 2


# --- RELEASED in the owner's block (5.4) ---


def by_another(cluster: Cluster) -> None:
    put_leader(cluster, cluster.leader().changed(write_id=2))


def test_a_leader_written_by_a_competitor_after_the_release_holds_nobody_up(cluster: Cluster) -> None:
    """5.4: "it may land after the owner's own commit and even after the owner's release"."""
    owner, other, held = two(cluster)
    stale = cluster.leader().changed(write_id=2)
    owner.release(held)
    put_leader(cluster, stale)
    start = cluster.world.time
    assert cluster.owners() == []
    assert other.acquire(cluster.lease).lver == 2
    assert cluster.world.time == start


def test_a_leader_written_by_a_competitor_while_the_owner_holds_it_is_respected(cluster: Cluster) -> None:
    owner, other, _ = two(cluster)
    by_another(cluster)
    cluster.keep_alive(owner, other)
    with pytest.raises(LeaseHeld):
        other.acquire(cluster.lease)


def test_an_owner_that_is_just_releasing_is_waited_for_a_moment(cluster: Cluster) -> None:
    owner, other, held = two(cluster)
    releasing = cluster.world.start(resource.release(owner.member, held))
    releasing.advance()  # the block says RELEASED, the leader is still owned
    running = cluster.world.start(resource.acquire(other.member, cluster.lease))
    for _ in range(6):
        running.advance()
    releasing.finish()
    assert running.finish().lver == 2


def test_an_owner_that_never_got_to_free_the_leader_is_not_waited_for_long(cluster: Cluster) -> None:
    """ "Where its last write failed, nobody else would ever free the lease." """
    owner, other, held = two(cluster)
    releasing = cluster.world.start(resource.release(owner.member, held))
    releasing.advance()
    start = cluster.world.time
    assert other.acquire(cluster.lease).lver == 2
    assert cluster.world.time - start <= 2 * other.timing.io_timeout + 1


@pytest.mark.parametrize("generation", [2, 0])
def test_released_by_another_instance_of_the_owner_is_not_released(cluster: Cluster, generation: int) -> None:
    owner, other, _ = two(cluster)
    block = cluster.block(1)
    put_block(cluster, 1, block.changed(flags=RELEASED, inp2=generation))
    by_another(cluster)
    cluster.keep_alive(owner, other)
    with pytest.raises(LeaseHeld):
        other.acquire(cluster.lease)


def test_released_in_an_earlier_version_is_not_released(cluster: Cluster) -> None:
    owner, other, held = two(cluster)
    owner.release(held)
    old = cluster.block(1)
    held = owner.acquire(cluster.lease)
    put_block(cluster, 1, old)
    by_another(cluster)
    cluster.keep_alive(owner, other)
    with pytest.raises(LeaseHeld):
        other.acquire(cluster.lease, Want(nowait=True))


def test_an_erased_block_under_a_competitor_s_leader_is_a_release(cluster: Cluster) -> None:
    """An erased block (all zero but RELEASED) is how the reference says it after a failed acquire (5.6)."""
    owner, other, _ = two(cluster)
    put_block(cluster, 1, ERASED)
    by_another(cluster)
    cluster.keep_alive(owner, other)
    assert other.acquire(cluster.lease).lver >= 2


def test_an_erased_block_under_the_owner_s_own_leader_is_not_believed(cluster: Cluster) -> None:
    """S1, "landing before B tries", with a reference host as A. Known and deliberate.

    That leader may be a late write of an acquire that failed: then nobody holds the lease. Or the owner's erasing
    block write came late, over an acquire that succeeded: then it does hold it. The disk looks the same. So we wait
    for its next acquire, its leaving or its death.
    """
    owner, other, _ = two(cluster)
    put_block(cluster, 1, ERASED)
    cluster.keep_alive(owner, other)
    with pytest.raises(LeaseHeld):
        other.acquire(cluster.lease)
    cluster.keep_alive(other)
    assert other.acquire(cluster.lease).lver >= 2


def test_an_owner_that_began_a_later_version_holds_the_leader_s_no_more(cluster: Cluster) -> None:
    """A ballot's phase 1 takes RELEASED away; the reference then waits for that host for as long as it lives."""
    owner, other, held = two(cluster)
    stale = cluster.leader().changed(write_id=2)
    owner.release(held)
    put_leader(cluster, stale)
    put_block(cluster, 1, Block().changed(mbal=2001, lver=2))
    cluster.keep_alive(owner, other)
    assert cluster.owners() == []
    assert other.acquire(cluster.lease).lver >= 2


# --- a chosen host that the leader does not name ---


def covered(cluster: Cluster) -> tuple[Host, Host, Host]:
    """S1 among reference hosts: B (2) was chosen for version 1 and holds; A's (1) late write says A owns it."""
    a, b, c = (cluster.join(number) for number in (1, 2, 3))
    cluster.keep_alive(a, b, c)
    b.acquire(cluster.lease)
    put_leader(cluster, cluster.leader().changed(owner_id=1, owner_generation=1, write_id=1))
    put_block(cluster, 1, ERASED)
    return a, b, c


def test_a_host_that_was_chosen_is_asked_though_the_leader_names_another(cluster: Cluster) -> None:
    _, _, c = covered(cluster)
    assert who(cluster, c) == [Claim(1, 1), Claim(2, 1)]


@pytest.mark.parametrize("how", ["left", "died"])
def test_when_the_leader_s_owner_is_gone_the_chosen_one_still_holds(cluster: Cluster, how: str) -> None:
    a, b, c = covered(cluster)
    cluster.keep_alive(b, c)
    if how == "left":
        cluster.world.run(host_lease.release(a.lease, a.timing))
    for _ in range(40):
        cluster.world.pass_time(2.5)
    with pytest.raises(LeaseHeld) as raised:
        c.acquire(cluster.lease)
    assert raised.value.owner_host == 2


def test_the_chosen_one_still_holds_when_the_named_one_has_begun_the_next_version(cluster: Cluster) -> None:
    """The reference believes the leader that names it, and begins version 2 though B never let go of 1."""
    a, b, c = covered(cluster)
    put_block(cluster, 1, Block().changed(mbal=4001, lver=2))
    cluster.world.run(host_lease.release(a.lease, a.timing))
    cluster.keep_alive(b, c)
    assert Claim(2, 1) in who(cluster, c)
    with pytest.raises(LeaseHeld) as raised:
        c.acquire(cluster.lease)
    assert raised.value.owner_host == 2


def test_the_chosen_one_that_released_is_in_nobody_s_way(cluster: Cluster) -> None:
    _, _, c = covered(cluster)
    put_block(cluster, 2, cluster.block(2).changed(flags=RELEASED))
    assert who(cluster, c) == [Claim(1, 1)]


def test_a_freed_leader_of_the_wrong_owner_does_not_free_the_chosen_one_s_lease(cluster: Cluster) -> None:
    """S1: "the clean-up finds 'its' leader landed and frees it while B holds: the lease reads free"."""
    _, _, c = covered(cluster)
    put_leader(cluster, cluster.leader().changed(timestamp=0))
    assert who(cluster, c) == [Claim(2, 1)]
    with pytest.raises(LeaseHeld):
        c.acquire(cluster.lease)


def test_the_leader_s_owner_is_asked_though_a_later_version_was_accepted(cluster: Cluster) -> None:
    """Who began it had the proof itself; but a single block may lie there by a write that went astray."""
    _, other, _ = two(cluster)
    put_block(cluster, 5, Block().changed(mbal=4005, bal=4005, inp=5, inp2=1, inp3=9, lver=2))
    assert who(cluster, other) == [Claim(1, 1)]


def test_a_free_leader_that_a_later_version_passed_asks_nobody(cluster: Cluster) -> None:
    """S4: a late release of the leader. The ballot repeats what was decided later, and puts the leader right."""
    owner, other, held = two(cluster)
    owner.release(held)
    freed = cluster.leader()
    cluster.keep_alive(owner, other)
    owner.acquire(cluster.lease)
    put_leader(cluster, freed)
    assert who(cluster, other) == []
    with pytest.raises(LeaseholdError) as raised:
        other.acquire(cluster.lease)
    assert raised.value.code == -245 and (cluster.leader().lver, cluster.leader().owner_id) == (2, 1)


def test_an_owner_of_no_slot_is_a_bad_record(cluster: Cluster) -> None:
    _, other, _ = two(cluster)
    put_leader(cluster, cluster.leader().changed(owner_id=2001))
    with pytest.raises(BadRecord):
        who(cluster, other)


def test_nothing_but_reads_happens_before_the_way_is_free(cluster: Cluster) -> None:
    owner, other, _ = two(cluster)
    cluster.keep_alive(owner, other)
    seen: list[Read | Write] = []

    def note(step: Read | Write) -> str | None:
        if step.offset >= cluster.lease.place.offset:
            seen.append(step)
        return None

    cluster.world.verdict = note
    with pytest.raises(LeaseHeld):
        other.acquire(cluster.lease)
    assert seen and all(isinstance(step, Read) for step in seen)
