"""After an I/O error: find out what is on the disk, give up what was not granted, repair what a late write undid.

An acquire, release or conversion that met an I/O error leaves a resource in doubt: its writes may have happened, or
may still. Until that is known nothing else may be begun on the resource by this host, so that no own write can land
behind a later one. Settling is how it gets known; while it lasts, the host answers WriteUnsettled.

    1. retract at once, if nothing but leader writes is in flight: RELEASED tells the others that we do not hold it,
       though a competitor may yet decide our value. An own block, a dead host's block being wiped, a value block or
       what this lease guards (an index) could land on what they do then: so those keep the lease ours until
    2. the disk has given back what is in flight
    3. retract, whatever landed; and where the leader names us, or went back, run one acquire and release: a ballot
       repeats what was decided, so this frees only what is provably ours and repairs the rest. Where we still hold
       the lease shared, our mark stays meanwhile
"""

from __future__ import annotations

from collections.abc import Sequence

from paxos.errors import BallotReadFailed, BallotWriteFailed, DiskError, HeldElsewhere, IOTimeout, TryAgain
from paxos.lease_area import LeaseArea, Scene, read_block, survey, write_block
from paxos.liveness import Member
from paxos.records import RELEASED, SHARED, Block
from paxos.resource import Held, Want, acquire, free_leader, release, repair_leader
from paxos.steps import Pending, Read, Steps, Write, reap


def pending_of(error: DiskError) -> Pending | None:
    """The I/O that an operation's error left in flight, if any."""
    while isinstance(error, BallotReadFailed | BallotWriteFailed):
        cause = error.facts.get("cause")
        if not isinstance(cause, DiskError):
            return None
        error = cause
    return error.pending if isinstance(error, IOTimeout) else None


def settle(member: Member, lease: LeaseArea, in_flight: Sequence[Pending], keep: Held | None = None) -> Steps[None]:
    """Bring a resource back to a known state. `keep`: the shared lease we hold after a failed conversion.

    Raises IOTimeout when an I/O is still in flight after a while, DiskError, BadRecord: then it is to be repeated,
    with the I/O that is in flight then.
    """
    if not any(_undoes_others_work(p.step, lease) for p in in_flight):
        yield from _retract(member, lease, keep)
    for pending in in_flight:
        yield from _reaped(member, pending)
    yield from _retract(member, lease, keep)
    scene = yield from survey(lease, member.host_id, member.timing.io_timeout)
    if scene.leader_behind or (keep is None and _names_us(scene, member)):
        yield from _repair(member, scene.lease, keep)
    elif _names_us(scene, member):
        yield from free_leader(member, scene.lease, scene.leader)


def _undoes_others_work(step: Read | Write, lease: LeaseArea) -> bool:
    """Whether it is a write other than of this lease's leader, against which the blocks protect."""
    return isinstance(step, Write) and (step.disk, step.offset) != (lease.place.disk, lease.place.offset)


def _reaped(member: Member, pending: Pending) -> Steps[None]:
    """Wait for one overdue I/O; how it ended does not matter, only that it did. Raises IOTimeout if it did not."""
    try:
        yield from reap(pending, member.timing.host_dead)
    except IOTimeout:
        raise
    except DiskError:
        return


def _retract(member: Member, lease: LeaseArea, keep: Held | None) -> Steps[None]:
    """Say RELEASED in the own block, keeping its values; take back a mark that was not granted, restore one that was.

    Restore, because the last write of a conversion takes the mark away. Until then the block is what keeps others out:
    it says that the lease is ours exclusively. A block that is older than what we wrote was read by an old path, or
    put there by a late write of our host's earlier life: as only we write it, the later one is written again.
    """
    block, sector = yield from read_block(lease, member.host_id, member.timing.io_timeout)
    last = member.ballots.get(lease.place, block)
    if block.mbal == 0 or block.progress >= last.progress:
        member.check_fresh(lease.place, lease.sector_place(lease.geometry.block_offset(member.host_id)), block)
        last = block
    wanted: Block = last.changed(
        flags=RELEASED if last.accepted else last.flags,
        mode_flags=SHARED if keep else 0,
        mode_generation=keep.generation if keep else 0,
    )
    if block.checksum_ok and wanted != block and not block.unused:
        yield from write_block(lease, member.host_id, wanted, sector, member.timing.io_timeout)


def _names_us(scene: Scene, member: Member) -> bool:
    leader = scene.leader
    return not leader.free and leader.owner_id == member.host_id and leader.owner_generation <= member.generation


def _repair(member: Member, lease: LeaseArea, keep: Held | None) -> Steps[None]:
    try:
        if keep is None:
            held = yield from acquire(member, lease, Want(nowait=True))
            yield from release(member, held)
        else:
            yield from repair_leader(member, lease)
    except (HeldElsewhere, TryAgain):
        return  # decided for somebody else, and the leader says so now
