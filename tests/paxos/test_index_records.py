"""The resource index's header and entries: what is refused, what is free, what a fresh one looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from paxos.errors import (
    BadRecord,
    IndexLockspaceError,
    IndexMagicError,
    IndexOffsetError,
    IndexVersionError,
    InvalidUse,
    RecordTooShort,
    SizesInvalid,
)
from paxos.geometry import MAX_HOSTS, Geometry
from paxos.index_records import FREE_ENTRY, IndexEntry, IndexHeader, fresh_index

MIB = 1 << 20
SIZES = Geometry(512, MIB)
HEADER = IndexHeader.unpack(fresh_index(b"RX", SIZES, MIB))
every_size = pytest.mark.parametrize("sizes", [Geometry(*pair) for pair in MAX_HOSTS], ids=str)


class TestHeader:
    @every_size
    def test_a_fresh_one_is_good_and_states_its_sizes(self, sizes: Geometry) -> None:
        area = fresh_index(b"RX", sizes, 8 * MIB)
        header = IndexHeader.unpack(area)
        header.verify("disk", b"RX", 8 * MIB)
        assert header.geometry == sizes and header.entries == 4096
        assert len(area) == sizes.align_size and not any(area[80:])
        assert header.pack() == area[:80]

    def test_faults_are_found_in_the_order_of_the_spec(self) -> None:
        faults: list[tuple[dict[str, Any], type[BadRecord], int]] = [
            ({"rx_offset": 0}, IndexOffsetError, -277),
            ({"lockspace_name": b"other".ljust(48, b"\0")}, IndexLockspaceError, -276),
            ({"version": 0x20002}, IndexVersionError, -275),
            ({"magic": 1}, IndexMagicError, -274),
        ]
        header = HEADER
        for fields, error, code in faults:
            header = replace(header, **fields)
            with pytest.raises(error) as caught:
                header.verify("disk", b"RX", MIB)
            assert caught.value.code == code

    def test_older_and_newer_minor_versions_are_taken(self) -> None:
        for version in (0x10000, 0x10001, 0x10009):
            replace(HEADER, version=version).verify("disk", b"RX", MIB)

    @pytest.mark.parametrize(
        ("flags", "sector_size", "align_size"),
        [(0, 512, MIB), (0, 4096, 8 * MIB), (0x3, 4096, MIB), (0xC, 4096, 4 * MIB), (0x10, 512, MIB)],
    )
    def test_sizes_from_flags(self, flags: int, sector_size: int, align_size: int) -> None:
        header = replace(HEADER, flags=flags, sector_size=sector_size)
        assert header.geometry == Geometry(sector_size, align_size)

    @pytest.mark.parametrize(("flags", "sector_size"), [(0x8, 512), (0, 0), (0x1, 1024), (0, 2**32 - 1)])
    def test_sizes_that_are_none(self, flags: int, sector_size: int) -> None:
        header = replace(HEADER, flags=flags, sector_size=sector_size)
        with pytest.raises(SizesInvalid):
            _ = header.geometry
        with pytest.raises(SizesInvalid):
            _ = header.entries

    @pytest.mark.parametrize(("stated", "usable"), [(0, 16000), (7, 7), (16001, 16000), (2**32 - 1, 16000)])
    def test_never_more_entries_than_an_index_has(self, stated: int, usable: int) -> None:
        assert replace(HEADER, max_resources=stated).entries == usable

    @pytest.mark.parametrize(("asked", "given"), [(0, 4096), (5, 5), (20000, 16000)])
    def test_a_fresh_one_has_as_many_entries_as_asked_and_fit(self, asked: int, given: int) -> None:
        assert IndexHeader.unpack(fresh_index(b"RX", SIZES, MIB, asked)).max_resources == given

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(InvalidUse):
            fresh_index(b"", SIZES, MIB)
        with pytest.raises(InvalidUse):
            fresh_index(b"RX", SIZES, MIB, -1)
        with pytest.raises(RecordTooShort):
            IndexHeader.unpack(bytes(79))


class TestEntry:
    def test_it_names_a_resource_and_its_place(self) -> None:
        entry = IndexEntry.of(b"vm1", 3 * MIB)
        assert len(entry.pack()) == 64 and not entry.free
        assert IndexEntry.unpack(bytes(640) + entry.pack(), 640) == entry
        entry.verify("disk", 3 * MIB)

    def test_free_means_no_offset_and_no_name(self) -> None:
        assert FREE_ENTRY.free and FREE_ENTRY.pack() == bytes(64)
        assert IndexEntry.unpack(bytes(17) + b"stale tail".ljust(47, b"\0")).free
        assert not replace(FREE_ENTRY, res_offset=MIB).free
        assert not replace(FREE_ENTRY, name=b"vm1".ljust(48, b"\0")).free
        FREE_ENTRY.verify("disk", 3 * MIB)

    def test_another_place_than_its_position_gives_is_refused(self) -> None:
        with pytest.raises(IndexOffsetError) as caught:
            IndexEntry.of(b"vm1", 3 * MIB).verify("disk", 4 * MIB)
        assert caught.value.code == -277 and caught.value.offset == 3 * MIB

    @pytest.mark.parametrize(("length", "offset"), [(63, 0), (128, 65)])
    def test_too_few_bytes_are_a_typed_error(self, length: int, offset: int) -> None:
        with pytest.raises(RecordTooShort):
            IndexEntry.unpack(bytes(length), offset)
