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
    one more       a version that a rival took part in deciding is not the one to hold        (paxos.election)

An I/O error leaves it open what is on the disk. Every function here then raises, and the caller lets
`paxos.settle.settle` find out before it starts anything else on that resource.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from paxos.election import MAX_BACK_OFF, Want, Won, free_leader, own_leader
from paxos.errors import (
    AlreadyHeld,
    BallotReadFailed,
    DiskError,
    InvalidUse,
    IOTimeout,
    LeaseHeld,
    LeaseOther,
    LeaseOwned,
    LvbUnsupported,
    ReleaseOwner,
    SharedHolders,
    SharedRetries,
)
from paxos.geometry import Place
from paxos.lease_area import (
    LeaseArea,
    read_block,
    read_leader,
    write_block,
)
from paxos.liveness import Member
from paxos.records import RELEASED, SHARED, Block, Leader
from paxos.steps import Steps, read, sleep, write

__all__ = [
    "EXCLUSIVE",
    "Held",
    "Want",
    "acquire",
    "convert_to_exclusive",
    "convert_to_shared",
    "free_leader",
    "read_lvb",
    "release",
    "repair_leader",
    "verify_held",
    "write_lvb",
]


#: how a lease is wanted when nothing is said
EXCLUSIVE = Want()


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


def _held(member: Member, won: Won, shared: bool, block: Block) -> Held:
    return Held(
        lease=won.lease,
        host_id=member.host_id,
        generation=member.generation,
        lver=won.leader.lver,
        shared=shared,
        leader=won.leader,
        block=block,
        sector=won.chosen.sector.rstrip(b"\0"),
    )


def acquire(member: Member, lease: LeaseArea, want: Want = EXCLUSIVE) -> Steps[Held]:
    """Acquire a lease. Waits for an owner that may be dead (unless `nowait`), not for one that is alive.

    Better than the reference: who wants to share tries again not only where the leader says SHORT_HOLD, but also where
    a competitor wrote it, who could not know. Else hosts that share a lease at the same moment refuse each other.
    Raises LeaseHeld, LeaseOwned, LeaseOther, OwnerMayBeDead, SharedHolders, SharedRetries, LverMismatch,
    BallotsExhausted, BadRecord, DiskError.
    """
    if not want.shared:
        won = yield from own_leader(member, lease, want, keep_mark=False)
        yield from _clear_shared_holders(member, won, lambda: _give_back(member, won))
        return _held(member, won, shared=False, block=won.chosen.block)
    tries = 0
    while True:
        try:
            won = yield from own_leader(member, lease, want, keep_mark=False)
        except (LeaseHeld, LeaseOwned, LeaseOther) as held:
            if not (held.short_hold or held.by_competitor):
                raise
            tries += 1
            if tries > want.sh_retries and not held.short_hold:
                raise
            if tries > want.sh_retries:
                raise SharedRetries(resource=lease.name, retries=want.sh_retries) from held
            yield from sleep(member.dice.uniform(0, min(MAX_BACK_OFF, 0.02 * 2**tries)))
        else:
            return (yield from _mark_shared(member, won))


def convert_to_exclusive(member: Member, held: Held, nowait: bool = False) -> Steps[Held]:
    """Make a shared lease exclusive; on any refusal it stays shared. Raises as `acquire`."""
    if not held.shared:
        raise AlreadyHeld(resource=held.lease.name)
    won = yield from own_leader(member, held.lease, Want(nowait=nowait), keep_mark=True)
    yield from _clear_shared_holders(member, won, lambda: _stay_shared(member, won))
    block = won.chosen.block.changed(mode_flags=0, mode_generation=0)
    yield from write_block(won.lease, member.host_id, block, won.chosen.sector, member.timing.io_timeout)
    return _held(member, won, shared=False, block=block)


def repair_leader(member: Member, lease: LeaseArea) -> Steps[None]:
    """Decide what a leader that was set back does not show, and free it; our shared mark stays. Raises as `acquire`."""
    won = yield from own_leader(member, lease, Want(nowait=True), keep_mark=True)
    yield from _stay_shared(member, won)


