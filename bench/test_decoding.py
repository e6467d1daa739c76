"""What decoding costs: checksums one by one and 2000 at once, whole areas, single records.

All of it on memory that is in the cache, as it is right after a read. Run with `pytest bench/test_decoding.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from paxos.area import belonging, blocks, calling, decode_lockspace, shared_hosts
from paxos.checksum import crc, crc_rows
from paxos.geometry import MAX_HOSTS, Geometry
from paxos.records import (
    EMPTY_BLOCK,
    SHARED,
    Block,
    Leader,
    fresh_lockspace,
    fresh_resource,
    pack_name,
    verify_delta,
    verify_paxos,
)

SIZES = Geometry(512, 1 << 20)


def resource(sizes: Geometry, host_ids: list[int]) -> memoryview:
    """A resource area in which these hosts have taken part in ballots, and hold it shared."""
    image = bytearray(fresh_resource(b"LS", b"vm1", sizes))
    for host_id in host_ids:
        block = EMPTY_BLOCK.changed(mbal=host_id, lver=1, mode_flags=SHARED, mode_generation=1)
        offset = sizes.block_offset(host_id)
        image[offset : offset + sizes.sector_size] = block.sector(sizes.sector_size)
    return memoryview(image)


def lockspace(sizes: Geometry, host_ids: list[int]) -> memoryview:
    """A lockspace area that these hosts have joined."""
    area, first = fresh_lockspace(b"LS", sizes, 10)
    image = bytearray(first + area[len(first) :])
    for host_id in host_ids:
        leader = Leader.unpack(first).changed(
            owner_id=host_id, owner_generation=1, timestamp=1000, resource_name=pack_name(b"host")
        )
        offset = sizes.delta_offset(host_id)
        image[offset : offset + sizes.sector_size] = leader.into(first)
    return memoryview(image)


@pytest.mark.parametrize("length", [48, 168])
def test_checksum_of_one_record(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark(crc, bytes(range(length)))


@pytest.mark.parametrize("length", [48, 168])
def test_checksums_of_2000_records(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark(crc_rows, np.random.default_rng(0).integers(0, 256, (2000, length), np.uint8))


@pytest.mark.parametrize("used", [0, 3, 30, 2000])
def test_used_blocks_of_an_area(benchmark: BenchmarkFixture, used: int) -> None:
    view = resource(SIZES, list(range(1, used + 1)))
    assert len(benchmark(blocks, view, SIZES, 2000, "disk")) == used


@pytest.mark.parametrize("pair", list(MAX_HOSTS), ids=lambda pair: f"{pair[0]}-{pair[1] >> 20}M")
def test_used_blocks_of_every_size(benchmark: BenchmarkFixture, pair: tuple[int, int]) -> None:
    sizes = Geometry(*pair)
    view = resource(sizes, [1, 2, sizes.max_hosts])
    assert len(benchmark(blocks, view, sizes, sizes.max_hosts, "disk")) == 3


def test_used_blocks_of_three_host_slots(benchmark: BenchmarkFixture) -> None:
    view = resource(SIZES, [1, 2, 3])[: SIZES.ballot_length(3)]
    assert len(benchmark(blocks, view, SIZES, 3, "disk")) == 3


def test_shared_hosts_of_an_area(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(shared_hosts, resource(SIZES, [1, 2, 3]), SIZES, 2000)) == 3


@pytest.mark.parametrize("used", [3, 200, 2000])
def test_a_whole_lockspace(benchmark: BenchmarkFixture, used: int) -> None:
    view = lockspace(SIZES, list(range(1, used + 1)))
    assert int(benchmark(decode_lockspace, view, SIZES)["used"].sum()) == used


def test_which_slots_belong_to_the_lockspace(benchmark: BenchmarkFixture) -> None:
    rows = decode_lockspace(lockspace(SIZES, [1, 2, 3]), SIZES)
    assert benchmark(belonging, rows, b"LS").all()


def test_who_calls_a_host(benchmark: BenchmarkFixture) -> None:
    benchmark(calling, lockspace(SIZES, [1, 2, 3]), SIZES, 3)


def _verified_delta(sector: memoryview) -> Leader:
    leader = Leader.unpack(sector)
    verify_delta(leader, "disk", b"LS")
    return leader


def _verified_paxos(sector: memoryview) -> Leader:
    leader = Leader.unpack(sector)
    verify_paxos(leader, "disk", b"LS", b"vm1", 7)
    return leader


def _renewed(sector: memoryview) -> bytes:
    return Leader.unpack(sector).changed(timestamp=1001).into(sector)


@pytest.mark.parametrize(
    ("work", "sector"),
    [
        (_verified_delta, lockspace(SIZES, [1])[:512]),
        (_verified_paxos, resource(SIZES, [1])[:512]),
        (_renewed, lockspace(SIZES, [1])[:512]),
        (Block.unpack, resource(SIZES, [1])[1024:1536]),
    ],
    ids=["delta-read", "leader-read", "delta-renewal", "block-read"],
)
def test_one_record(benchmark: BenchmarkFixture, work: Callable[[memoryview], object], sector: memoryview) -> None:
    benchmark(work, sector)
