"""Resource leases by the reference's documented choices, for clusters in which both kinds of hosts live.

What real sanlock hosts do on a volume, as far as the facts of ondisk.md sections 5 and 6 say, with the
choices that
leasehold makes otherwise: a retry's phase 1 wipes the own accepted value, damaged blocks are ignored in
ballots, a
lost ballot sleeps up to a second, a leader that names us is believed, a failed acquire erases its block, a
release
whose block write failed goes on, and an I/O that timed out holds nothing back. Only the simulator uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paxos.errors import (
    BallotReadFailed,
    BallotWriteFailed,
    BlockChecksumError,
    DiskError,
    IOTimeout,
    LeaseHeld,
    LeaseOther,
    LeaseOwned,
    OwnerMayBeDead,
    ReleaseOwner,
    SharedHolders,
    SharedRetries,
)
from paxos.geometry import Geometry
from paxos.host_lease import read_sector
from paxos.lease_area import LeaseArea, read_block, read_leader, write_leader
from paxos.liveness import Member
from paxos.records import EMPTY_BLOCK, RELEASED, SHARED, SHORT_HOLD, Block, Leader, verify_paxos
from paxos.resource import Held, Want
from paxos.steps import Steps, now, read, sleep, write
from paxos.timing import Timing, judging_io_timeout

#: an erased block: how the reference leaves it after a failed acquire
ERASED = EMPTY_BLOCK.changed(flags=RELEASED)


class _Restart(Exception):
    """Look at the area again."""


class _Abort(Exception):
    """A larger ballot number or version was seen."""


@dataclass(slots=True)
class _Seen:
    leader: Leader
    sector: bytes
    max_mbal: int


def acquire(member: Member, lease: LeaseArea, want: Want) -> Steps[Held]:
    """Acquire as the reference does. Raises as `paxos.resource.acquire`, after undoing what it would undo."""
    tries = 0
    while True:
        try:
            leader, block, marks = yield from _own_leader(member, lease, want, EMPTY_BLOCK)
            break
        except (LeaseHeld, LeaseOwned, LeaseOther) as held:
            if not want.shared or not getattr(held, "short_hold", False):
                raise
            tries += 1
            if tries > want.sh_retries:
                raise SharedRetries(resource=lease.name, retries=want.sh_retries) from held
            yield from sleep(member.dice.uniform(0, 1))
    if not want.shared:
        yield from _check_sharers(member, lease, leader, block, marks)
        return _held(member, lease, leader, block, shared=False)
    marked = block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=member.generation)
    try:
        yield from _write_block(member, lease, marked)
        yield from _free_leader(member, lease, leader)
    except (DiskError, ReleaseOwner):
        yield from _ignoring(_write_block(member, lease, block.changed(flags=RELEASED)))
        yield from _ignoring(_free_leader(member, lease, leader))
        raise
    return _held(member, lease, leader, marked, shared=True)


def release(member: Member, held: Held) -> Steps[None]:
    """Release as the reference does: retried while it times out, never waiting for what is still in flight."""
    block = held.block.changed(flags=RELEASED, mode_flags=0, mode_generation=0)
    pause = 1.0
    while True:
        try:
            if held.shared:
                yield from _write_block(member, held.lease, block)
            else:
                yield from _ignoring(_write_block(member, held.lease, block))
                yield from _free_leader(member, held.lease, held.leader)
            return
        except IOTimeout:
            yield from sleep(pause)
            pause = 2 * member.timing.io_timeout


def convert_to_exclusive(member: Member, held: Held) -> Steps[Held]:
    """Shared to exclusive (6.4): the own mark stays in the block until the very end."""
    mark = EMPTY_BLOCK.changed(mode_flags=SHARED, mode_generation=held.generation)
    leader, block, marks = yield from _own_leader(member, held.lease, Want(nowait=True), mark)
    if alive := (yield from _sharers_alive(member, held.lease, marks)):
        yield from _free_leader(member, held.lease, leader)
        raise SharedHolders(resource=held.lease.name, owner_host=alive[0], hosts=alive)
    block = block.changed(mode_flags=0, mode_generation=0)
    yield from _ignoring(_write_block(member, held.lease, block))
    return _held(member, held.lease, leader, block, shared=False)


def convert_to_shared(member: Member, held: Held) -> Steps[Held]:
    """Exclusive to shared (6.5)."""
    block = held.block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=held.generation)
    yield from _write_block(member, held.lease, block)
    pause = 1.0
    while True:
        try:
            yield from _free_leader(member, held.lease, held.leader)
            return _held(member, held.lease, held.leader, block, shared=True)
        except IOTimeout:
            yield from sleep(pause)
            pause += member.timing.io_timeout


def _held(member: Member, lease: LeaseArea, leader: Leader, block: Block, shared: bool) -> Held:
    return Held(lease, member.host_id, member.generation, leader.lver, shared, leader, block, b"")


def _own_leader(
    member: Member, lease: LeaseArea, want: Want, base: Block
) -> Steps[tuple[Leader, Block, dict[int, int]]]:
    """Ballots are written over `base`: empty, or with a shared mark that is to stay."""
    while True:
        seen = yield from _look(member, lease)
        leader = seen.leader
        fresh = True
        ours = leader.owner_id == member.host_id and leader.owner_generation <= member.generation
        if not leader.free and not ours:
            try:
                yield from _owner_gone(member, lease, leader, want.nowait)
            except _Restart:
                continue
            fresh = False
        try:
            return (yield from _ballots(member, lease, seen, want, base, fresh))
        except _Restart:
            continue


def _look(member: Member, lease: LeaseArea) -> Steps[_Seen]:
    view = yield from read(lease.place.disk, lease.place.offset, lease.geometry.align_size, member.timing.io_timeout)
    leader = Leader.unpack(view)
    verify_paxos(leader, lease.place, lease.lockspace, lease.name, member.host_id)
    blocks = list(_blocks(lease, view, leader.num_hosts))
    for host_id, block in blocks:
        if not block.checksum_ok:
            raise BlockChecksumError(place=lease.place, host_id=host_id)
    sector = bytes(view[: lease.geometry.sector_size])
    return _Seen(leader, sector, max((block.mbal for _, block in blocks), default=0))


def _blocks(lease: LeaseArea, view: memoryview, num_hosts: int) -> Iterator[tuple[int, Block]]:
    for host_id in range(1, num_hosts + 1):
        offset = lease.geometry.block_offset(host_id)
        if any(view[offset : offset + 144]):
            yield host_id, Block.unpack(view, offset)


def _owner_gone(member: Member, lease: LeaseArea, leader: Leader, nowait: bool) -> Steps[None]:
    """Owner liveness (5.3): returns when the owner is out of the way, raises LeaseHeld or _Restart."""
    history = member.hosts.get(leader.owner_id)
    same = (
        history is not None
        and history.last_live
        and (history.owner_id, history.generation) == (leader.owner_id, leader.owner_generation)
    )
    wait_start = history.last_live if same and history else (yield from now())
    last_timestamp = history.timestamp if same and history else None
    while True:
        sector, _ = yield from read_sector(member.area, leader.owner_id, member.timing.io_timeout)
        if sector.free or sector.owner_id != leader.owner_id or sector.owner_generation > leader.owner_generation:
            return
        if last_timestamp is None:
            last_timestamp = sector.timestamp
        elif sector.timestamp != last_timestamp or (same and history and history.last_live == history.last_check):
            if leader.write_id != leader.owner_id:
                block, _ = yield from read_block(lease, leader.owner_id, member.timing.io_timeout)
                if block.released:
                    return
            raise LeaseHeld(
                resource=lease.name,
                owner_host=leader.owner_id,
                generation=leader.owner_generation,
                short_hold=bool(leader.flags & SHORT_HOLD),
            )
        io_timeout = judging_io_timeout(sector.io_timeout, member.timing.io_timeout)
        dead = Timing(io_timeout, member.timing.fire_timeout).host_dead
        if (yield from now()) - wait_start > dead:
            return
        if nowait:
            raise OwnerMayBeDead(resource=lease.name, owner_host=leader.owner_id, wait=dead)
        yield from sleep(1)
        again, _ = yield from read_leader(lease, member.timing.io_timeout)
        if again != leader:
            raise _Restart


def _ballots(
    member: Member, lease: LeaseArea, seen: _Seen, want: Want, base: Block, fresh: bool
) -> Steps[tuple[Leader, Block, dict[int, int]]]:
    leader, lver, slots = seen.leader, seen.leader.lver + 1, lease.geometry.max_hosts
    me = (member.host_id, member.generation)
    mbal = seen.max_mbal - seen.max_mbal % slots + slots + member.host_id if seen.max_mbal else member.host_id
    block = EMPTY_BLOCK
    #: the shared holders remembered in the last phase 1 that was finished; another host may commit what it proposed
    marks: dict[int, int] = {}
    while True:
        if not fresh:
            again, _ = yield from read_leader(lease, member.timing.io_timeout)
            if again.lver == lver:
                if (again.owner_id, again.owner_generation) == me:
                    return again, block, marks
                raise LeaseOwned(
                    resource=lease.name,
                    owner_host=again.owner_id,
                    generation=again.owner_generation,
                    short_hold=bool(again.flags & SHORT_HOLD),
                )
            if again != leader:
                raise _Restart
        fresh = False
        started = yield from now()
        try:
            block = base.changed(mbal=mbal, lver=lver)
            first = yield from _phase(member, lease, leader, block, phase=1)
            marks = {host: b.mode_generation for host, b in first if b.shared and host != member.host_id}
            votes = [b for _, b in first if b.lver == lver and b.accepted]
            value = max(votes, key=lambda b: b.bal).value if votes else (*me, int(started))
            block = block.changed(bal=mbal, inp=value[0], inp2=value[1], inp3=value[2])
            yield from _phase(member, lease, leader, block, phase=2)
        except _Abort:
            yield from sleep(member.dice.uniform(0, 1))
            mbal += slots
            continue
        except (BallotReadFailed, BallotWriteFailed) as failed:
            if failed.phase == 2:
                yield from _undo(member, lease, None, base)
            raise
        committed = yield from _commit(member, lease, seen, value, lver, want, base)
        return committed, block, marks


def _phase(member: Member, lease: LeaseArea, leader: Leader, own: Block, phase: int) -> Steps[list[tuple[int, Block]]]:
    try:
        yield from _write_block(member, lease, own)
    except DiskError as cause:
        raise BallotWriteFailed(resource=lease.name, phase=phase, cause=cause) from cause
    length = lease.geometry.ballot_length(leader.num_hosts)
    try:
        view = yield from read(lease.place.disk, lease.place.offset, length, member.timing.io_timeout)
    except DiskError as cause:
        raise BallotReadFailed(resource=lease.name, phase=phase, cause=cause) from cause
    blocks = [(host, block) for host, block in _blocks(lease, view, leader.num_hosts) if block.checksum_ok]
    for _, block in blocks:
        if block.lver > own.lver or (block.lver == own.lver and block.mbal > own.mbal):
            raise _Abort
    return blocks


def _commit(
    member: Member, lease: LeaseArea, seen: _Seen, value: tuple[int, int, int], lver: int, want: Want, base: Block
) -> Steps[Leader]:
    owner_id, generation, timestamp = value
    ours = (owner_id, generation) == (member.host_id, member.generation)
    flags = seen.leader.flags
    if ours:
        flags = flags | SHORT_HOLD if want.shared else flags & ~SHORT_HOLD
    leader = seen.leader.changed(
        flags=flags,
        lver=lver,
        owner_id=owner_id,
        owner_generation=generation,
        timestamp=timestamp,
        write_id=member.host_id,
        write_generation=member.generation,
        write_timestamp=int((yield from now())),
    )
    try:
        yield from write_leader(lease, leader, seen.sector, member.timing.io_timeout)
    except DiskError:
        yield from _undo(member, lease, leader, base)
        raise
    if not ours:
        raise LeaseOther(
            resource=lease.name,
            owner_host=owner_id,
            generation=generation,
            short_hold=bool(flags & SHORT_HOLD),
        )
    return leader


def _check_sharers(
    member: Member, lease: LeaseArea, leader: Leader, block: Block, marks: dict[int, int]
) -> Steps[None]:
    if alive := (yield from _sharers_alive(member, lease, marks)):
        yield from release(member, _held(member, lease, leader, block, shared=False))
        raise SharedHolders(resource=lease.name, owner_host=alive[0], hosts=alive)


def _sharers_alive(member: Member, lease: LeaseArea, marks: dict[int, int]) -> Steps[list[int]]:
    """Of the hosts that had marks those that live; the marks of the dead are wiped (6.2)."""
    alive = []
    for host_id in marks:
        mark, _ = yield from read_block(lease, host_id, member.timing.io_timeout)
        if not mark.shared or not mark.mode_generation:
            continue
        if member.hosts.shared_holder_alive(host_id, mark.mode_generation):
            alive.append(host_id)
        else:
            place = lease.sector_place(lease.geometry.block_offset(host_id))
            yield from write(place.disk, place.offset, bytes(lease.geometry.sector_size), member.timing.io_timeout)
    return alive


def _undo(member: Member, lease: LeaseArea, expected: Leader | None, base: Block) -> Steps[None]:
    """Undo a failed acquire: wipe the own block, free the leader if it landed; once more each time it times out.

    A failed conversion wipes nothing and tries less often.
    """
    pause = member.timing.io_timeout if base.shared else 1.0
    for _ in range(4 if base.shared else 10):
        try:
            if not base.shared:
                yield from _write_block(member, lease, ERASED)
            leader = expected
            if leader is None:
                leader, _ = yield from read_leader(lease, member.timing.io_timeout)
                if leader.owner_id != member.host_id or leader.free:
                    return
            yield from _free_leader(member, lease, leader)
            return
        except IOTimeout:
            yield from sleep(pause)
            pause = 2 * member.timing.io_timeout
        except (DiskError, ReleaseOwner):
            return


def _free_leader(member: Member, lease: LeaseArea, ours: Leader) -> Steps[None]:
    seen, sector = yield from read_leader(lease, member.timing.io_timeout)
    if seen.write_id != member.host_id:
        return
    if seen != ours or seen.free:
        raise ReleaseOwner(resource=lease.name, owner_host=seen.owner_id, timestamp=seen.timestamp)
    free = seen.changed(
        timestamp=0,
        flags=seen.flags & ~SHORT_HOLD,
        write_id=member.host_id,
        write_generation=member.generation,
        write_timestamp=int((yield from now())),
    )
    yield from write_leader(lease, free, sector, member.timing.io_timeout)


def _write_block(member: Member, lease: LeaseArea, block: Block) -> Steps[None]:
    geometry: Geometry = lease.geometry
    place = lease.sector_place(geometry.block_offset(member.host_id))
    yield from write(place.disk, place.offset, block.sector(geometry.sector_size), member.timing.io_timeout)


def _ignoring(steps: Steps[None]) -> Steps[None]:
    try:
        yield from steps
    except (DiskError, ReleaseOwner):
        return
