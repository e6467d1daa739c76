"""Coverage-guided fuzzing of everything that is read from a disk: `python tests/fuzz/fuzz_records.py`.

Arguments are libFuzzer's, like -max_total_time=20. The first byte of an input says who reads the rest, the second from
what the bytes are made: the rest itself, or a good record or area in which the rest changes some bytes. The outcome
must be a right decode or a LeaseholdError. Anything else, or a write, ends the run and leaves the input in a file
crash-*, which can be given as an argument to see it again.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["paxos"]):
    from paxos import calls, host_lease, index, request
    from paxos.area import belonging, blocks, calling, decode_lockspace, shared_hosts
    from paxos.errors import LeaseholdError
    from paxos.fields import name_of
    from paxos.geometry import MAX_HOSTS, MIB, Geometry, Place
    from paxos.index_records import ENTRY_LENGTH, IndexEntry, IndexHeader, fresh_index
    from paxos.lease_area import LeaseArea, survey
    from paxos.liveness import HostTable
    from paxos.lockspace_area import LockspaceArea
    from paxos.owners import owners
    from paxos.records import (
        DELTA_MAGIC,
        EMPTY_BLOCK,
        Block,
        Leader,
        Request,
        fresh_lockspace,
        fresh_resource,
        verify_delta,
        verify_header,
        verify_paxos,
    )
    from paxos.timing import Timing

from tests.support.memory import MemoryWorld

_SIZES = Geometry(512, MIB)
_GEOMETRIES = [Geometry(*pair) for pair in MAX_HOSTS]
_DELTA_AREA, _DELTA = fresh_lockspace(b"LS", _SIZES, 10)
_RESOURCE = fresh_resource(b"LS", b"vm1", _SIZES)
_INDEX = fresh_index(b"LS", _SIZES, MIB)
_BLOCK = EMPTY_BLOCK.changed(mbal=2001, bal=2001, inp=1, inp2=1, inp3=99, lver=4).sector(512)
_USED = bytes(_RESOURCE[:1024]) + _BLOCK + bytes(_RESOURCE[1536:])
_TAKEN = Leader.unpack(_DELTA).changed(owner_id=1, owner_generation=1, timestamp=7).sector(512)
_SECTORS = [
    bytes(_DELTA[:512]),
    bytes(_RESOURCE[:512]),
    Request(lver=3, force_mode=1).sector(512),
    _BLOCK,
    _INDEX[:512],
]
_AREAS = [bytes(MIB), _USED, bytes(_TAKEN) + bytes(_DELTA_AREA[512:MIB]), bytes(_INDEX[:MIB])]
#: where edits of areas go: the first sectors, where what matters lies
_EDITED_BYTES = 8192
_EDIT = struct.Struct("<HB")
_HOST_ID = 2


class Wrote(Exception):
    """Reading hostile bytes led to a write."""


def _no_write(step: Any) -> None:
    if hasattr(step, "data"):
        raise Wrote(step)


def _edited(choice: int, data: bytes, good: list[bytes], within: int) -> bytes:
    """`data` itself, or one of the `good` images with the bytes changed that `data` says.

    Half of these are sealed again, so that they get past the checksum of their first record.
    """
    number = choice % (len(good) + 1)
    if number == len(good):
        return data
    image = bytearray(good[number])
    for at, value in _EDIT.iter_unpack(data[: len(data) // _EDIT.size * _EDIT.size]):
        image[at % within] = value
    if choice & 0x80:
        _seal(image)
    return bytes(image)


def _seal(image: bytearray) -> None:
    """Right checksums for the leader in the first sector, and for what would be blocks among the edited bytes."""
    with contextlib.suppress(LeaseholdError):
        leader = Leader.unpack(image)
        image[:512] = leader.changed(checksum=leader.computed_checksum).into(image[:512])
    for at in range(1024, min(_EDITED_BYTES, len(image)), 512):
        if any(image[at : at + 512]):
            image[at : at + 512] = Block.unpack(image, at).sealed().into(image[at : at + 512])


def leader(choice: int, data: bytes) -> None:
    sector = _edited(choice, data, _SECTORS, 512)
    found = Leader.unpack(sector)
    assert found.into(sector) == sector and Leader.unpack(found.pack()) == found
    checks: list[Callable[[], object]] = [
        lambda: verify_delta(found, "disk", b"LS"),
        lambda: verify_paxos(found, "disk", b"LS", b"vm1", _HOST_ID),
        lambda: verify_header(found, "disk", DELTA_MAGIC, "lockspace"),
        lambda: Geometry.from_leader(found.sector_size, found.flags),
    ]
    for check in checks:
        with contextlib.suppress(LeaseholdError):
            check()


def block(choice: int, data: bytes) -> None:
    sector = _edited(choice, data, _SECTORS, 512)
    found = Block.unpack(sector)
    assert found.into(sector) == sector and found.sealed().checksum_ok


def request_record(choice: int, data: bytes) -> None:
    sector = _edited(choice, data, _SECTORS, 512)
    found = Request.unpack(sector)
    assert found.into(sector) == sector
    found.verify("disk")


def bitmap(choice: int, data: bytes) -> None:
    sector = _edited(choice, data, _SECTORS, 512)
    hosts = calls.bitmap_hosts(sector)
    assert all(calls.bitmap_has(sector, host_id) for host_id in hosts) and hosts == sorted(set(hosts))


def index_records(choice: int, data: bytes) -> None:
    area = _edited(choice, data, _SECTORS, 512)
    for at in range(0, len(area), ENTRY_LENGTH):
        entry = IndexEntry.unpack(area, at)
        assert entry.pack() == area[at : at + ENTRY_LENGTH]
        name_of(entry.name)
        with contextlib.suppress(LeaseholdError):
            entry.verify("disk", 3 * MIB)
    header = IndexHeader.unpack(area)
    assert header.pack() == area[:80]
    header.verify("disk", b"LS", MIB)
    assert 0 < header.entries <= header.geometry.max_index_entries


def lease_blocks(choice: int, data: bytes) -> None:
    view = memoryview(_edited(choice, data, _AREAS, _EDITED_BYTES))
    for geometry in _GEOMETRIES:
        shared_hosts(view, geometry, geometry.max_hosts)
        with contextlib.suppress(LeaseholdError):
            for host_id, found in blocks(view, geometry, geometry.max_hosts, "disk"):
                assert found.checksum_ok and 1 <= host_id <= geometry.max_hosts


def lockspace_rows(choice: int, data: bytes) -> None:
    view = memoryview(_edited(choice, data, _AREAS, _EDITED_BYTES))
    for geometry in _GEOMETRIES:
        rows = decode_lockspace(view, geometry)
        assert len(rows) == min(len(view) // geometry.sector_size, geometry.max_hosts)
        belonging(rows, b"LS")
        calling(view, geometry, _HOST_ID)


def host_table(choice: int, data: bytes) -> None:
    good, hostile = memoryview(_AREAS[2]), memoryview(_edited(choice, data, _AREAS, _EDITED_BYTES))
    if len(hostile) < MIB:
        hostile = memoryview(bytes(hostile).ljust(MIB, b"\0")[:MIB])
    table = HostTable(LockspaceArea(b"LS", Place("disk"), _SIZES), _HOST_ID, Timing(10))
    for at, view in enumerate((good, hostile, good, hostile)):
        table.observe(view, 100.0 + 20 * at)
        for known in table.used():
            table.state(known.host_id, 200.0)
            table.shared_holder_alive(known.host_id, known.generation)


def protocols(choice: int, data: bytes) -> None:
    """Whole protocols that only look, on a disk of hostile areas: each may be refused by itself."""
    area = _edited(choice, data, _AREAS, _EDITED_BYTES).ljust(MIB, b"\0")[:MIB]
    world = MemoryWorld(disk=2 * MIB)
    world.disks["disk"][:MIB] = area
    world.disks["disk"][MIB:] = area
    world.verdict = _no_write
    place = Place("disk", MIB)
    lease, lockspace = LeaseArea(b"LS", b"vm1", place, _SIZES), LockspaceArea(b"LS", place, _SIZES)
    with contextlib.suppress(LeaseholdError):
        owners(world.run(survey(lease, _HOST_ID, 10)))
    with contextlib.suppress(LeaseholdError):
        world.run(request.read_request(lease, 10))
    with contextlib.suppress(LeaseholdError):
        world.run(host_lease.probe(place, 10))
    with contextlib.suppress(LeaseholdError):
        world.run(host_lease.read_sector(lockspace, _HOST_ID, 10))
    with contextlib.suppress(LeaseholdError):
        opened = world.run(index.open_index(b"LS", place, 10))
        for wanted in ({"name": b"vm1"}, {"offset": 4 * MIB}, {}):
            with contextlib.suppress(LeaseholdError):
                world.run(index.lookup(opened, 10, **wanted))


READERS: list[Callable[[int, bytes], None]] = [
    leader,
    block,
    request_record,
    bitmap,
    index_records,
    lease_blocks,
    lockspace_rows,
    host_table,
    protocols,
]


def read_hostile(data: bytes) -> None:
    """One input of the fuzzer."""
    if len(data) < 2:
        return
    with contextlib.suppress(LeaseholdError):
        READERS[data[0] % len(READERS)](data[1], data[2:])


def main() -> None:
    # long inputs from the start: they are lists of edits, so that length is not what makes one difficult
    atheris.Setup([sys.argv[0], "-len_control=0", "-max_len=1024", *sys.argv[1:]], read_hostile)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
