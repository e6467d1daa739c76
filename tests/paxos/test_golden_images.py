"""Areas written by the reference: read as it means them, written as it writes them, byte for byte."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from paxos.area import blocks, calling, decode_lockspace, shared_hosts
from paxos.errors import BlockChecksumError, LeaderChecksumError, LeaseCleared
from paxos.geometry import Geometry
from paxos.index_records import INDEX_LEASE, IndexEntry, IndexHeader, fresh_index
from paxos.records import (
    CLEAR_MAGIC,
    EMPTY_BLOCK,
    Block,
    Leader,
    Request,
    bitmap_has,
    bitmap_hosts,
    bitmap_of,
    fresh_lockspace,
    fresh_resource,
    name_of,
    verify_delta,
    verify_paxos,
)
from tests.paxos.golden import IMAGES, Image, image, raw_name

LEADER_FIELDS = [field.name for field in fields(Leader) if not field.name.endswith("_name")]
BLOCK_FIELDS = [field.name for field in fields(Block) if field.name != "mode_padding"]

every_image = pytest.mark.parametrize("golden", IMAGES, ids=lambda golden: golden.name)
lockspaces = [one for one in IMAGES if one.kind == "lockspace"]
resources = [one for one in IMAGES if one.kind == "resource"]
indexes = [one for one in IMAGES if one.kind == "rindex"]


def leader_from(record: dict[str, Any]) -> Leader:
    return Leader(
        **{field: record[field] for field in LEADER_FIELDS},
        space_name=raw_name(record, "space_name"),
        resource_name=raw_name(record, "resource_name"),
    )


def block_from(record: dict[str, Any]) -> Block:
    return Block(**{field: record[field] for field in BLOCK_FIELDS})


@every_image
def test_every_record_decodes_to_what_the_vectors_say(golden: Image) -> None:
    data, sizes = memoryview(golden.data), golden.geometry
    for record in golden.records():
        sector = data[record["offset"] : record["offset"] + sizes.sector_size]
        match record["type"]:
            case "delta_leader" | "paxos_leader":
                leader = Leader.unpack(sector)
                assert leader == leader_from(record)
                assert name_of(leader.space_name).decode() == record["space_name"]
                assert name_of(leader.resource_name).decode() == record["resource_name"]
                assert leader.computed_checksum == record["checksum_computed"]
                assert leader.free == (record["timestamp"] == 0)
                if record["type"] == "delta_leader":
                    assert record["offset"] == sizes.delta_offset(record["host_id"])
                    assert bitmap_hosts(sector) == record["bitmap_hosts"]
                    assert all(bitmap_has(sector, host_id) for host_id in record["bitmap_hosts"])
            case "request":
                request = Request.unpack(sector)
                request.verify("golden")
                assert (request.lver, request.force_mode) == (record["lver"], record["force_mode"])
            case "dblock":
                assert record["offset"] % sizes.align_size == sizes.block_offset(record["host_id"])
                block = Block.unpack(data, record["offset"])
                assert block == block_from(record)
                assert block.checksum_ok == record["checksum_ok"]
                if not block.unused:
                    assert block.computed_checksum == record["checksum_computed"]
            case "lvb":
                assert record["offset"] == sizes.lvb_offset
                assert bytes(sector).rstrip(b"\0").hex() == record["data_hex"].rstrip("0")
            case "rindex_header":
                header = IndexHeader.unpack(sector)
                header.verify("golden", record["lockspace_name"].encode(), record["rx_offset"])
                assert header.max_resources == header.entries == record["max_resources"]
                assert header.geometry == sizes
                assert (header.magic, header.version, header.flags) == (
                    record["magic"],
                    record["version"],
                    record["flags"],
                )
            case "rindex_entry":
                entry = IndexEntry.unpack(data, sizes.index_entry_offset(record["index"]))
                assert entry == IndexEntry.of(record["name"].encode(), record["res_offset"])
                assert not entry.free
                entry.verify("golden", golden.facts["base_offset"] + sizes.indexed_resource_offset(record["index"]))
            case other:
                pytest.fail(f"a record of unknown type {other}")


@every_image
def test_the_listed_records_and_nothing_else_give_the_image_byte_for_byte(golden: Image) -> None:
    data, sizes = golden.data, golden.geometry
    rebuilt = bytearray(len(data))
    for record in golden.records():
        start = record["offset"]
        sector = bytes(rebuilt[start : start + sizes.sector_size])
        match record["type"]:
            case "delta_leader":
                sector = leader_from(record).into(sector)
                sector = sector[:256] + bitmap_of(record["bitmap_hosts"]) + sector[512:]
            case "paxos_leader":
                sector = leader_from(record).into(sector)
            case "request":
                padding = Request.unpack(data[start : start + sizes.sector_size]).padding
                request = Request(lver=record["lver"], force_mode=record["force_mode"], padding=padding)
                sector = request.into(sector)
            case "dblock":
                sector = block_from(record).into(sector)
            case "lvb":
                sector = bytes.fromhex(record["data_hex"]).ljust(sizes.sector_size, b"\0")
            case "rindex_header":
                header = IndexHeader.unpack(data[start : start + sizes.sector_size])
                sector = header.pack().ljust(sizes.sector_size, b"\0")
            case "rindex_entry":
                start = sizes.index_entry_offset(record["index"])
                sector = IndexEntry.of(record["name"].encode(), record["res_offset"]).pack()
        rebuilt[start : start + len(sector)] = sector
    assert bytes(rebuilt) == data


@every_image
def test_records_sealed_anew_keep_the_reference_s_checksum(golden: Image) -> None:
    for record in golden.records():
        if record.get("checksum_ok") and record["type"] in ("delta_leader", "paxos_leader"):
            assert leader_from(record).sealed() == leader_from(record)
        elif record.get("checksum_ok") and not block_from(record).unused:
            assert block_from(record).sealed() == block_from(record)


@pytest.mark.parametrize("golden", lockspaces, ids=lambda golden: golden.name)
def test_a_lockspace_decodes_whole_as_it_does_slot_by_slot(golden: Image) -> None:
    sizes = golden.geometry
    rows = decode_lockspace(memoryview(golden.data), sizes)
    assert len(rows) == sizes.max_hosts
    records = golden.records("delta_leader")
    assert [record["host_id"] for record in records] == list(range(1, sizes.max_hosts + 1))
    for row, record in zip(rows, records, strict=True):
        assert {field: int(row[field]) for field in LEADER_FIELDS} == {field: record[field] for field in LEADER_FIELDS}
        assert name_of(bytes(row["space_name"])).decode() == record["space_name"]
        assert name_of(bytes(row["resource_name"])).decode() == record["resource_name"]
        assert row["checksum_ok"] == record["checksum_ok"]
        assert row["used"] == (record["owner_generation"] > 0)
    callers: dict[int, list[int]] = {}
    for record in records:
        for called in record["bitmap_hosts"]:
            callers.setdefault(called, []).append(record["host_id"])
    for host_id in {1, 2, 3, 5, sizes.max_hosts, *callers}:
        assert calling(golden.data, sizes, host_id).tolist() == callers.get(host_id, [])


@pytest.mark.parametrize("golden", resources, ids=lambda golden: golden.name)
def test_a_resource_s_used_blocks_are_found_among_all(golden: Image) -> None:
    sizes = golden.geometry
    records = golden.records("dblock")
    view = memoryview(golden.data)
    shared = [(record["host_id"], record["mode_generation"]) for record in records if record["mode_flags"]]
    assert shared_hosts(view, sizes, sizes.max_hosts) == shared
    damaged = [record["host_id"] for record in records if not record["checksum_ok"]]
    if damaged:
        with pytest.raises(BlockChecksumError) as caught:
            blocks(view, sizes, sizes.max_hosts, "golden")
        assert caught.value.host_id == damaged[0]
        return
    assert blocks(view, sizes, sizes.max_hosts, "golden") == [
        (record["host_id"], block_from(record)) for record in records
    ]


@pytest.mark.parametrize("golden", lockspaces + resources, ids=lambda golden: golden.name)
def test_leaders_are_believed_unless_the_reference_wrote_over_or_cleared_them(golden: Image) -> None:
    for record in golden.records():
        if record["type"] not in ("delta_leader", "paxos_leader"):
            continue
        leader = leader_from(record)
        lockspace, resource = leader.space_name, leader.resource_name

        def verify(leader: Leader = leader, lockspace: bytes = lockspace, resource: bytes = resource) -> None:
            if golden.kind == "lockspace":
                verify_delta(leader, "golden", lockspace)
            else:
                verify_paxos(leader, "golden", lockspace, resource, 1)

        if record["magic"] == CLEAR_MAGIC:
            with pytest.raises(LeaseCleared):
                verify()
        elif not record["checksum_ok"]:
            with pytest.raises(LeaderChecksumError):
                verify()
        else:
            verify()
            assert Geometry.from_leader(leader.sector_size, leader.flags) == golden.geometry


@pytest.mark.parametrize(
    "golden", [one for one in lockspaces if one.name.endswith(("fresh", "name48"))], ids=lambda one: one.name
)
def test_a_fresh_lockspace_is_laid_out_as_the_reference_does(golden: Image) -> None:
    record = golden.facts["records"][0]
    area, first = fresh_lockspace(record["space_name"].encode(), golden.geometry, record["io_timeout"])
    torn = Leader.unpack(area)
    assert torn.magic == 0 and torn.checksum == torn.computed_checksum
    assert first + area[len(first) :] == golden.data


@pytest.mark.parametrize(
    "golden",
    [one for one in resources if one.name.endswith(("fresh", "name48", "numhosts3", "clear"))],
    ids=lambda one: one.name,
)
def test_a_fresh_resource_is_laid_out_as_the_reference_does(golden: Image) -> None:
    record = golden.facts["records"][0]
    num_hosts = 0 if record["num_hosts"] == golden.geometry.max_hosts else record["num_hosts"]
    area = fresh_resource(
        record["space_name"].encode(),
        record["resource_name"].encode(),
        golden.geometry,
        num_hosts,
        record["write_timestamp"] if golden.name.endswith("clear") else None,
    )
    assert area == golden.data


@pytest.mark.parametrize("golden", [one for one in indexes if one.name.endswith("formatted")], ids=lambda one: one.name)
def test_a_fresh_index_is_laid_out_as_the_reference_does(golden: Image) -> None:
    record = golden.facts["records"][0]
    rx_offset = golden.facts["base_offset"]
    name = record["lockspace_name"].encode()
    area = fresh_index(name, golden.geometry, rx_offset, record["max_resources"])
    lease = bytearray(fresh_resource(name, INDEX_LEASE, golden.geometry))
    padding = slice(golden.geometry.request_offset + 20, golden.geometry.request_offset + 24)
    lease[padding] = golden.data[len(area) :][padding]  # the reference leaks memory content here
    assert (area + lease)[: len(golden.data)] == golden.data


def test_all_five_sizes_are_among_the_fresh_images() -> None:
    for kind in (lockspaces, resources):
        assert len({one.geometry for one in kind if one.name.endswith("fresh")}) == 5


def test_a_host_name_over_a_longer_one_keeps_the_old_tail() -> None:
    sector = image("ls_512_1m_hostid2_taken").data[512:1024]
    leader = Leader.unpack(sector)
    assert leader.resource_name.startswith(b"hostC\0with-a-long-name\0")
    assert name_of(leader.resource_name) == b"hostC"
    assert leader.into(bytes(512)) == sector


def test_a_dead_shared_holder_s_block_is_wiped_to_zeros() -> None:
    before, after = image("res_512_1m_sh_dead"), image("res_512_1m_sh_dead_cleared")
    offset = before.geometry.block_offset(2)
    assert Block.unpack(before.data, offset).shared
    assert Block.unpack(after.data, offset) == EMPTY_BLOCK
