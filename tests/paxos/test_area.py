"""Whole areas: the same answers as slot by slot, for every size, bounded by what was read."""

from __future__ import annotations

import pytest

from paxos.area import belonging, blocks, calling, decode_lockspace, shared_hosts
from paxos.errors import BlockChecksumError, BlockMisplaced, HostIdInvalid
from paxos.geometry import MAX_HOSTS, Geometry, Place
from paxos.records import (
    EMPTY_BLOCK,
    RELEASED,
    SHARED,
    Block,
    Leader,
    bitmap_of,
    fresh_lockspace,
    fresh_resource,
    pack_name,
    replace_name,
)

SIZES = Geometry(512, 1 << 20)
PLACE = Place("/dev/shared", 1 << 20)
every_size = pytest.mark.parametrize("sizes", [Geometry(*pair) for pair in MAX_HOSTS], ids=str)


def lockspace(sizes: Geometry, hosts: dict[int, Leader] | None = None) -> bytearray:
    area, first = fresh_lockspace(b"LS", sizes, 10)
    image = bytearray(first + area[len(first) :])
    for host_id, leader in (hosts or {}).items():
        put(image, sizes.delta_offset(host_id), leader.sector(sizes.sector_size))
    return image


def joined(sizes: Geometry, host_id: int, timestamp: int = 100) -> Leader:
    fresh = Leader.unpack(fresh_lockspace(b"LS", sizes, 10)[1])
    name = pack_name(b"host-%d" % host_id)
    return fresh.changed(owner_id=host_id, owner_generation=1, timestamp=timestamp, resource_name=name)


def resource(sizes: Geometry, hosts: dict[int, Block]) -> bytearray:
    image = bytearray(fresh_resource(b"LS", b"vm1", sizes))
    for host_id, block in hosts.items():
        put(image, sizes.block_offset(host_id), block.sector(sizes.sector_size))
    return image


def put(image: bytearray, offset: int, data: bytes) -> None:
    image[offset : offset + len(data)] = data


def voting(mbal: int) -> Block:
    return EMPTY_BLOCK.changed(mbal=mbal, lver=1)


class TestALockspace:
    @every_size
    def test_one_row_for_each_host(self, sizes: Geometry) -> None:
        last = sizes.max_hosts
        rows = decode_lockspace(lockspace(sizes, {2: joined(sizes, 2), last: joined(sizes, last)}), sizes)
        assert len(rows) == last
        assert [int(row) + 1 for row in rows["used"].nonzero()[0]] == [2, last]
        assert rows[last - 1]["resource_name"] == b"host-%d" % last
        assert int(rows[1]["timestamp"]) == 100 and int(rows[1]["io_timeout"]) == 10
        assert rows["checksum_ok"].all()

    def test_rows_outlive_the_buffer_they_were_read_from(self) -> None:
        image = lockspace(SIZES, {1: joined(SIZES, 1)})
        rows = decode_lockspace(image, SIZES)
        image[:] = bytes(len(image))
        assert int(rows[0]["owner_id"]) == 1

    @pytest.mark.parametrize("host_id", [1, 5, 1999, 2000])
    def test_damage_shows_in_its_own_row_only(self, host_id: int) -> None:
        image = lockspace(SIZES, {7: joined(SIZES, 7)})
        image[SIZES.delta_offset(host_id) + 45] ^= 0x01
        ok = decode_lockspace(image, SIZES)["checksum_ok"]
        assert [int(row) + 1 for row in (~ok).nonzero()[0]] == [host_id]

    def test_the_same_damage_everywhere_is_damage_everywhere(self) -> None:
        image = lockspace(SIZES)
        for host_id in range(1, 2001):
            image[SIZES.delta_offset(host_id) + 45] ^= 0x01
        assert not decode_lockspace(image, SIZES)["checksum_ok"].any()

    def test_an_unsealed_stored_checksum_is_damage_too(self) -> None:
        image = lockspace(SIZES)
        image[SIZES.delta_offset(3) + 168] ^= 0x80
        assert not decode_lockspace(image, SIZES)["checksum_ok"][2]

    def test_all_slots_in_use(self) -> None:
        hosts = {host_id: joined(SIZES, host_id) for host_id in range(1, 2001)}
        rows = decode_lockspace(lockspace(SIZES, hosts), SIZES)
        assert rows["used"].all() and rows["checksum_ok"].all()
        assert rows["owner_id"].tolist() == list(range(1, 2001))

    def test_a_slot_that_was_left_counts_as_used(self) -> None:
        rows = decode_lockspace(lockspace(SIZES, {4: joined(SIZES, 4, timestamp=0)}), SIZES)
        assert rows[3]["used"]

    @pytest.mark.parametrize(("length", "slots"), [(0, 0), (511, 0), (512, 1), (1600, 3), (1 << 20, 2000)])
    def test_no_more_slots_than_were_read(self, length: int, slots: int) -> None:
        view = memoryview(lockspace(SIZES))[:length]
        assert len(decode_lockspace(view, SIZES)) == slots
        assert calling(view, SIZES, 1).tolist() == []


