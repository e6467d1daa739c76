"""Resource leases: acquire, release, convert (ondisk.md sections 5 and 6), on top of ballots.

Acquiring: look at the whole area; make sure that nobody can be holding the lease; decide the next version by a
ballot; write what was decided into the leader record. A shared holder owns the leader only for the moment in which
it sets a mark in its own block; an exclusive one owns it until it releases.

The invariant that makes a holder safe against every late write of others: while host h holds version v, h's own
block (which nobody else writes) says "v, accepted, h, not RELEASED". Every ballot for a version up to v then finds
it, and repeats it or gives up; so whatever happens to the leader record, nobody can decide past v. Three rules keep
it so, beyond what the reference does:

    never wipe     an accepted value stays in the block; giving up only sets RELEASED                (13 item 14)
    never back     no ballot below a version that some block shows begun                             (13 item 6)
    one more       where another host took part in deciding v, or may have before it erased its block, a late
                   leader write of it could name it owner of v: v + 1 is decided too, and v + 1 is what we hold

An I/O error leaves it open what is on the disk. Every function here then raises, and the caller lets
`paxos.settle.settle` find out before it starts anything else on that resource.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from paxos.ballot import Ballot, BallotLost, Chosen, decide, number_above
from paxos.errors import (
    AlreadyHeld,
    BallotReadFailed,
    BallotsExhausted,
    DiskError,
    InvalidUse,
    LeaseHeld,
    LeaseOther,
    LeaseOwned,
    LvbUnsupported,
    LverMismatch,
    ReleaseOwner,
    SharedHolders,
    SharedRetries,
)
from paxos.geometry import Place
from paxos.lease_area import (
    LeaseArea,
    Scene,
    read_block,
    read_leader,
    survey,
    write_block,
    write_leader,
)
from paxos.liveness import Member
from paxos.ownership import claims, wait_for_end
from paxos.records import RELEASED, SHARED, SHORT_HOLD, Block, Leader, replace_name
from paxos.steps import Steps, now, read, sleep, write

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
class Held:
    """A lease that is ours: the token, and what we left on the disk."""

    lease: LeaseArea
    host_id: int
    generation: int
    lver: int
    shared: bool
    #: the leader as written when it was decided
    leader: Leader
    block: Block
    #: the own block's sector without its trailing zeros
    sector: bytes


@dataclass(frozen=True, slots=True)
class _Won:
    """The leader is ours, for now."""

    lease: LeaseArea
    leader: Leader
    chosen: Chosen
    #: shared marks of other hosts: generation by host id
    marks: dict[int, int]

    def held(self, member: Member, shared: bool, block: Block) -> Held:
        return Held(
            lease=self.lease,
            host_id=member.host_id,
            generation=member.generation,
            lver=self.leader.lver,
            shared=shared,
            leader=self.leader,
            block=block,
            sector=self.chosen.sector.rstrip(b"\0"),
        )


def acquire(member: Member, lease: LeaseArea, want: Want = Want()) -> Steps[Held]:
    """Acquire a lease. Waits for an owner that may be dead (unless `nowait`), not for one that is alive.

    Raises LeaseHeld, LeaseOwned, LeaseOther, OwnerMayBeDead, SharedHolders, SharedRetries, LverMismatch,
    BallotsExhausted, BadRecord, DiskError.
    """
    if not want.shared:
        won = yield from _own_leader(member, lease, want, keep_mark=False)
        yield from _clear_shared_holders(member, won, lambda: _give_back(member, won))
        return won.held(member, shared=False, block=won.chosen.block)
    tries = 0
    while True:
        try:
            won = yield from _own_leader(member, lease, want, keep_mark=False)
        except (LeaseHeld, LeaseOwned, LeaseOther) as held:
            if not getattr(held, "short_hold", False):
                raise
            tries += 1
            if tries > want.sh_retries:
                raise SharedRetries(resource=lease.name, retries=want.sh_retries) from held
            yield from sleep(member.dice.uniform(0, min(MAX_BACK_OFF, 0.02 * 2**tries)))
        else:
            return (yield from _mark_shared(member, won))


def convert_to_exclusive(member: Member, held: Held, nowait: bool = False) -> Steps[Held]:
    """Make a shared lease exclusive; on any refusal it stays shared. Raises as `acquire`."""
    if not held.shared:
        raise AlreadyHeld(resource=held.lease.name)
    won = yield from _own_leader(member, held.lease, Want(nowait=nowait), keep_mark=True)
    yield from _clear_shared_holders(member, won, lambda: free_leader(member, won.lease, won.leader))
    block = won.chosen.block.changed(mode_flags=0, mode_generation=0)
    yield from write_block(won.lease, member.host_id, block, won.chosen.sector, member.timing.io_timeout)
    return won.held(member, shared=False, block=block)


def convert_to_shared(member: Member, held: Held, lvb: bytes | None = None) -> Steps[Held]:
    """Make an exclusive lease shared. Raises DiskError, ReleaseOwner."""
    if held.shared:
        raise AlreadyHeld(resource=held.lease.name)
    if lvb is not None:
        yield from write_lvb(held.lease, lvb, member.timing.io_timeout)
    block = held.block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=held.generation)
    yield from _rewrite_block(member, held, block)
    yield from free_leader(member, held.lease, held.leader)
    return replace(held, shared=True, block=block)


def release(member: Member, held: Held, lvb: bytes | None = None, new_name: bytes | None = None) -> Steps[None]:
    """Give a lease back; on the disk when it returns. `lvb` and `new_name` for an exclusive one only.

    Raises DiskError, and ReleaseOwner where the disk says that it was not ours any more.
    """
    if held.shared:
        # A conversion that was refused has left the values of its ballots in the block: they must stay.
        block, sector = yield from read_block(held.lease, member.host_id, member.timing.io_timeout)
        if not block.checksum_ok or block.mbal < held.block.mbal:
            raise BallotReadFailed(resource=held.lease.name, cause="the disk shows an older block of this host")
        released = block.changed(flags=RELEASED, mode_flags=0, mode_generation=0)
        yield from write_block(held.lease, member.host_id, released, sector, member.timing.io_timeout)
        return
    if lvb is not None:
        yield from write_lvb(held.lease, lvb, member.timing.io_timeout)
    failed: DiskError | None = None
    try:
        # The values stay: a slower competitor's ballot for this version still has to find them.
        yield from _rewrite_block(member, held, held.block.changed(flags=RELEASED, mode_flags=0, mode_generation=0))
    except DiskError as error:
        failed = error
    yield from free_leader(member, held.lease, held.leader, new_name)
    if failed is not None:
        raise failed


def verify_held(member: Member, held: Held) -> Steps[None]:
    """Check on the disk that a lease is still ours. Raises ReleaseOwner if it is not, BadRecord, DiskError."""
    block, _ = yield from read_block(held.lease, member.host_id, member.timing.io_timeout)
    leader, _ = yield from read_leader(held.lease, member.timing.io_timeout)
    if held.shared:
        ours = block.shared and block.mode_generation == held.generation
    else:
        taken = leader.lver > held.lver or (
            leader.lver == held.lver and (leader.owner_id, leader.owner_generation) != (held.host_id, held.generation)
        )
        # A leader of an earlier version is a late write over ours: our block is what counts.
        ours = not taken and block.lver == held.lver and not block.released
    if not ours:
        raise ReleaseOwner(resource=held.lease.name, owner_host=leader.owner_id, timestamp=leader.timestamp)


# ------------------------------------------------------------------------------------------ owning the leader


def _own_leader(member: Member, lease: LeaseArea, want: Want, keep_mark: bool) -> Steps[_Won]:
    """Become the leader's owner: look, wait for the end of who may hold it, decide; again if others moved."""
    for _ in range(MAX_LOOKS):
        scene = yield from survey(lease, member.host_id, member.timing.io_timeout)
        lease = scene.lease
        if want.lver is not None and scene.leader.lver != want.lver:
            raise LverMismatch(resource=lease.name, lver=scene.leader.lver, wanted=want.lver)
        if want.num_hosts is not None and not 1 <= want.num_hosts <= lease.geometry.max_hosts:
            raise InvalidUse(reason=f"num_hosts {want.num_hosts} is not within 1..{lease.geometry.max_hosts}")
        unchanged = True
        for claim in claims(scene, member):
            unchanged = yield from wait_for_end(scene, claim, member, want.nowait)
            if not unchanged:
                break
        if unchanged and (won := (yield from _elect(member, scene, want, keep_mark))):
            return won
    raise BallotsExhausted(resource=lease.name, tries=MAX_LOOKS)


