"""A resource lease's area on the disk: reading all of it at once, and writing its single sectors.

Three kinds of facts lie in it: the leader record (what was decided last), one block per host (what is being decided,
and shared marks), and a request. A `Scene` is what one read of the area showed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paxos.area import blocks
from paxos.errors import BadRecord, NumHostsError, SectorSizeError, SizesInvalid
from paxos.geometry import Geometry, Place
from paxos.records import EMPTY_BLOCK, SHORT_HOLD, Block, Leader, verify_paxos
from paxos.steps import Steps, read, write


@dataclass(frozen=True, slots=True)
class LeaseArea:
    """A resource lease: its names (bytes, at most 48), where it is, its sizes."""

    lockspace: bytes
    name: bytes
    place: Place
    geometry: Geometry

    def sector_place(self, relative: int) -> Place:
        return Place(self.place.disk, self.place.at(relative))


def holding(leader: Leader) -> dict[str, bool]:
    """How an owned leader is held, as facts of a refusal.

    `short_hold`: its owner is only setting its shared mark. `by_competitor`: written by a host that finished the
    owner's ballot and can't know whether it is.
    """
    return {"short_hold": bool(leader.flags & SHORT_HOLD), "by_competitor": leader.write_id != leader.owner_id}


@dataclass(frozen=True, slots=True)
class Scene:
    """One read of a lease area, verified. `blocks` has the used ones only, by host id."""

    lease: LeaseArea
    leader: Leader
    leader_sector: bytes
    blocks: dict[int, Block]
    own_sector: bytes
    #: how many hosts' blocks matter
    num_hosts: int

    @property
    def max_mbal(self) -> int:
        return max((block.mbal for block in self.blocks.values()), default=0)

    def own_block(self, host_id: int) -> Block:
        return self.blocks.get(host_id, EMPTY_BLOCK)

    @property
    def top_lver(self) -> int:
        """The highest version that any host has begun to decide."""
        return max((block.lver for block in self.blocks.values()), default=0)

    @property
    def next_lver(self) -> int:
        """The version to decide next.

        Better than the reference (ondisk.md 13 item 6), which takes leader.lver + 1 even when a late leader write
        has set the leader back, and then ballots for ever below the blocks of later versions. A version is begun
        only by a host that saw the one before it decided and given up, so the highest one begun may be decided.
        """
        return max(self.leader.lver + 1, self.top_lver)

    @property
    def leader_went_back(self) -> bool:
        """Whether versions later than the leader's are known to have been decided."""
        return self.top_lver > self.leader.lver + 1

    @property
    def leader_behind(self) -> bool:
        """Whether a later version than the leader's was decided, or may have been: a ballot will put it right."""
        top = self.top_lver
        return self.leader_went_back or (top > self.leader.lver and self.accepted_at(top) is not None)

    @property
    def decided_lver(self) -> int:
        """The highest version that was decided, as far as is known: a late write may have set the leader back."""
        if not self.leader_behind:
            return self.leader.lver
        return self.top_lver if self.accepted_at(self.top_lver) is not None else self.top_lver - 1

    def accepted_at(self, lver: int) -> tuple[int, int, int] | None:
        """The value accepted at the largest ballot of that version, if any: if one was chosen, it is this one."""
        votes = [block for block in self.blocks.values() if block.lver == lver and block.accepted]
        return max(votes, key=lambda block: block.bal).value if votes else None

    def released_by_owner(self) -> bool:
        """Whether the leader's owner says in its own block that it gave up the very version of the leader."""
        block = self.blocks.get(self.leader.owner_id, EMPTY_BLOCK)
        return (
            block.released
            and block.lver == self.leader.lver
            and (block.inp, block.inp2) == (self.leader.owner_id, self.leader.owner_generation)
        )

    def owner_went_on(self) -> bool:
        """Whether the owner of a leader that a competitor wrote has begun a later version: it does not hold this one.

        A ballot's first phase takes RELEASED away, and says this instead.
        """
        leader = self.leader
        if leader.write_id == leader.owner_id:
            return False
        return self.blocks.get(leader.owner_id, EMPTY_BLOCK).lver > leader.lver

    def owner_overtaken(self) -> bool:
        """Whether others decided later versions and the leader's owner itself shows that it does not hold this one.

        So a late leader write is told from a later block that lies here by a write that went astray: in the first case
        the owner has erased its block, or tries in vain for the next version.
        """
        leader = self.leader
        own = self.blocks.get(leader.owner_id, EMPTY_BLOCK)
        others = max((b.lver for host, b in self.blocks.items() if host != leader.owner_id), default=0)
        tries = own.lver == leader.lver + 1 and not own.accepted
        return self.leader_behind and others > leader.lver and (own.erased or tries)