class TestBelonging:
    def test_by_magic_and_name(self) -> None:
        strange = joined(SIZES, 2).changed(space_name=pack_name(b"LS2"))
        other = joined(SIZES, 3).changed(magic=1)
        rows = decode_lockspace(lockspace(SIZES, {2: strange, 3: other}), SIZES)
        assert [int(row) + 1 for row in (~belonging(rows, b"LS")).nonzero()[0]] == [2, 3]
        assert (belonging(rows, b"LS2").nonzero()[0] + 1).tolist() == [2]

    def test_what_follows_the_name_s_nul_means_nothing(self) -> None:
        tailed = joined(SIZES, 2).changed(space_name=replace_name(b"x" * 48, b"LS"))
        assert belonging(decode_lockspace(lockspace(SIZES, {2: tailed}), SIZES), b"LS").all()

    def test_a_name_of_48_bytes(self) -> None:
        long = joined(SIZES, 2).changed(space_name=b"n" * 48)
        rows = decode_lockspace(lockspace(SIZES, {2: long}), SIZES)
        assert (belonging(rows, b"n" * 48).nonzero()[0] + 1).tolist() == [2]
        assert not belonging(rows, b"n" * 47).any()

    def test_no_rows(self) -> None:
        assert belonging(decode_lockspace(b"", SIZES), b"LS").tolist() == []


class TestCalling:
    @every_size
    def test_whose_bitmap_has_the_bit(self, sizes: Geometry) -> None:
        image = lockspace(sizes)
        last = sizes.max_hosts
        put(image, sizes.delta_offset(3) + 256, bitmap_of([1, 9, last]))
        put(image, sizes.delta_offset(last) + 256, bitmap_of([9]))
        assert calling(image, sizes, 9).tolist() == [3, last]
        assert calling(image, sizes, 1).tolist() == calling(image, sizes, last).tolist() == [3]
        assert calling(image, sizes, 2).tolist() == []

    def test_only_hosts_that_can_be(self) -> None:
        sizes = Geometry(4096, 1 << 20)
        for host_id in (0, 251):
            with pytest.raises(HostIdInvalid):
                calling(lockspace(sizes), sizes, host_id)


