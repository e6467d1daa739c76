"""Hostile bytes: whatever is read, the outcome is a right decode or a typed error, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paxos.area import belonging, blocks, calling, decode_lockspace, shared_hosts
from paxos.errors import BadRecord, BlockChecksumError, LeaseholdError, RecordTooShort
from paxos.geometry import MAX_HOSTS, Geometry
from paxos.index_records import IndexEntry, IndexHeader, fresh_index
from paxos.records import (
    DELTA_MAGIC,
    EMPTY_BLOCK,
    SHARED,
    Block,
    Leader,
    Request,
    bitmap_has,
    bitmap_hosts,
    fresh_lockspace,
    fresh_resource,
    pack_name,
    replace_name,
    same_name,
    verify_delta,
    verify_header,
    verify_paxos,
)

SIZES = Geometry(512, 1 << 20)
fresh_records = {
    "delta": fresh_lockspace(b"LS", SIZES, 10)[1],
    "paxos": fresh_resource(b"LS", b"vm1", SIZES)[:512],
    "request": Request(lver=3, force_mode=1).sector(512),
    "block": EMPTY_BLOCK.changed(mbal=2001, bal=2001, inp=1, inp2=1, inp3=99, lver=4).sector(512),
    "index": fresh_index(b"RX", SIZES, 1 << 20)[:512],
    "zeros": bytes(512),
    "ones": b"\xff" * 512,
}


@st.composite
def sectors(draw: st.DrawFn) -> bytes:
    """A record of ours with a few bytes changed and its end cut off, or any bytes at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=600))
    image = bytearray(draw(st.sampled_from(sorted(fresh_records.values()))))
    for at, value in draw(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=4)):
        image[at] = value
    return bytes(image[: draw(st.sampled_from([512, 512, 512, 255, 199, 144, 143, 24, 0]))])


@settings(max_examples=500)
@given(sectors(), st.integers(1, 2000))
def test_a_leader_is_believed_or_refused_with_a_type(sector: bytes, host_id: int) -> None:
    try:
        leader = Leader.unpack(sector)
    except RecordTooShort:
        assert len(sector) < 200
        return
    assert leader.into(sector) == sector and Leader.unpack(leader.pack()) == leader
    checks: list[Callable[[], None]] = [
        lambda: verify_delta(leader, "disk", b"LS"),
        lambda: verify_paxos(leader, "disk", b"LS", b"vm1", host_id),
        lambda: verify_header(leader, "disk", DELTA_MAGIC, "lockspace"),
    ]
    for check in checks:
        try:
            check()
        except BadRecord as error:
            assert str(error).startswith("disk: ")
    with contextlib.suppress(LeaseholdError):
        Geometry.from_leader(leader.sector_size, leader.flags)


@settings(max_examples=300)
@given(st.integers(0, 167), st.integers(1, 255), st.sampled_from(["delta", "paxos"]))
def test_no_changed_byte_that_is_covered_goes_unnoticed(at: int, change: int, kind: str) -> None:
    image = bytearray(fresh_records[kind])
    image[at] ^= change
    leader = Leader.unpack(image)
    with pytest.raises(BadRecord):
        if kind == "delta":
            verify_delta(leader, "disk", b"LS")
        else:
            verify_paxos(leader, "disk", b"LS", b"vm1", 7)


@settings(max_examples=500)
@given(sectors())
def test_a_block_decodes_exactly_or_is_too_short(sector: bytes) -> None:
    try:
        block = Block.unpack(sector)
    except RecordTooShort:
        assert len(sector) < 144
        return
    assert block.into(sector) == sector
    assert block.sealed().checksum_ok
    assert block.unused or block.checksum_ok == (block.checksum == block.computed_checksum)
    assert not block.erased or (block.released and block.checksum_ok and not block.accepted)


@settings(max_examples=300)
@given(sectors())
def test_requests_bitmaps_and_index_records_decode_exactly_or_raise_a_type(sector: bytes) -> None:
    with contextlib.suppress(BadRecord):
        request = Request.unpack(sector)
        assert request.into(sector) == sector
        request.verify("disk")
    with contextlib.suppress(RecordTooShort):
        hosts = bitmap_hosts(sector)
        assert hosts == [host_id for host_id in range(1, 2001) if bitmap_has(sector, host_id)]
    with contextlib.suppress(LeaseholdError):
        header = IndexHeader.unpack(sector)
        assert header.pack() == sector[:80]
        assert 0 < header.entries <= 128000
        header.verify("disk", b"RX", 1 << 20)
    with contextlib.suppress(BadRecord):
        entry = IndexEntry.unpack(sector, 16)
        assert entry.pack() == sector[16:80]
        entry.verify("disk", 3 << 20)