def survey(lease: LeaseArea, host_id: int, timeout: float) -> Steps[Scene]:
    """Read and verify a whole area for `host_id`. Raises BadRecord, NumHostsError, BlockChecksumError, DiskError.

    Better than the reference (13 item 2): the leader's own sizes are adopted before any block is looked at.
    """
    view = yield from read(lease.place.disk, lease.place.offset, lease.geometry.align_size, timeout)
    leader = _verified_leader(lease, view, host_id)
    geometry = Geometry.from_leader(leader.sector_size, leader.flags)
    if geometry != lease.geometry:
        lease = replace(lease, geometry=geometry)
        view = yield from read(lease.place.disk, lease.place.offset, geometry.align_size, timeout)
        leader = _verified_leader(lease, view, host_id)
    if host_id > geometry.max_hosts:
        raise NumHostsError(place=lease.place, num_hosts=leader.num_hosts, host_id=host_id)
    # All blocks, not only those below num_hosts: a late leader write may have set num_hosts back too.
    used = dict(blocks(view, geometry, geometry.max_hosts, lease.place))
    own = geometry.block_offset(host_id)
    return Scene(
        lease=lease,
        leader=leader,
        leader_sector=bytes(view[: geometry.sector_size]),
        blocks=used,
        own_sector=bytes(view[own : own + geometry.sector_size]),
        num_hosts=max(leader.num_hosts, *used, 1) if used else leader.num_hosts,
    )


def _verified_leader(lease: LeaseArea, sector: memoryview | bytes, host_id: int | None) -> Leader:
    leader = Leader.unpack(sector)
    verify_paxos(leader, lease.place, lease.lockspace, lease.name, host_id)
    if leader.sector_size not in (512, 4096):
        raise SectorSizeError(place=lease.place, record="resource lease", found=leader.sector_size)
    try:
        max_hosts = Geometry.from_leader(leader.sector_size, leader.flags).max_hosts
    except SizesInvalid as pair:
        raise BadRecord(place=lease.place, record=f"resource lease ({pair})") from pair
    if leader.num_hosts > max_hosts:
        raise BadRecord(place=lease.place, record=f"resource lease (num_hosts {leader.num_hosts})")
    return leader


def read_leader(lease: LeaseArea, timeout: float, host_id: int | None = None) -> Steps[tuple[Leader, bytes]]:
    """The verified leader record and a copy of its sector. With `host_id`, num_hosts must cover it."""
    view = yield from read(lease.place.disk, lease.place.offset, lease.geometry.sector_size, timeout)
    sector = bytes(view)
    return _verified_leader(lease, sector, host_id), sector


def write_leader(lease: LeaseArea, leader: Leader, sector: bytes, timeout: float) -> Steps[None]:
    """Write `leader` over `sector`'s record; the sector's other bytes stay."""
    yield from write(lease.place.disk, lease.place.offset, leader.into(sector), timeout)


def read_block(lease: LeaseArea, host_id: int, timeout: float) -> Steps[tuple[Block, bytes]]:
    """The block of `host_id` and a copy of its sector, not verified."""
    place = lease.sector_place(lease.geometry.block_offset(host_id))
    view = yield from read(place.disk, place.offset, lease.geometry.sector_size, timeout)
    sector = bytes(view)
    return Block.unpack(sector), sector


def write_block(lease: LeaseArea, host_id: int, block: Block, sector: bytes, timeout: float) -> Steps[None]:
    """Write `block` over `sector`'s records; the sector's other bytes stay."""
    place = lease.sector_place(lease.geometry.block_offset(host_id))
    yield from write(place.disk, place.offset, block.into(sector), timeout)
