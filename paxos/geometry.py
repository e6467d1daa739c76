"""Sizes: how sectors, areas and host slots divide a volume, and where each record lives in its area.

An *area* is one align-size piece of storage: a lockspace, the resource index, or one resource lease.
Five combinations of sector and align size exist, no others (ondisk.md 1.1); everything that depends on
them is derived here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from paxos.errors import SizesInvalid

MIB = 1 << 20

#: (sector_size, align_size) in bytes -> host slots of an area
MAX_HOSTS = {
    (512, 1 * MIB): 2000,
    (4096, 1 * MIB): 250,
    (4096, 2 * MIB): 500,
    (4096, 4 * MIB): 1000,
    (4096, 8 * MIB): 2000,
}

#: align size in bytes -> flag bit in a leader record and in API and wire flags
ALIGN_FLAGS = {1 * MIB: 0x10, 2 * MIB: 0x20, 4 * MIB: 0x40, 8 * MIB: 0x80}
ALIGN_MASK = 0xF0
#: sector size in bytes -> flag bit in API and wire flags (on disk the size is a field of its own)
SECTOR_FLAGS = {512: 0x100, 4096: 0x200}

#: when sizes are unknown the first leader record is read with this many bytes
PROBE_LENGTH = 4096
DEFAULT_ALIGN = {512: 1 * MIB, 4096: 8 * MIB}

_LEADER_SECTOR = 0
_REQUEST_SECTOR = 1
_FIRST_HOST_SECTOR = 2
_LVB_SECTOR = 2002
_RINDEX_ENTRY_SIZE = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where an area starts: a disk by its name (its path), and a byte offset on it."""

    disk: str
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.disk}:{self.offset}"

    def at(self, relative: int) -> int:
        """The disk offset of a byte of this area."""
        return self.offset + relative


@dataclass(frozen=True, slots=True)
class Geometry:
    """One valid pair of sector and align size, both in bytes. Raises SizesInvalid for any other pair."""

    sector_size: int
    align_size: int

    def __post_init__(self) -> None:
        if (self.sector_size, self.align_size) not in MAX_HOSTS:
            raise SizesInvalid(sector_size=self.sector_size, align_size=self.align_size)

    @classmethod
    def default(cls, sector_size: int = 512) -> Geometry:
        """The align size that goes with a sector size when none is asked for: 1 MiB, or 8 MiB for 4096."""
        return cls(sector_size, DEFAULT_ALIGN.get(sector_size, 0))

    @classmethod
    def from_leader(cls, sector_size: int, flags: int) -> Geometry:
        """The sizes a leader record states. Smallest bit wins; none set: implied by the sector size."""
        for align, bit in ALIGN_FLAGS.items():
            if flags & bit:
                return cls(sector_size, align)
        return cls.default(sector_size)

    @property
    def max_hosts(self) -> int:
        return MAX_HOSTS[self.sector_size, self.align_size]

    @property
    def sectors(self) -> int:
        """Sectors of an area."""
        return self.align_size // self.sector_size

    @property
    def align_flag(self) -> int:
        return ALIGN_FLAGS[self.align_size]

    @property
    def wire_flags(self) -> int:
        """Align and sector bits as the API and the socket protocol carry them."""
        return self.align_flag | SECTOR_FLAGS[self.sector_size]

    # --- a lockspace area ---

    def delta_offset(self, host_id: int) -> int:
        """Byte offset in a lockspace area of the delta lease of `host_id` (1..max_hosts)."""
        assert 1 <= host_id <= self.max_hosts
        return (host_id - 1) * self.sector_size

    # --- a resource area ---

    @property
    def leader_offset(self) -> int:
        return _LEADER_SECTOR * self.sector_size

    @property
    def request_offset(self) -> int:
        return _REQUEST_SECTOR * self.sector_size

    def block_offset(self, host_id: int) -> int:
        """Byte offset in a resource area of the block (dblock and mode block) of `host_id`."""
        assert 1 <= host_id <= self.max_hosts
        return (_FIRST_HOST_SECTOR + host_id - 1) * self.sector_size

    @property
    def has_lvb(self) -> bool:
        """Whether the fixed LVB sector (2002) lies inside an area of this size."""
        return (_LVB_SECTOR + 1) * self.sector_size <= self.align_size

    @property
    def lvb_offset(self) -> int:
        """Byte offset of the LVB. Only where `has_lvb`: the reference writes it outside smaller areas."""
        assert self.has_lvb
        return _LVB_SECTOR * self.sector_size

    def ballot_length(self, num_hosts: int) -> int:
        """Bytes to read from an area's start to see leader, request and the blocks of `num_hosts` hosts.

        The next power of two of the sectors needed, as the reference reads it, and never more than the area.
        """
        sectors = 1 << (num_hosts + _FIRST_HOST_SECTOR - 1).bit_length()
        return min(sectors * self.sector_size, self.align_size)

    # --- the resource index ---

    @property
    def max_index_entries(self) -> int:
        """Entries a resource index of this size may have (ondisk.md 1.1)."""
        return {512: 16000}.get(self.sector_size, 16000 * (self.align_size // MIB))

    def index_entry_offset(self, number: int) -> int:
        """Byte offset in an index area of entry `number` (0-based)."""
        return self.sector_size + number * _RINDEX_ENTRY_SIZE

    def indexed_resource_offset(self, number: int) -> int:
        """Byte offset, from the index's start, of the resource area that entry `number` stands for."""
        return (2 + number) * self.align_size
