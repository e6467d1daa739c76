"""Who may still hold a lease, and when it may be decided anew (ondisk.md 5.3).

A ballot for the next version may begin only when nobody can be holding the present one. Normally one host is in
question, the leader record's owner; it is out of it when it

    released      the leader's timestamp is 0, or its own block says RELEASED for this very version, or a later one
    left          its host id is free, or was taken again (which itself took `host_dead`)
    died          its delta lease has not changed for more than `host_dead`

The leader record is only a copy of what the blocks decided, and late writes may set it back or put a wrong owner
into it. So where the blocks contradict it, the host that they name is in question as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paxos.errors import BadRecord, LeaseHeld, OwnerMayBeDead
from paxos.host_lease import read_sector
from paxos.lease_area import LeaseArea, Scene, holding, read_leader
from paxos.liveness import HostHistory, Member
from paxos.records import EMPTY_BLOCK, Leader
from paxos.steps import Steps, now, sleep
from paxos.timing import Timing, judging_io_timeout


@dataclass(frozen=True, slots=True)
class Claim:
    """A host that may hold the lease."""

    host_id: int
    generation: int


def claims(scene: Scene, member: Member) -> list[Claim]:
    """The hosts whose end must be proven before the next version may be decided; empty: nobody's.

    The leader's owner is in question even where a block shows a later version begun, which no host begins before it
    has that proof itself: a single block may lie there by a write that went astray.
    """
    return list(_of_leader(scene, member)) + list(_of_blocks(scene, member))


def _of_leader(scene: Scene, member: Member) -> Iterator[Claim]:
    leader = scene.leader
    if leader.free or (leader.owner_id == member.host_id and leader.owner_generation <= member.generation):
        return
    if not 1 <= leader.owner_id <= member.area.geometry.max_hosts:
        raise BadRecord(place=scene.lease.place, record=f"resource lease (owned by host {leader.owner_id})")
    if not scene.owner_went_on() and not scene.owner_overtaken():
        yield Claim(leader.owner_id, leader.owner_generation)


def _of_blocks(scene: Scene, member: Member) -> Iterator[Claim]:
    """The host for which this version was chosen, where the leader names another.

    A leader is written only after its value was chosen, so in a cluster that never wipes accepted values the two
    agree. The reference wipes them after an uncertain commit: then its late leader write may cover the record of
    the host that was chosen instead (late-writes.md, S1). Unless the leader's owner itself says that it held and
    released this version, the chosen host is asked as well.
    """
    leader = scene.leader
    if (leader.owner_id, leader.owner_generation) == (member.host_id, member.generation):
        return  # that we were chosen is certain: our accepted value stood until we went on, and a rival repeats it
    value = scene.accepted_at(leader.lver)
    # Where a later version was accepted already, the one chosen for this version may have gone on to that.
    if value is None or scene.leader_behind:
        return
    host_id, generation, _ = value
    if (host_id, generation) == (leader.owner_id, leader.owner_generation) or scene.released_by_owner():
        return
    own = scene.blocks.get(host_id, EMPTY_BLOCK)
    gave_up = own.released and own.lver == leader.lver and (own.inp, own.inp2) == (host_id, generation)
    if host_id != member.host_id and not gave_up and 1 <= host_id <= member.area.geometry.max_hosts:
        yield Claim(host_id, generation)


def wait_for_end(scene: Scene, claim: Claim, member: Member, nowait: bool) -> Steps[bool]:
    """Wait until `claim` has provably ended. False: the leader record changed, look at the whole area again.

    Raises LeaseHeld when its host is alive, OwnerMayBeDead instead of waiting with `nowait`, BadRecord, DiskError.
    """
    lease, leader = scene.lease, scene.leader
    if _others_may_go_on(scene, claim):
        return True
    if scene.released_by_owner() and claim.host_id == leader.owner_id:
        return (yield from _settled_release(lease, leader, member))
    start = yield from now()
    history = member.hosts.get(claim.host_id)
    known = _is_of(history, claim)
    last_timestamp = known.timestamp if known else None
    wait_start = known.last_live if known else start
    while True:
        sector, _ = yield from read_sector(member.area, claim.host_id, member.timing.io_timeout)
        if _ended(sector, claim):
            return True
        if sector.free:
            pass  # laid out anew under an old lease: no sign of life, and no proof that its holder has been stopped
        elif last_timestamp is None:
            last_timestamp = sector.timestamp
        elif sector.timestamp != last_timestamp or (known and known.last_live == known.last_check):
            raise LeaseHeld(**holding(leader), **_who(lease, claim, sector, history, (yield from now())))
        io_timeout = judging_io_timeout(sector.io_timeout, member.timing.io_timeout)
        dead_at = wait_start + Timing(io_timeout, member.timing.fire_timeout).host_dead
        left = dead_at - (yield from now())
        if left < 0:
            return True
        if nowait:
            raise OwnerMayBeDead(wait=left, **_who(lease, claim, sector, history, dead_at - left))
        yield from sleep(min(1.0, left + 0.01))
        seen, _ = yield from read_leader(lease, member.timing.io_timeout)
        if seen != leader:
            return False


def _ended(sector: Leader, claim: Claim) -> bool:
    """Whether the host lease proves that the claim's host left, or that its host id was taken anew.

    Stricter than the reference: a record of another host id, or of an earlier generation, proves nothing. A read that
    went astray, or that an old path served, shows such.
    """
    if sector.owner_id != claim.host_id:
        return False
    return sector.owner_generation > claim.generation or (sector.free and sector.owner_generation == claim.generation)


def _others_may_go_on(scene: Scene, claim: Claim) -> bool:
    """Whether a competitor wrote the leader for an owner that has given up since (ondisk.md 5.4).

    The owner does not touch such a leader when it releases: its block's RELEASED flag is all that says so. An
    erased block (all zero but RELEASED) is how the reference says it after a failed acquire.
    """
    leader = scene.leader
    if claim.host_id != leader.owner_id or leader.write_id == leader.owner_id:
        return False
    return scene.released_by_owner() or scene.blocks.get(leader.owner_id, EMPTY_BLOCK).erased


def _settled_release(lease: LeaseArea, leader: Leader, member: Member) -> Steps[bool]:
    """The owner wrote this leader and says RELEASED: it is about to free the leader, so let it, for a while.

    Normally that takes milliseconds. Where its last write failed, nobody else would ever free the lease.
    """
    pause = 0.005
    deadline = (yield from now()) + 2 * member.timing.io_timeout
    while (yield from now()) < deadline:
        yield from sleep(pause)
        seen, _ = yield from read_leader(lease, member.timing.io_timeout)
        if seen != leader:
            return False
        pause = min(2 * pause, member.timing.io_timeout / 4)
    return True


def _is_of(history: HostHistory | None, claim: Claim) -> HostHistory | None:
    """The history, if it is the claim's host instance and it was seen with a sign of life."""
    if history is None or not history.last_live:
        return None
    same = history.owner_id == claim.host_id and history.generation == claim.generation
    return history if same else None


def _who(lease: LeaseArea, claim: Claim, sector: Leader, history: HostHistory | None, at: float) -> dict[str, Any]:
    """The facts of a refusal: who holds it, and how long ago (seconds) it was seen to renew."""
    seen = history is not None and history.last_live > history.first_check
    return {
        "resource": lease.name,
        "owner_host": claim.host_id,
        "generation": claim.generation,
        "owner_name": sector.resource_name,
        "renewed_ago": at - history.last_live if history is not None and seen else None,
    }
