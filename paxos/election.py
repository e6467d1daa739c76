"""Becoming the owner of a lease's leader record, and giving it back (ondisk.md 5.2, 5.5).

Look at the whole area; make sure that nobody can be holding the lease; decide the next version by a ballot; write
what was decided into the leader record; look again wherever others moved meanwhile.

A version that another host took part in deciding, or may have before it erased its block, is not the one to hold:
a late leader write of that host could name it the owner of that very version. So one more is decided, in which no
rival took part, and that one is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paxos.ballot import Ballot, BallotLost, Chosen, decide, number_above
from paxos.errors import (
    BallotsExhausted,
    HeldElsewhere,
    InvalidUse,
    LeaseOther,
    LeaseOwned,
    LverMismatch,
    ReleaseOwner,
    TryAgain,
)
from paxos.lease_area import LeaseArea, Scene, holding, read_leader, survey, write_block, write_leader
from paxos.liveness import Member
from paxos.ownership import claims, wait_for_end
from paxos.records import RELEASED, SHORT_HOLD, Block, Leader, replace_name
from paxos.steps import Steps, now, sleep

#: times an acquire looks at the area anew, and ballots it runs for one look, before it says so (13 item 6)
MAX_LOOKS = 100
MAX_BALLOTS = 100
#: a host that lost a ballot waits at most about this long (seconds) for the winner to finish
MAX_BACK_OFF = 1.0


@dataclass(frozen=True, slots=True)
class Want:
    """How a lease is wanted."""

    shared: bool = False
    #: refuse unless the lease is at this version
    lver: int | None = None
    #: new number of host blocks, at most the area's
    num_hosts: int | None = None
    #: do not wait for an owner that may be dead
    nowait: bool = False
    #: tries against other hosts' short exclusive holds, when shared
    sh_retries: int = 8


@dataclass(frozen=True, slots=True)
class Won:
    """The leader is ours, for now."""

    lease: LeaseArea
    leader: Leader
    chosen: Chosen


def own_leader(member: Member, lease: LeaseArea, want: Want, keep_mark: bool) -> Steps[Won]:
    """Become the leader's owner: look, wait for the end of who may hold it, decide; again if others moved."""
    race: _Race | None = None
    try:
        for _ in range(MAX_LOOKS):
            scene = yield from survey(lease, member.host_id, member.timing.io_timeout)
            lease = scene.lease
            own_block = lease.sector_place(lease.geometry.block_offset(member.host_id))
            member.check_fresh(lease.place, own_block, scene.own_block(member.host_id))
            _check_wanted(scene, want)
            unchanged = True
            for claim in claims(scene, member):
                unchanged = yield from wait_for_end(scene, claim, member, want.nowait)
                if not unchanged:
                    break
            if unchanged:
                race = _race_from(scene)
                if won := (yield from _elect(member, scene, race, want, keep_mark)):
                    return won
        raise BallotsExhausted(resource=lease.name, tries=MAX_LOOKS)
    except (HeldElsewhere, TryAgain, LverMismatch):
        if race is not None:
            yield from _let_go(member, lease, race)
        raise


def _check_wanted(scene: Scene, want: Want) -> None:
    name, max_hosts = scene.lease.name, scene.lease.geometry.max_hosts
    if want.lver is not None and scene.decided_lver != want.lver:
        raise LverMismatch(resource=name, lver=scene.decided_lver, wanted=want.lver)
    if want.num_hosts is not None and not 1 <= want.num_hosts <= max_hosts:
        raise InvalidUse(reason=f"num_hosts {want.num_hosts} is not within 1..{max_hosts}")


def _let_go(member: Member, lease: LeaseArea, race: _Race) -> Steps[None]:
    """Take back what was decided for us before we had to give up: nobody holds it, so nobody shall wait for us."""
    block = Block.unpack(race.sector)
    if block.accepted and block.value[:2] == (member.host_id, member.generation) and not block.released:
        released = block.changed(flags=RELEASED)
        yield from write_block(lease, member.host_id, released, race.sector, member.timing.io_timeout)
    if race.decided_before:
        yield from free_leader(member, lease, race.leader)


def _elect(member: Member, scene: Scene, race: _Race, want: Want, keep_mark: bool) -> Steps[Won | None]:
    """Decide versions until one is ours beyond doubt. None: others moved, look at the area again."""
    for _ in range(MAX_BALLOTS):
        chosen = yield from _decide(member, scene, race, keep_mark)
        if chosen is None:
            return None
        leader = yield from _commit(member, scene, race, chosen, want)
        if chosen.value[:2] != (member.host_id, member.generation):
            raise LeaseOther(**_owner(scene.lease, leader))
        if not race.contested:
            return Won(scene.lease, leader, chosen)
        race.one_more(leader, chosen)
    raise BallotsExhausted(resource=scene.lease.name, tries=MAX_BALLOTS)


@dataclass(slots=True)
class _Race:
    """Where we stand in deciding versions."""

    #: the leader that we build on; once we decided a version, the one that we wrote
    leader: Leader
    lver: int
    max_mbal: int
    #: the own block's sector as it lies on the disk
    sector: bytes
    reread: bool
    #: whether another host took part in this version
    contested: bool
    decided_before: bool = False
    #: hosts whose erased blocks belong to an earlier version
    erased: frozenset[int] = frozenset()

    def one_more(self, leader: Leader, chosen: Chosen) -> None:
        """Go on to the next version: a rival's late write may yet name it the owner of this one."""
        _, last_seen = chosen.seen
        self.leader = leader
        self.lver += 1
        self.max_mbal = max(chosen.block.mbal, *(b.mbal for b in last_seen.values()), 0)
        self.erased = frozenset(host for host, b in last_seen.items() if b.erased)
        self.reread, self.contested, self.decided_before = True, False, True


