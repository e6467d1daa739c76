"""The block of one host in a resource lease: what it says in ballots, and whether it holds shared."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, Final

from paxos.checksum import crc
from paxos.fields import Bytes, need

#: dblock flag: the owner has given back what this block decided
RELEASED: Final = 0x1
#: mode block flag: the host holds the lease shared
SHARED: Final = 0x1

#: bytes of a dblock, and those its checksum covers
DBLOCK_LENGTH: Final = 56
DBLOCK_COVERED: Final = 48
MODE_OFFSET: Final = 128
MODE_LENGTH: Final = 16

_BALLOT = struct.Struct("<QQQQQQ")
_DBLOCK = struct.Struct("<QQQQQQII")
_MODE = struct.Struct("<IIQ")
assert _DBLOCK.size == DBLOCK_LENGTH and _MODE.size == MODE_LENGTH


@dataclass(frozen=True, slots=True)
class Block:
    """One host's sector of a resource lease: dblock at byte 0, mode block at byte 128 (ondisk.md 2.4, 2.5).

    `mbal`: highest ballot this host started. `bal`: ballot at which the value (`inp`, `inp2`, `inp3`) =
    (owner's host id, its generation, its timestamp) was accepted, 0 in phase 1. `lver`: the lease version
    being decided. The checksum covers these six, neither the flags nor the mode block.
    """

    mbal: int = 0
    bal: int = 0
    inp: int = 0
    inp2: int = 0
    inp3: int = 0
    lver: int = 0
    checksum: int = 0
    flags: int = 0
    mode_flags: int = 0
    mode_padding: int = 0
    mode_generation: int = 0

    @classmethod
    def unpack(cls, sector: Bytes, offset: int = 0) -> Block:
        """Decode the sector at byte `offset` without judging. Raises RecordTooShort."""
        need(sector, offset + MODE_OFFSET + MODE_LENGTH, "host block")
        return cls(*_DBLOCK.unpack_from(sector, offset), *_MODE.unpack_from(sector, offset + MODE_OFFSET))

    @property
    def computed_checksum(self) -> int:
        return crc(_BALLOT.pack(self.mbal, self.bal, self.inp, self.inp2, self.inp3, self.lver))

    @property
    def unused(self) -> bool:
        """Never used, or wiped: valid without a checksum (ondisk.md 1.6)."""
        return not (self.mbal or self.bal or self.inp or self.lver or self.checksum)

    @property
    def checksum_ok(self) -> bool:
        return self.unused or self.checksum == self.computed_checksum

    @property
    def progress(self) -> tuple[int, int]:
        """Grows with each step that its host takes in ballots, so of two views of a block the larger is the later."""
        return self.mbal, self.bal

    @property
    def released(self) -> bool:
        return bool(self.flags & RELEASED)

    @property
    def shared(self) -> bool:
        return bool(self.mode_flags & SHARED)

    @property
    def erased(self) -> bool:
        """The reference's mark of an acquire that failed half-way: no values, RELEASED, checksum of zeros."""
        values = self.mbal or self.bal or self.inp or self.inp2 or self.inp3 or self.lver
        return not values and self.released and self.checksum == self.computed_checksum

    @property
    def accepted(self) -> bool:
        """Whether `value` is one this host accepted in a ballot."""
        return self.bal != 0 and self.inp != 0

    @property
    def value(self) -> tuple[int, int, int]:
        """Owner's host id, its generation, its timestamp."""
        return self.inp, self.inp2, self.inp3

    def sealed(self) -> Block:
        """This block with the right checksum."""
        return replace(self, checksum=self.computed_checksum)

    def changed(self, **fields: Any) -> Block:
        """This block with other values in `fields`, the checksum for them, and undefined bytes as zeros."""
        changed = replace(self, mode_padding=0, **fields)
        object.__setattr__(changed, "checksum", changed.computed_checksum)  # nobody else has seen it yet
        return changed

    def into(self, sector: Bytes) -> bytes:
        """`sector` with bytes 0..55 and 128..143 replaced; the rest of it as it was."""
        need(sector, MODE_OFFSET + MODE_LENGTH, "sector for a host block")
        image = bytearray(sector)
        _DBLOCK.pack_into(
            image,
            0,
            self.mbal,
            self.bal,
            self.inp,
            self.inp2,
            self.inp3,
            self.lver,
            self.checksum,
            self.flags,
        )
        _MODE.pack_into(image, MODE_OFFSET, self.mode_flags, self.mode_padding, self.mode_generation)
        return bytes(image)

    def sector(self, sector_size: int) -> bytes:
        """A sector with this block and zeros."""
        return self.into(bytes(sector_size))


#: a block never used: an all-zero sector
EMPTY_BLOCK: Final = Block()
