"""Leader, block, request and bitmap: what they mean, what is refused and in which order, what is kept."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from paxos.checksum import crc
from paxos.errors import (
    BadRecord,
    HostIdInvalid,
    InvalidUse,
    LeaderChecksumError,
    LeaderFlagsError,
    LeaderMagicError,
    LeaderVersionError,
    LeaseCleared,
    LockspaceNameError,
    NumHostsError,
    RecordTooShort,
    RequestMagicError,
    RequestVersionError,
    ResourceNameError,
)
from paxos.geometry import MAX_HOSTS, Geometry, Place
from paxos.records import (
    CLEAR_MAGIC,
    DELTA_MAGIC,
    EMPTY_BLOCK,
    PAXOS_MAGIC,
    RELEASED,
    SHARED,
    SHORT_HOLD,
    Block,
    Leader,
    Request,
    bitmap_has,
    bitmap_hosts,
    bitmap_of,
    fresh_lockspace,
    fresh_resource,
    name_of,
    pack_name,
    replace_name,
    same_name,
    verify_delta,
    verify_header,
    verify_paxos,
)

SIZES = Geometry(512, 1 << 20)
PLACE = Place("/dev/shared", 1 << 20)
every_size = pytest.mark.parametrize("sizes", [Geometry(*pair) for pair in MAX_HOSTS], ids=str)


def delta(**fields: Any) -> Leader:
    return Leader.unpack(fresh_lockspace(b"LS", SIZES, 10)[1]).changed(**fields)


def paxos(**fields: Any) -> Leader:
    return Leader.unpack(fresh_resource(b"LS", b"vm1", SIZES, num_hosts=100)).changed(**fields)


def with_field(leader: Leader, field: str, value: Any) -> Leader:
    """`leader` with one other value, and otherwise, checksum included, as it was."""
    return replace(leader, **{field: value})


def expect_paxos(leader: Leader, error: type[BadRecord], code: int) -> None:
    with pytest.raises(error) as caught:
        verify_paxos(leader, PLACE, b"LS", b"vm1", 7)
    assert type(caught.value) is error and caught.value.code == code and caught.value.place == PLACE


def expect_delta(leader: Leader, error: type[BadRecord], code: int) -> None:
    with pytest.raises(error) as caught:
        verify_delta(leader, PLACE, b"LS")
    assert type(caught.value) is error and caught.value.code == code and caught.value.place == PLACE


class TestNames:
    def test_a_name_is_padded_with_nuls(self) -> None:
        assert pack_name(b"vm1") == b"vm1" + bytes(45)

    def test_a_name_of_48_bytes_has_no_nul(self) -> None:
        name = b"n" * 48
        assert pack_name(name) == name and name_of(name) == name

    @pytest.mark.parametrize("name", [b"", b"n" * 49, b"a\0b", b"a\0"])
    def test_what_is_no_name_is_refused(self, name: bytes) -> None:
        with pytest.raises(InvalidUse):
            pack_name(name)

    def test_what_follows_the_first_nul_means_nothing(self) -> None:
        assert name_of(b"hostC\0with-a-long-name".ljust(48, b"\0")) == b"hostC"
        assert same_name(b"hostC\0with-a-long-name".ljust(48, b"\0"), pack_name(b"hostC"))
        assert same_name(b"hostC", pack_name(b"hostC"))
        assert not same_name(pack_name(b"hostC"), pack_name(b"hostCC"))

    def test_comparing_ends_at_48_bytes(self) -> None:
        assert same_name(b"n" * 48, b"n" * 48 + b"more")
        assert not same_name(b"n" * 47, b"n" * 48)

    def test_a_shorter_name_over_a_longer_one_leaves_the_old_tail(self) -> None:
        old = pack_name(b"hostB-with-a-long-name")
        assert replace_name(old, b"hostC") == b"hostC\0with-a-long-name".ljust(48, b"\0")

    def test_a_name_as_long_as_the_field_replaces_all_of_it(self) -> None:
        assert replace_name(pack_name(b"old"), b"n" * 48) == b"n" * 48
        assert replace_name(b"o" * 48, b"n" * 47) == b"n" * 47 + b"\0"
        with pytest.raises(InvalidUse):
            replace_name(bytes(48), b"n" * 49)


class TestLeader:
    def test_it_is_200_bytes_of_which_168_are_covered(self) -> None:
        leader = delta(timestamp=7)
        assert len(leader.pack()) == 200
        assert leader.checksum == crc(leader.pack()[:168])
        assert struct.unpack_from("<I", leader.pack(), 168)[0] == leader.checksum

    @pytest.mark.parametrize("field", ["io_timeout", "write_id", "write_generation", "write_timestamp"])
    def test_some_fields_are_not_covered(self, field: str) -> None:
        assert delta(**{field: 9}).checksum == delta().checksum

    def test_changing_it_seals_it_and_packing_does_not(self) -> None:
        leader = delta().changed(owner_id=3)
        assert leader.checksum == leader.computed_checksum != delta().checksum
        damaged = Leader.unpack(bytes(40) + b"\xff" + delta().pack()[41:])
        assert Leader.unpack(damaged.pack()) == damaged != damaged.sealed()

    def test_into_a_sector_only_its_200_bytes_change(self) -> None:
        sector = bytes(range(256)) * 2
        written = delta().into(memoryview(sector))
        assert written[:200] == delta().pack() and written[200:] == sector[200:]

    def test_a_sector_of_its_own_is_zero_beyond_it(self) -> None:
        assert delta().sector(4096) == delta().pack() + bytes(3896)

    def test_only_the_timestamp_says_free(self) -> None:
        assert paxos(owner_id=3, owner_generation=2).free
        assert not paxos(timestamp=1).free

    @pytest.mark.parametrize("length", [0, 1, 199])
    def test_too_few_bytes_are_a_typed_error(self, length: int) -> None:
        with pytest.raises(RecordTooShort, match="takes 200 bytes, only"):
            Leader.unpack(bytes(length))
        with pytest.raises(BadRecord):
            delta().into(bytes(length))


class TestVerifyingADeltaLease:
    def test_a_good_one_passes(self) -> None:
        verify_delta(delta(), PLACE, b"LS")
        verify_delta(delta(), "somewhere", pack_name(b"LS"))

    def test_a_stale_tail_of_the_name_is_no_fault(self) -> None:
        verify_delta(delta(space_name=b"LS\0tail".ljust(48, b"\0")), PLACE, b"LS")

    def test_the_owner_need_not_be_the_slot(self) -> None:
        verify_delta(delta(owner_id=77), PLACE, b"LS")

    def test_faults_are_found_in_the_order_of_the_spec(self) -> None:
        leader = with_field(delta(), "checksum", 1)
        expect_delta(leader, LeaderChecksumError, -229)
        leader = with_field(leader, "space_name", pack_name(b"other"))
        expect_delta(leader, LockspaceNameError, -226)
        leader = with_field(leader, "version", 0x40004)
        expect_delta(leader, LeaderVersionError, -224)
        expect_delta(with_field(leader, "magic", PAXOS_MAGIC), LeaderMagicError, -223)

    def test_older_minor_versions_are_taken_and_newer_ones_left_alone(self) -> None:
        for minor in range(5):
            verify_delta(delta(version=0x30000 + minor), PLACE, b"LS")
        with pytest.raises(LeaderVersionError, match="0x30005"):
            verify_delta(delta(version=0x30005), PLACE, b"LS")

    @pytest.mark.parametrize("flag", [0x1, 0x2, 0x4, 0x8, 0x100, 0x80000000])
    def test_flags_we_do_not_know_are_rules_we_do_not_know(self, flag: int) -> None:
        with pytest.raises(LeaderFlagsError) as caught:
            verify_delta(delta(flags=0x10 | flag), PLACE, b"LS")
        assert caught.value.unknown == flag

    def test_damage_that_looks_like_a_newer_version_or_flag_is_called_damage(self) -> None:
        for fields in ({"version": 0x30005}, {"flags": 0x110}):
            damaged = with_field(delta(**fields), "checksum", delta().checksum)
            with pytest.raises(LeaderChecksumError):
                verify_delta(damaged, PLACE, b"LS")

    def test_a_cleared_resource_is_just_no_delta_lease(self) -> None:
        with pytest.raises(LeaderMagicError) as caught:
            verify_delta(delta(magic=CLEAR_MAGIC), PLACE, b"LS")
        assert not isinstance(caught.value, LeaseCleared)


class TestVerifyingAResourceLease:
    def test_a_good_one_passes(self) -> None:
        verify_paxos(paxos(), PLACE, b"LS", b"vm1", 100)
        verify_paxos(paxos(flags=0x10 | SHORT_HOLD), PLACE, b"LS", b"vm1", 1)

    def test_faults_are_found_in_the_order_of_the_spec(self) -> None:
        leader = with_field(paxos(), "checksum", 1)
        expect_paxos(leader, LeaderChecksumError, -229)
        leader = with_field(leader, "num_hosts", 6)
        expect_paxos(leader, NumHostsError, -228)
        leader = with_field(leader, "resource_name", pack_name(b"vm2"))
        expect_paxos(leader, ResourceNameError, -227)
        leader = with_field(leader, "space_name", pack_name(b"other"))
        expect_paxos(leader, LockspaceNameError, -226)
        leader = with_field(leader, "version", 0x50004)
        expect_paxos(leader, LeaderVersionError, -224)
        expect_paxos(with_field(leader, "magic", 0), LeaderMagicError, -223)
        expect_paxos(with_field(leader, "magic", CLEAR_MAGIC), LeaseCleared, -223)

    def test_num_hosts_counts_only_for_a_host(self) -> None:
        verify_paxos(paxos(num_hosts=0), PLACE, b"LS", b"vm1", None)
        with pytest.raises(NumHostsError, match="laid out for 0 hosts, this host has id 1"):
            verify_paxos(paxos(num_hosts=0), PLACE, b"LS", b"vm1", 1)

    @pytest.mark.parametrize("flag", [0x2, 0x4, 0x8, 0x100])
    def test_flags_we_do_not_know_are_rules_we_do_not_know(self, flag: int) -> None:
        expect_paxos(paxos(flags=0x11 | flag), LeaderFlagsError, -224)

    def test_newer_minor_versions_are_left_alone(self) -> None:
        verify_paxos(paxos(version=0x60001), PLACE, b"LS", b"vm1", 7)
        expect_paxos(paxos(version=0x60005), LeaderVersionError, -224)

    def test_the_message_says_where_and_what(self) -> None:
        with pytest.raises(BadRecord) as caught:
            verify_paxos(paxos(), PLACE, b"LS", b"vm2", 7)
        assert str(caught.value) == "/dev/shared:1048576: resource lease is for vm1, not vm2"


class TestProbing:
    def test_only_kind_and_version_count(self) -> None:
        verify_header(with_field(delta(), "checksum", 1), PLACE, DELTA_MAGIC, "lockspace")
        verify_header(with_field(paxos(), "space_name", bytes(48)), PLACE, PAXOS_MAGIC, "resource lease")

    def test_another_kind_or_version_is_refused(self) -> None:
        with pytest.raises(LeaderMagicError, match="no lockspace here"):
            verify_header(paxos(), PLACE, DELTA_MAGIC, "lockspace")
        with pytest.raises(LeaderMagicError):
            verify_header(Leader.unpack(bytes(512)), PLACE, DELTA_MAGIC, "lockspace")
        with pytest.raises(LeaseCleared):
            verify_header(paxos(magic=CLEAR_MAGIC), PLACE, PAXOS_MAGIC, "resource lease")
        for version in (0x20004, 0x30005, 0xFFFFFFFF):
            with pytest.raises(LeaderVersionError):
                verify_header(delta(version=version), PLACE, DELTA_MAGIC, "lockspace")


class TestBlock:
    def test_it_covers_two_pieces_of_its_sector_and_leaves_the_rest(self) -> None:
        block = Block(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
        sector = bytes([0xAA]) * 512
        written = block.into(memoryview(sector))
        assert written[:56] == struct.pack("<6Q2I", 1, 2, 3, 4, 5, 6, 7, 8)
        assert written[128:144] == struct.pack("<2IQ", 9, 10, 11)
        assert written[56:128] == sector[56:128] and written[144:] == sector[144:]
        assert Block.unpack(bytes(1024) + written, 1024) == block

    def test_a_sector_of_its_own_is_zero_beyond_it(self) -> None:
        sector = EMPTY_BLOCK.changed(mbal=1, lver=1).sector(4096)
        assert len(sector) == 4096 and not any(sector[56:])

    def test_flags_and_mode_are_not_covered(self) -> None:
        block = EMPTY_BLOCK.changed(mbal=5, lver=2)
        marked = block.changed(flags=RELEASED, mode_flags=SHARED, mode_generation=3)
        assert marked.checksum == block.checksum == crc(block.sector(512)[:48])
        assert marked.released and marked.shared and not block.released and not block.shared

    def test_changing_it_writes_zeros_where_bytes_are_undefined(self) -> None:
        assert Block(mode_padding=0xDEAD).changed(mbal=1).mode_padding == 0
        assert Block(mode_padding=0xDEAD).sealed().mode_padding == 0xDEAD

    def test_a_block_never_used_needs_no_checksum(self) -> None:
        assert EMPTY_BLOCK.unused and EMPTY_BLOCK.checksum_ok and not EMPTY_BLOCK.erased
        assert EMPTY_BLOCK.sector(512) == bytes(512)
        assert Block(flags=RELEASED, mode_flags=SHARED, mode_generation=1).checksum_ok

    @pytest.mark.parametrize("field", ["mbal", "bal", "inp", "inp2", "inp3", "lver", "checksum"])
    def test_any_damage_to_what_is_covered_shows(self, field: str) -> None:
        block = Block(1, 1, 1, 1, 99, 1).sealed()
        values = {"mbal": 1, "bal": 1, "inp": 1, "inp2": 1, "inp3": 99, "lver": 1, "checksum": block.checksum}
        assert block.checksum_ok
        assert not Block(**{**values, field: values[field] ^ 0x40}).checksum_ok

    def test_a_failed_acquire_of_the_reference_is_known_by_its_zeros(self) -> None:
        erased = EMPTY_BLOCK.changed(flags=RELEASED)
        assert erased.erased and not erased.unused and erased.checksum_ok
        assert erased.checksum == crc(bytes(48))
        assert not EMPTY_BLOCK.changed().erased
        assert not EMPTY_BLOCK.changed(flags=RELEASED, mbal=1).erased

    def test_a_value_is_accepted_with_ballot_and_owner(self) -> None:
        assert Block(mbal=3, bal=3, inp=1, inp2=2, inp3=44).accepted
        assert Block(inp=1, inp2=2, inp3=44).value == (1, 2, 44)
        assert not Block(mbal=3, inp=1).accepted and not Block(mbal=3, bal=3).accepted

    @pytest.mark.parametrize(("length", "offset"), [(0, 0), (143, 0), (512, 400), (512, 10**9)])
    def test_too_few_bytes_are_a_typed_error(self, length: int, offset: int) -> None:
        with pytest.raises(RecordTooShort):
            Block.unpack(bytes(length), offset)


class TestRequest:
    def test_a_new_one_asks_for_nothing(self) -> None:
        request = Request()
        request.verify(PLACE)
        assert request.sector(512) == struct.pack("<IIQII", 0x08292011, 0x10001, 0, 0, 0) + bytes(488)

    def test_undefined_bytes_are_kept_and_mean_nothing(self) -> None:
        sector = bytes([0x55]) * 512
        assert Request.unpack(Request(lver=4, padding=9).into(sector)) == Request(lver=4, padding=9)
        assert Request(lver=4).into(sector)[24:] == sector[24:]

    def test_another_minor_version_is_taken(self) -> None:
        Request(version=0x1FFFF).verify(PLACE)

    @pytest.mark.parametrize(
        ("request_", "error", "code"),
        [
            (Request(magic=1), RequestMagicError, -270),
            (Request(magic=1, version=0), RequestMagicError, -270),
            (Request(version=0x20001), RequestVersionError, -271),
        ],
    )
    def test_what_is_none_is_refused(self, request_: Request, error: type[BadRecord], code: int) -> None:
        with pytest.raises(error) as caught:
            request_.verify(PLACE)
        assert caught.value.code == code

    def test_too_few_bytes_are_a_typed_error(self) -> None:
        with pytest.raises(RecordTooShort):
            Request.unpack(bytes(23))


class TestHostBitmap:
    def test_lowest_bit_first(self) -> None:
        bitmap = bitmap_of([1, 8, 9, 2000])
        assert len(bitmap) == 256
        assert bitmap[0] == 0x81 and bitmap[1] == 0x01 and bitmap[249] == 0x80
        assert bitmap_hosts(bytes(256) + bitmap) == [1, 8, 9, 2000]

    def test_nobody_called(self) -> None:
        assert bitmap_of([]) == bytes(256) and bitmap_hosts(bytes(512)) == []

    def test_one_host_s_bit(self) -> None:
        sector = memoryview(bytes(256) + bitmap_of([1999]) + bytes(3584))
        assert [host_id for host_id in range(1, 2001) if bitmap_has(sector, host_id)] == [1999]

    def test_bits_of_no_possible_host_are_ignored(self) -> None:
        assert bitmap_hosts(bytes(256) + b"\xff" * 256) == list(range(1, 2001))

    @pytest.mark.parametrize("host_id", [-1, 0, 2001])
    def test_no_bit_for_no_host(self, host_id: int) -> None:
        with pytest.raises(HostIdInvalid):
            bitmap_of([host_id])
        with pytest.raises(HostIdInvalid):
            bitmap_has(bytes(512), host_id)

    def test_too_few_bytes_are_a_typed_error(self) -> None:
        with pytest.raises(RecordTooShort):
            bitmap_hosts(bytes(511))
        with pytest.raises(RecordTooShort):
            bitmap_has(bytes(511), 1)


class TestFreshAreas:
    @every_size
    def test_a_torn_lockspace_is_no_lockspace(self, sizes: Geometry) -> None:
        area, first = fresh_lockspace(b"LS", sizes, 5)
        assert len(area) == sizes.align_size and len(first) == sizes.sector_size
        with pytest.raises(LeaderMagicError):
            verify_delta(Leader.unpack(area), PLACE, b"LS")
        verify_delta(Leader.unpack(first), PLACE, b"LS")
        last = Leader.unpack(area[sizes.delta_offset(sizes.max_hosts) :])
        assert last == Leader.unpack(first) and last.io_timeout == 5
        assert not any(area[sizes.max_hosts * sizes.sector_size :])

    @every_size
    def test_a_fresh_resource_is_free_for_every_host(self, sizes: Geometry) -> None:
        area = fresh_resource(b"LS", b"vm1", sizes)
        leader = Leader.unpack(area)
        assert len(area) == sizes.align_size and leader.free
        verify_paxos(leader, PLACE, b"LS", b"vm1", sizes.max_hosts)
        assert Geometry.from_leader(leader.sector_size, leader.flags) == sizes

    @pytest.mark.parametrize(("asked", "given"), [(0, 2000), (1, 1), (2000, 2000), (2001, 2000)])
    def test_num_hosts_is_what_fits(self, asked: int, given: int) -> None:
        assert Leader.unpack(fresh_resource(b"LS", b"vm1", SIZES, asked)).num_hosts == given

    def test_a_deleted_lease_says_when(self) -> None:
        leader = Leader.unpack(fresh_resource(b"LS", b"vm1", SIZES, cleared_at=1234))
        assert leader.magic == CLEAR_MAGIC and leader.write_timestamp == 1234
        assert leader.checksum == leader.computed_checksum

    def test_no_io_timeout_means_the_default(self) -> None:
        assert Leader.unpack(fresh_lockspace(b"LS", SIZES, 0)[1]).io_timeout == 10

    @pytest.mark.parametrize("io_timeout", [-1, 256, 70000])
    def test_an_io_timeout_the_format_cannot_keep_is_refused(self, io_timeout: int) -> None:
        with pytest.raises(InvalidUse):
            fresh_lockspace(b"LS", SIZES, io_timeout)

    def test_what_is_no_name_is_refused(self) -> None:
        for lockspace, resource in ((b"", b"vm1"), (b"LS", b""), (b"n" * 49, b"vm1")):
            with pytest.raises(InvalidUse):
                fresh_resource(lockspace, resource, SIZES)
        with pytest.raises(InvalidUse):
            fresh_resource(b"LS", b"vm1", SIZES, num_hosts=-1)