def _race_from(scene: Scene) -> _Race:
    return _Race(
        leader=scene.leader,
        lver=scene.next_lver,
        max_mbal=scene.max_mbal,
        sector=scene.own_sector,
        # The copy from the look will do only if no block is ahead of it (ondisk.md 5.2, B1).
        reread=scene.top_lver > scene.leader.lver,
        contested=_took_part(scene.blocks, scene.next_lver, frozenset()),
    )


def _took_part(blocks: dict[int, Block], lver: int, erased_before: frozenset[int]) -> bool:
    """Whether a host other than ourselves, now, took part in deciding `lver`, or may have before it erased.

    Our own host's block counts where it is from before this acquire: an older instance of us is another host.
    """
    return any(b.lver == lver or (b.erased and host not in erased_before) for host, b in blocks.items())


def _decide(member: Member, scene: Scene, race: _Race, keep_mark: bool) -> Steps[Chosen | None]:
    """Run ballots for one version until a value is chosen. None: others moved, look at the area again."""
    lease, timeout = scene.lease, member.timing.io_timeout
    me = (member.host_id, member.generation)
    for attempt in range(MAX_BALLOTS):
        if race.reread:
            seen, _ = yield from read_leader(lease, timeout)
            # Better than the reference: if the other gave it back since, we are not refused but look again.
            if seen.lver == race.lver and not seen.free and (seen.owner_id, seen.owner_generation) != me:
                raise LeaseOwned(**_owner(lease, seen))
            # A leader of a version that we decided ourselves may be covered by a late write: we go on regardless.
            if seen.lver >= race.lver or (seen != race.leader and not race.decided_before):
                return None
        race.reread = True
        started = yield from now()
        mbal = number_above(race.max_mbal, member.host_id, lease.geometry.max_hosts)
        value = (*me, int(started))
        ballot = Ballot(lease, member.host_id, race.lver, mbal, value, scene.num_hosts, keep_mark, timeout)
        try:
            chosen = yield from decide(ballot, race.sector, lambda block: member.wrote(lease.place, block))
        except BallotLost as lost:
            race.sector, race.max_mbal, race.contested = lost.sector, max(lost.mbal, mbal), True
            yield from _give_way(member, lease, race.leader, (yield from now()) - started, attempt)
            if lost.newer:
                return None
        else:
            race.sector = chosen.sector
            race.contested |= any(_took_part(seen_blocks, race.lver, race.erased) for seen_blocks in chosen.seen)
            return chosen
    raise BallotsExhausted(resource=lease.name, tries=MAX_BALLOTS)


def _give_way(member: Member, lease: LeaseArea, leader: Leader, took: float, attempt: int) -> Steps[None]:
    """Let the winner finish: watch the leader, for about as long as a ballot takes, longer each time.

    Better than the reference, which sleeps up to a second whoever won. Watching disturbs no ballot.
    """
    pause = max(took, 0.002)
    patience = member.dice.uniform(1, 2) * min(MAX_BACK_OFF, pause * 2**attempt)
    waited = 0.0
    while waited < patience:
        nap = min(pause / 2, patience - waited)
        yield from sleep(nap)
        waited += nap
        seen, _ = yield from read_leader(lease, member.timing.io_timeout)
        if seen != leader:
            return


def _commit(member: Member, scene: Scene, race: _Race, chosen: Chosen, want: Want) -> Steps[Leader]:
    """Write what was chosen into the leader record."""
    owner_id, generation, timestamp = chosen.value
    flags = race.leader.flags
    if (owner_id, generation) == (member.host_id, member.generation):
        flags = flags | SHORT_HOLD if want.shared else flags & ~SHORT_HOLD
    leader = race.leader.changed(
        flags=flags,
        lver=race.lver,
        owner_id=owner_id,
        owner_generation=generation,
        timestamp=timestamp,
        num_hosts=max(want.num_hosts or 0, scene.num_hosts),
        write_id=member.host_id,
        write_generation=member.generation,
        write_timestamp=int((yield from now())),
    )
    yield from write_leader(scene.lease, leader, scene.leader_sector, member.timing.io_timeout)
    return leader


def _owner(lease: LeaseArea, leader: Leader) -> dict[str, Any]:
    """The facts of a refusal by this leader."""
    return {
        "resource": lease.name,
        "owner_host": leader.owner_id,
        "generation": leader.owner_generation,
        **holding(leader),
    }


def free_leader(member: Member, lease: LeaseArea, ours: Leader, new_name: bytes | None = None) -> Steps[bool]:
    """Set the leader free if it is as we wrote it (ondisk.md 5.5 steps 3 and 4); returns whether it did.

    Where another host wrote it, our block's RELEASED flag is enough, and a write could clobber a newer leader. A
    leader of an *earlier* version is a late write over ours: it is put right on the way.
    """
    seen, sector = yield from read_leader(lease, member.timing.io_timeout)
    if seen != ours and seen.lver >= ours.lver:
        if seen.write_id != member.host_id:
            return False
        raise ReleaseOwner(resource=lease.name, owner_host=seen.owner_id, timestamp=seen.timestamp)
    free = ours.changed(
        timestamp=0,
        flags=ours.flags & ~SHORT_HOLD,
        write_id=member.host_id,
        write_generation=member.generation,
        write_timestamp=int((yield from now())),
        resource_name=ours.resource_name if new_name is None else replace_name(ours.resource_name, new_name),
    )
    yield from write_leader(lease, free, sector, member.timing.io_timeout)
    return True