def _elect(member: Member, scene: Scene, want: Want, keep_mark: bool) -> Steps[_Won | None]:
    """Decide versions until one is ours beyond doubt. None: others moved, look at the area again."""
    race = _Race(
        leader=scene.leader,
        lver=scene.next_lver,
        max_mbal=scene.max_mbal,
        sector=scene.own_sector,
        # The copy from the look will do only if no block is ahead of it (ondisk.md 5.2, B1).
        reread=scene.top_lver > scene.leader.lver,
        contested=_took_part(scene.blocks, scene.next_lver, frozenset()),
    )
    marks: dict[int, int] = {}
    for _ in range(MAX_BALLOTS):
        chosen = yield from _decide(member, scene, race, keep_mark)
        if chosen is None:
            return None
        leader = yield from _commit(member, scene, race, chosen, want)
        if chosen.value[:2] != (member.host_id, member.generation):
            raise LeaseOther(**_owner(scene.lease, leader))
        marks.update(chosen.marks)
        if not race.contested:
            return _Won(scene.lease, leader, chosen, marks)
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
        self.leader, self.sector = leader, chosen.sector
        self.lver += 1
        self.max_mbal = max(chosen.block.mbal, *(b.mbal for b in last_seen.values()), 0)
        self.erased = frozenset(host for host, b in last_seen.items() if b.erased)
        self.reread, self.contested, self.decided_before = True, False, True


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
            if seen.lver == race.lver and (seen.owner_id, seen.owner_generation) != me:
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
            chosen = yield from decide(ballot, race.sector)
        except BallotLost as lost:
            race.sector, race.max_mbal, race.contested = lost.sector, max(lost.mbal, mbal), True
            yield from _give_way(member, lease, race.leader, (yield from now()) - started, attempt)
            if lost.newer:
                return None
        else:
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
        "short_hold": bool(leader.flags & SHORT_HOLD),
    }


