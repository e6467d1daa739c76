"""What lies on a disk, one line for each record: made to be read, and to be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from paxos.area import decode_lockspace
from paxos.geometry import Geometry
from paxos.index import Index
from paxos.index_records import ENTRY_LENGTH, IndexEntry
from paxos.lease_area import LeaseArea
from paxos.records import (
    CLEAR_MAGIC,
    DELTA_MAGIC,
    PAXOS_MAGIC,
    SHORT_HOLD,
    Block,
    Leader,
    Request,
    bitmap_hosts,
    name_of,
)

#: what a line is about, and the line
Line = tuple[str, str]


def host(host_id: int, generation: int) -> str:
    return f"h{host_id}.{generation}"


def host_lease_lines(disk: bytes | bytearray, geometry: Geometry, times: bool) -> Iterator[Line]:
    """The host ids that somebody once took. The lockspace lies at 0."""
    area = memoryview(disk)[: geometry.align_size]
    rows = decode_lockspace(area, geometry)
    for row in rows["used"].nonzero()[0].tolist():
        at = geometry.delta_offset(row + 1)
        sector = area[at : at + geometry.sector_size]
        leader = Leader.unpack(sector)
        subject = f"id {row + 1}"
        name = name_of(leader.resource_name).decode()
        if leader.magic != DELTA_MAGIC:
            yield subject, f"no host lease (magic {leader.magic:#x})"
            continue
        renewed = f", renewed {leader.timestamp}" if times else ""
        who = f"free, was {name}'s" if leader.free else f"{name}'s{renewed}"
        line = f"{who}, generation {leader.owner_generation}, io {leader.io_timeout}"
        if calls := bitmap_hosts(sector):
            line += ", calls " + " ".join(f"h{number}" for number in calls)
        yield subject, line + _damage(leader)


def _damage(record: Leader | Block) -> str:
    good = record.checksum_ok if isinstance(record, Block) else record.checksum == record.computed_checksum
    return "" if good else ", DAMAGED"


def lease_lines(disk: bytes | bytearray, lease: LeaseArea, label: str, num_hosts: int) -> Iterator[Line]:
    """Leader, used blocks, request and value block of one lease. `num_hosts`: the number that goes without saying."""
    geometry = lease.geometry
    size = geometry.sector_size
    area = memoryview(disk)[lease.place.offset : lease.place.offset + geometry.align_size]
    yield f"{label} leader", leader_line(Leader.unpack(area), num_hosts)
    if request := request_line(Request.unpack(area[geometry.request_offset :])):
        yield f"{label} request", request
    for host_id in range(1, geometry.max_hosts + 1):
        at = geometry.block_offset(host_id)
        if any(area[at : at + size]):
            yield f"{label} block {host_id}", block_line(Block.unpack(area, at))
    if geometry.has_lvb:
        value = bytes(area[geometry.lvb_offset : geometry.lvb_offset + size]).rstrip(b"\0")
        if value:
            yield f"{label} value", repr(value.decode("utf-8", "backslashreplace"))


def leader_line(leader: Leader, num_hosts: int) -> str:
    if leader.magic == CLEAR_MAGIC:
        return "deleted"
    if leader.magic != PAXOS_MAGIC:
        return f"no lease (magic {leader.magic:#x})"
    owner = host(leader.owner_id, leader.owner_generation)
    if leader.owner_id == 0:
        line = "never held"
    elif leader.free:
        line = f"lver {leader.lver} free, was {owner}'s"
    else:
        line = f"lver {leader.lver} of {owner} since {leader.timestamp}"
    if leader.write_id and leader.write_id != leader.owner_id:
        line += f", written by {host(leader.write_id, leader.write_generation)}"
    if leader.flags & SHORT_HOLD:
        line += ", SHORT_HOLD"
    if leader.num_hosts != num_hosts:
        line += f", num_hosts {leader.num_hosts}"
    return line + _damage(leader)


def block_line(block: Block) -> str:
    if block.erased:
        line = "erased (zeros, RELEASED)"
    elif block.unused:
        line = "blank"
    else:
        line = f"lver {block.lver} mbal {block.mbal}"
        if block.accepted:
            line += f" bal {block.bal} inp {host(block.inp, block.inp2)} since {block.inp3}"
        if block.released:
            line += ", RELEASED"
    if block.shared:
        line += f", SHARED by generation {block.mode_generation}"
    return line + _damage(block)


def request_line(request: Request) -> str:
    if request.lver == request.force_mode == 0:
        return ""
    force = {0: "", 1: " by FORCE", 2: " GRACEFUL"}.get(request.force_mode, f" mode {request.force_mode}")
    return f"lver {request.lver} wanted{force}"


def index_lines(disk: bytes | bytearray, index: Index, entries: Iterable[int]) -> Iterator[Line]:
    """The used entries of an index among `entries`."""
    for number in entries:
        at = index.place.at(index.geometry.index_entry_offset(number))
        entry = IndexEntry.unpack(disk[at : at + ENTRY_LENGTH])
        if not entry.free:
            right = "" if entry.res_offset == index.offset(number) else f" WRONG OFFSET {entry.res_offset}"
            yield f"index entry {number}", f"{name_of(entry.name).decode()} in place {number}{right}"