names = st.binary(min_size=1, max_size=48).filter(lambda name: 0 not in name)


@given(st.binary(min_size=48, max_size=48), names)
def test_a_name_stored_over_any_field_is_that_name(old: bytes, name: bytes) -> None:
    field = replace_name(old, name)
    assert len(field) == 48 and same_name(field, name) and same_name(field, pack_name(name))
    assert field[len(name) + 1 :] == old[len(name) + 1 :]


geometries = st.sampled_from([Geometry(*pair) for pair in MAX_HOSTS])
#: what a slot of an area may hold: from nothing to anything
contents = st.one_of(
    st.sampled_from(sorted(fresh_records.values())),
    st.binary(max_size=512),
    st.builds(
        lambda mbal, flags, mode, generation: EMPTY_BLOCK.changed(
            mbal=mbal, flags=flags, mode_flags=mode, mode_generation=generation
        ).sector(512),
        st.integers(0, 2**64 - 1),
        st.integers(0, 3),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**64 - 1),
    ),
)


@st.composite
def areas(draw: st.DrawFn, base: bytes) -> tuple[bytes, Geometry]:
    """An area of 1 MiB made of `base` sectors with strange ones among them, read as any geometry, cut anywhere."""
    sizes = draw(geometries)
    image = bytearray(base.ljust(sizes.sector_size, b"\0") * ((1 << 20) // sizes.sector_size))
    slots = st.integers(0, len(image) // sizes.sector_size - 1)
    for slot, content in draw(st.lists(st.tuples(slots, contents), max_size=12)):
        image[slot * sizes.sector_size : slot * sizes.sector_size + len(content)] = content
    length = draw(st.one_of(st.just(len(image)), st.integers(0, len(image)), st.integers(0, 8192)))
    return bytes(image[:length]), sizes


num_hosts = st.one_of(st.integers(0, 2000), st.sampled_from([2001, 2**64 - 1]))
area_settings = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@area_settings
@given(areas(bytes(512)), num_hosts)
def test_blocks_of_any_area_are_those_found_one_by_one(area: tuple[bytes, Geometry], claimed: int) -> None:
    data, sizes = area
    expected: list[tuple[int, Block]] = []
    for host_id in range(1, min(claimed, sizes.max_hosts) + 1):
        sector = data[sizes.block_offset(host_id) :][: sizes.sector_size]
        if len(sector) < sizes.sector_size:
            break
        if any(sector[:56]) or any(sector[128:144]):
            expected.append((host_id, Block.unpack(sector)))
    shared = [(host_id, block.mode_generation) for host_id, block in expected if block.mode_flags & SHARED]
    assert shared_hosts(memoryview(data), sizes, claimed) == shared
    damaged = [host_id for host_id, block in expected if not block.checksum_ok]
    astray = [host_id for host_id, block in expected if block.mbal and (block.mbal - host_id) % sizes.max_hosts]
    try:
        assert blocks(memoryview(data), sizes, claimed, "disk") == expected
        assert not damaged and not astray
    except BlockChecksumError as error:
        assert error.host_id == (damaged or astray)[0]


@area_settings
@given(areas(fresh_records["delta"]), st.integers(1, 250))
def test_any_lockspace_decodes_as_slot_by_slot(area: tuple[bytes, Geometry], called: int) -> None:
    data, sizes = area
    rows = decode_lockspace(memoryview(data), sizes)
    size = sizes.sector_size
    slots = [data[at : at + size] for at in range(0, len(data) - size + 1, size)][: sizes.max_hosts]
    leaders = [Leader.unpack(slot) for slot in slots]
    assert len(rows) == len(slots)
    for field in ("magic", "owner_id", "owner_generation", "timestamp", "io_timeout", "write_timestamp"):
        assert rows[field].tolist() == [getattr(leader, field) for leader in leaders]
    assert rows["resource_name"].tolist() == [leader.resource_name.rstrip(b"\0") for leader in leaders]
    assert rows["checksum_ok"].tolist() == [leader.checksum == leader.computed_checksum for leader in leaders]
    assert belonging(rows, b"LS").tolist() == [
        leader.magic == DELTA_MAGIC and same_name(leader.space_name, b"LS") for leader in leaders
    ]
    callers = [number + 1 for number, slot in enumerate(slots) if bitmap_has(slot, called)]
    assert calling(data, sizes, called).tolist() == callers
