"""The records of a resource index on disk: its header and its entries, as frozen dataclasses (ondisk.md 2.7).

The index ("rindex") names the resource leases of a volume. Entry N stands for the area at a place fixed by N,
so what it stores besides the name only confirms that place. Nothing here has a checksum.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from paxos.errors import (
    IndexLockspaceError,
    IndexMagicError,
    IndexOffsetError,
    IndexVersionError,
    InvalidUse,
)
from paxos.fields import NAME_LENGTH, Bytes, name_of, need, pack_name, same_major, same_name
from paxos.geometry import DEFAULT_ALIGN, MIB, Geometry, Place

INDEX_MAGIC: Final = 0x01042018
INDEX_VERSION: Final = 0x00010002
#: entries of an index when the caller names no number
DEFAULT_RESOURCES: Final = 4096
#: the lease in the area after the index, which guards changes of the index
INDEX_LEASE: Final = b"rindex_lease"

HEADER_LENGTH: Final = 80
ENTRY_LENGTH: Final = 64
#: align size in bytes -> flag bit in the header; other bits than a leader record has
_ALIGN_FLAGS = {1 * MIB: 0x1, 2 * MIB: 0x2, 4 * MIB: 0x4, 8 * MIB: 0x8}

_HEADER = struct.Struct("<IIIIIIQ48s")
_ENTRY = struct.Struct("<QII48s")
assert _HEADER.size == HEADER_LENGTH and _ENTRY.size == ENTRY_LENGTH


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """The first 80 bytes of an index area. `rx_offset`: the disk offset, in bytes, of this very header."""

    magic: int
    version: int
    flags: int
    sector_size: int
    max_resources: int
    unused: int
    rx_offset: int
    lockspace_name: bytes

    @classmethod
    def unpack(cls, sector: Bytes) -> IndexHeader:
        """Decode without judging. Raises RecordTooShort."""
        need(sector, HEADER_LENGTH, "resource index header")
        return cls(*_HEADER.unpack_from(sector))

    def pack(self) -> bytes:
        """The 80 bytes."""
        return _HEADER.pack(
            self.magic,
            self.version,
            self.flags,
            self.sector_size,
            self.max_resources,
            self.unused,
            self.rx_offset,
            self.lockspace_name,
        )

    def verify(self, place: Place | str, lockspace: bytes, rx_offset: int) -> None:
        """Check the header found at disk offset `rx_offset`, in the order of ondisk.md section 9.

        Raises IndexMagicError, IndexVersionError, IndexLockspaceError, IndexOffsetError.
        """
        if self.magic != INDEX_MAGIC:
            raise IndexMagicError(place=place, found=self.magic)
        if not same_major(self.version, INDEX_VERSION):
            raise IndexVersionError(place=place, found=self.version)
        if not same_name(self.lockspace_name, lockspace):
            raise IndexLockspaceError(place=place, found=name_of(self.lockspace_name), expected=name_of(lockspace))
        if self.rx_offset != rx_offset:
            raise IndexOffsetError(place=place, offset=self.rx_offset)

    @property
    def geometry(self) -> Geometry:
        """The sizes it states; smallest bit wins, none: implied by the sector size. Raises SizesInvalid."""
        stated = (align for align, bit in _ALIGN_FLAGS.items() if self.flags & bit)
        return Geometry(self.sector_size, next(stated, DEFAULT_ALIGN.get(self.sector_size, 0)))

    @property
    def entries(self) -> int:
        """How many entries may be used: never more than an index of these sizes has. Raises SizesInvalid."""
        most = self.geometry.max_index_entries
        return min(self.max_resources or most, most)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One entry of 64 bytes. `res_offset`: disk offset, in bytes, of the resource's area; `name` is raw."""

    res_offset: int
    flags: int
    unused: int
    name: bytes

    @classmethod
    def unpack(cls, area: Bytes, offset: int = 0) -> IndexEntry:
        """Decode the entry at byte `offset` without judging. Raises RecordTooShort."""
        need(area, offset + ENTRY_LENGTH, "resource index entry")
        return cls(*_ENTRY.unpack_from(area, offset))

    @classmethod
    def of(cls, name: bytes, res_offset: int) -> IndexEntry:
        """A new entry. Raises InvalidUse if `name` is none."""
        return cls(res_offset, 0, 0, pack_name(name))

    def pack(self) -> bytes:
        """The 64 bytes."""
        return _ENTRY.pack(self.res_offset, self.flags, self.unused, self.name)

    @property
    def free(self) -> bool:
        return self.res_offset == 0 and self.name[:1] in (b"", b"\0")

    def verify(self, place: Place | str, expected_offset: int) -> None:
        """Check that a used entry states the offset its position gives it. Raises IndexOffsetError."""
        if not self.free and self.res_offset != expected_offset:
            raise IndexOffsetError(place=place, offset=self.res_offset)


#: an entry that names nothing
FREE_ENTRY: Final = IndexEntry(0, 0, 0, bytes(NAME_LENGTH))


def fresh_index(name: bytes, geometry: Geometry, rx_offset: int, max_resources: int = 0) -> bytes:
    """The area of an index of lockspace `name` at disk offset `rx_offset` that names nothing yet.

    `max_resources` 0 means 4096; never more than an index of these sizes has. Raises InvalidUse.
    """
    if max_resources < 0:
        raise InvalidUse(reason=f"max_resources {max_resources} is negative")
    header = IndexHeader(
        magic=INDEX_MAGIC,
        version=INDEX_VERSION,
        flags=_ALIGN_FLAGS[geometry.align_size],
        sector_size=geometry.sector_size,
        max_resources=min(max_resources or DEFAULT_RESOURCES, geometry.max_index_entries),
        unused=0,
        rx_offset=rx_offset,
        lockspace_name=pack_name(name),
    )
    return header.pack().ljust(geometry.align_size, b"\0")