# --------------------------------------------------------------------------------------------- shared holders


def _mark_shared(member: Member, won: _Won) -> Steps[Held]:
    """Set our mark while the leader is ours, then free the leader.

    An exclusive acquirer's ballot for the next version starts after that, so its first read sees the mark.
    """
    chosen = won.chosen
    block = chosen.block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=member.generation)
    yield from write_block(won.lease, member.host_id, block, chosen.sector, member.timing.io_timeout)
    try:
        yield from free_leader(member, won.lease, won.leader)
    except ReleaseOwner:
        unmarked = block.changed(mode_flags=0, mode_generation=0)
        yield from write_block(won.lease, member.host_id, unmarked, chosen.sector, member.timing.io_timeout)
        raise
    return won.held(member, shared=True, block=block)


def _clear_shared_holders(member: Member, won: _Won, give_back: Callable[[], Steps[None]]) -> Steps[None]:
    """Make sure that no other host still holds it shared; wipe the marks of dead ones (ondisk.md 6.2).

    Raises SharedHolders, after `give_back`, if one is alive.
    """
    alive = []
    timeout = member.timing.io_timeout
    for host_id in won.marks:
        block, _ = yield from read_block(won.lease, host_id, timeout)
        if not block.shared or block.mode_generation == 0:
            continue
        if member.hosts.shared_holder_alive(host_id, block.mode_generation, (yield from now())):
            alive.append(host_id)
        else:
            place = won.lease.sector_place(won.lease.geometry.block_offset(host_id))
            yield from write(place.disk, place.offset, bytes(won.lease.geometry.sector_size), timeout)
    if alive:
        yield from give_back()
        raise SharedHolders(resource=won.lease.name, owner_host=alive[0], hosts=alive)


# -------------------------------------------------------------------------------------------------- giving up


def _rewrite_block(member: Member, held: Held, block: Block) -> Steps[None]:
    sector = held.sector.ljust(held.lease.geometry.sector_size, b"\0")
    yield from write_block(held.lease, member.host_id, block, sector, member.timing.io_timeout)


def _give_back(member: Member, won: _Won) -> Steps[None]:
    """Release what was just decided for us."""
    yield from release(member, won.held(member, shared=False, block=won.chosen.block))


def free_leader(member: Member, lease: LeaseArea, ours: Leader, new_name: bytes | None = None) -> Steps[None]:
    """Set the leader free if it is as we wrote it (ondisk.md 5.5 steps 3 and 4).

    Where another host wrote it, our block's RELEASED flag is enough, and a write could clobber a newer leader. A
    leader of an *earlier* version is a late write over ours: it is put right on the way.
    """
    seen, sector = yield from read_leader(lease, member.timing.io_timeout)
    if seen != ours and seen.lver >= ours.lver:
        if seen.write_id != member.host_id:
            return
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


# -------------------------------------------------------------------------------------------- the value block


def read_lvb(lease: LeaseArea, timeout: float) -> Steps[bytes]:
    """The lease value block: one sector of the holders' data. Raises LvbUnsupported (13 item 1)."""
    place = _lvb_place(lease)
    view = yield from read(place.disk, place.offset, lease.geometry.sector_size, timeout)
    return bytes(view)


def write_lvb(lease: LeaseArea, lvb: bytes, timeout: float) -> Steps[None]:
    """Write the value block, zero-padded to a sector. Raises LvbUnsupported, InvalidUse when it is too long."""
    place = _lvb_place(lease)
    if len(lvb) > lease.geometry.sector_size:
        raise InvalidUse(reason=f"a value block has at most {lease.geometry.sector_size} bytes, not {len(lvb)}")
    yield from write(place.disk, place.offset, lvb.ljust(lease.geometry.sector_size, b"\0"), timeout)


def _lvb_place(lease: LeaseArea) -> Place:
    geometry = lease.geometry
    if not geometry.has_lvb:
        raise LvbUnsupported(sector_size=geometry.sector_size, align_size=geometry.align_size)
    return lease.sector_place(geometry.lvb_offset)