def convert_to_shared(member: Member, held: Held, lvb: bytes | None = None) -> Steps[Held]:
    """Make an exclusive lease shared. Raises DiskError, ReleaseOwner."""
    if held.shared:
        raise AlreadyHeld(resource=held.lease.name)
    if lvb is not None:
        yield from write_lvb(held.lease, lvb, member.timing.io_timeout)
    block = held.block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=held.generation)
    sector = held.sector.ljust(held.lease.geometry.sector_size, b"\0")
    yield from _write_mark(member, held.lease, block, sector)
    yield from free_leader(member, held.lease, held.leader)
    return replace(held, shared=True, block=block)


def release(member: Member, held: Held, lvb: bytes | None = None, new_name: bytes | None = None) -> Steps[None]:
    """Give a lease back; on the disk when it returns. `lvb` and `new_name` for an exclusive one only.

    Goes on after a block write that failed (5.5 step 2), not after one that is still in flight: at most one I/O of an
    operation is, so that settling knows of it.

    Raises DiskError, and ReleaseOwner where the disk says that it was not ours any more.
    """
    if held.shared:
        # A conversion that was refused has left the values of its ballots in the block: they must stay.
        block, sector = yield from read_block(held.lease, member.host_id, member.timing.io_timeout)
        last = member.ballots.get(held.lease.place, held.block)
        if not block.checksum_ok or block.progress < max(last.progress, held.block.progress):
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
    except IOTimeout:
        raise
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


# --------------------------------------------------------------------------------------------- shared holders


def _mark_shared(member: Member, won: Won) -> Steps[Held]:
    """Set our mark while the leader is ours, then free the leader.

    An exclusive acquirer's ballot for the next version starts after that, so its first read sees the mark.
    """
    chosen = won.chosen
    block = chosen.block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=member.generation)
    yield from _write_mark(member, won.lease, block, chosen.sector)
    try:
        yield from free_leader(member, won.lease, won.leader)
    except ReleaseOwner:
        unmarked = block.changed(mode_flags=0, mode_generation=0)
        yield from write_block(won.lease, member.host_id, unmarked, chosen.sector, member.timing.io_timeout)
        raise
    return _held(member, won, shared=True, block=block)


def _write_mark(member: Member, lease: LeaseArea, block: Block, sector: bytes) -> Steps[None]:
    """Write our block with our mark, and look whether it is there: nothing else will say that we hold the lease."""
    yield from write_block(lease, member.host_id, block, sector, member.timing.io_timeout)
    seen, _ = yield from read_block(lease, member.host_id, member.timing.io_timeout)
    if seen != block:
        raise BallotReadFailed(resource=lease.name, cause="the disk does not show the shared mark of this host")


def _clear_shared_holders(member: Member, won: Won, give_back: Callable[[], Steps[None]]) -> Steps[None]:
    """Make sure that no other host still holds it shared; wipe the marks of dead ones (ondisk.md 6.2).

    The marks are those that the ballot's last read showed, which is known to be of this area as it is now. Reading a
    marked block once more, as the reference does, could only show some other block, by a read that went astray.
    Raises SharedHolders, after `give_back`, if one is alive.
    """
    alive = []
    timeout = member.timing.io_timeout
    for host_id, generation in won.chosen.marks.items():
        if member.hosts.shared_holder_alive(host_id, generation):
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


def _give_back(member: Member, won: Won) -> Steps[None]:
    """Release what was just decided for us."""
    yield from release(member, _held(member, won, shared=False, block=won.chosen.block))


def _stay_shared(member: Member, won: Won) -> Steps[None]:
    """Give up a leader that was won while we hold shared, as by a conversion that is refused.

    Better than the reference: where another host wrote the leader, it goes on naming us the exclusive owner, and
    nobody could share the lease with us if our block did not say otherwise.
    """
    if not (yield from free_leader(member, won.lease, won.leader)):
        block = won.chosen.block.changed(flags=RELEASED)
        yield from write_block(won.lease, member.host_id, block, won.chosen.sector, member.timing.io_timeout)


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