class TestBlocks:
    @every_size
    def test_used_ones_with_their_host_ids(self, sizes: Geometry) -> None:
        last = sizes.max_hosts
        used = {1: voting(1), 77: voting(77), last: voting(last)}
        image = resource(sizes, used)
        assert blocks(memoryview(image), sizes, last, PLACE) == list(used.items())
        assert blocks(image, sizes, last - 1, PLACE) == [(1, voting(1)), (77, voting(77))]
        assert blocks(image, sizes, 0, PLACE) == []

    def test_many_used_ones(self) -> None:
        used = {host_id: voting(host_id) for host_id in range(1, 2001)}
        assert blocks(resource(SIZES, used), SIZES, 2000, PLACE) == list(used.items())

    @pytest.mark.parametrize("offset", [*range(0, 56, 5), 55])
    def test_any_byte_of_a_dblock_makes_it_used(self, offset: int) -> None:
        image = resource(SIZES, {})
        image[SIZES.block_offset(9) + offset] = 0x80
        flags_only = offset >= 52
        # inp2 and inp3 alone do not make a block used by the format: it passes without a checksum
        values_only = 24 <= offset < 40
        if flags_only or values_only:
            assert [host_id for host_id, _ in blocks(image, SIZES, 2000, PLACE)] == [9]
        else:
            with pytest.raises(BlockChecksumError) as caught:
                blocks(image, SIZES, 2000, PLACE)
            assert caught.value.host_id == 9 and caught.value.place == PLACE

    def test_a_mode_block_alone_makes_it_used(self) -> None:
        block = Block(mode_flags=SHARED, mode_generation=1)
        assert blocks(resource(SIZES, {5: block}), SIZES, 2000, PLACE) == [(5, block)]
        padded = Block(mode_padding=1)
        assert blocks(resource(SIZES, {5: padded}), SIZES, 2000, PLACE) == [(5, padded)]

    def test_garbage_beside_the_two_records_is_ignored(self) -> None:
        image = resource(SIZES, {})
        put(image, SIZES.block_offset(5) + 56, bytes([0xFF]) * 72)
        put(image, SIZES.block_offset(5) + 144, bytes([0xFF]) * 368)
        assert blocks(image, SIZES, 2000, PLACE) == []

    @pytest.mark.parametrize("others", [0, 200])
    def test_the_first_damaged_one_is_named(self, others: int) -> None:
        used = {host_id: voting(host_id) for host_id in range(300, 300 + others)}
        image = resource(SIZES, {**used, 200: voting(3), 1000: voting(4)})
        for host_id in (200, 1000):
            image[SIZES.block_offset(host_id)] ^= 0x10
        with pytest.raises(BlockChecksumError, match="the block of host 200 is damaged") as caught:
            blocks(image, SIZES, 2000, "vm1")
        assert caught.value.host_id == 200

    def test_erased_and_wiped_blocks_pass_among_many(self) -> None:
        used = {host_id: voting(host_id) for host_id in range(1, 200)}
        used[50] = EMPTY_BLOCK.changed(flags=RELEASED)
        used[60] = Block(flags=RELEASED)
        assert blocks(resource(SIZES, used), SIZES, 2000, PLACE) == list(used.items())

    def test_no_more_hosts_than_the_area_has_whatever_num_hosts_claims(self) -> None:
        # sector 2002 is the LVB: it would be the block of host 2001
        image = resource(SIZES, {2000: voting(2000)})
        put(image, SIZES.lvb_offset, b"opaque data of the caller")
        assert [host_id for host_id, _ in blocks(image, SIZES, 2**64 - 1, PLACE)] == [2000]

    def test_a_block_with_another_hosts_ballot_number_went_astray(self) -> None:
        image = resource(SIZES, {3: voting(2)})
        with pytest.raises(BlockMisplaced) as refused:
            blocks(image, SIZES, 2000, PLACE)
        assert refused.value.host_id == 3
        assert refused.value.code == -214

    def test_no_more_hosts_than_were_read(self) -> None:
        image = resource(SIZES, {1: voting(1), 2: voting(2), 3: voting(3)})
        for sectors, seen in ((0, []), (1, []), (2, []), (3, [1]), (4, [1, 2])):
            view = memoryview(image)[: sectors * 512 + 100]
            assert [host_id for host_id, _ in blocks(view, SIZES, 2000, PLACE)] == seen


class TestSharedHosts:
    @every_size
    def test_hosts_and_their_generations(self, sizes: Geometry) -> None:
        last = sizes.max_hosts
        held = EMPTY_BLOCK.changed(mbal=3, lver=1, flags=RELEASED, mode_flags=SHARED)
        image = resource(
            sizes,
            {
                1: held.changed(mode_generation=4),
                2: held.changed(mode_flags=0, mode_generation=9),
                last: held.changed(mode_generation=2**63),
            },
        )
        assert shared_hosts(image, sizes, last) == [(1, 4), (last, 2**63)]
        assert shared_hosts(image, sizes, 1) == [(1, 4)]
        assert shared_hosts(b"", sizes, 2000) == []
