"""The records of a lease on disk, as frozen dataclasses: leader, host block, request record, host bitmap.

All integers are little endian; offsets count from the start of the record's sector (ondisk.md section 2).
Decoding believes nothing: `unpack` checks only that there are enough bytes, `verify_*` says what is wrong
with them. Encoding is exact: what was unpacked packs to the same bytes, and `into` a sector leaves every
byte alone that is not the record's, so bytes that other programs put there survive.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from paxos.checksum import crc
from paxos.errors import (
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
from paxos.geometry import ALIGN_MASK, MAX_HOSTS, Geometry, Place
from paxos.timing import DEFAULT_IO_TIMEOUT, MAX_IO_TIMEOUT

DELTA_MAGIC: Final = 0x12212010
PAXOS_MAGIC: Final = 0x06152010
#: a deleted resource lease
CLEAR_MAGIC: Final = 0x11282016
REQUEST_MAGIC: Final = 0x08292011

DELTA_VERSION: Final = 0x00030004
PAXOS_VERSION: Final = 0x00060004
REQUEST_VERSION: Final = 0x00010001
_MAJOR_MASK: Final = 0xFFFF0000

#: leader flag: the owner holds the lease only while it sets its shared mode
SHORT_HOLD: Final = 0x1
#: dblock flag: the owner has given back what this block decided
RELEASED: Final = 0x1
#: mode block flag: the host holds the lease shared
SHARED: Final = 0x1

NAME_LENGTH: Final = 48
#: bytes of a leader record, and those its checksum covers
LEADER_LENGTH: Final = 200
LEADER_COVERED: Final = 168
#: bytes of a dblock's ballot values, which its checksum covers
DBLOCK_COVERED: Final = 48
DBLOCK_LENGTH: Final = 56
MODE_OFFSET: Final = 128
MODE_LENGTH: Final = 16
BITMAP_OFFSET: Final = 256
BITMAP_LENGTH: Final = 256

_LEADER = struct.Struct("<IIIIQQQQQ48s48sQQIHHQQQ")
_LEADER_CHECKSUM = struct.Struct("<I")
_BALLOT = struct.Struct("<QQQQQQ")
_DBLOCK = struct.Struct("<QQQQQQII")
_MODE = struct.Struct("<IIQ")
_REQUEST = struct.Struct("<IIQII")
assert _LEADER.size == LEADER_LENGTH and _DBLOCK.size == DBLOCK_LENGTH and _MODE.size == MODE_LENGTH

Bytes: TypeAlias = bytes | bytearray | memoryview

# ------------------------------------------------------------------------------------------------- names


def pack_name(name: bytes) -> bytes:
    """A name as a field of 48 bytes, NUL padded; 48 bytes leave no NUL. Raises InvalidUse if it is none."""
    if not name:
        raise InvalidUse(reason="a name must not be empty")
    if len(name) > NAME_LENGTH:
        raise InvalidUse(reason=f"a name has at most {NAME_LENGTH} bytes, this one {len(name)}: {name!r}")
    if 0 in name:
        raise InvalidUse(reason=f"a name must not contain a NUL byte: {name!r}")
    return name.ljust(NAME_LENGTH, b"\0")


def name_of(field: bytes) -> bytes:
    """The name in a field of 48 bytes: all before the first NUL. The tail means nothing (ondisk.md 1.3)."""
    return field[:NAME_LENGTH].partition(b"\0")[0]


def same_name(a: bytes, b: bytes) -> bool:
    """Whether two fields, or names, are the same up to their first NUL or 48 bytes."""
    return name_of(a) == name_of(b)


def replace_name(old: bytes, new: bytes) -> bytes:
    """The field `old` with `new` and one NUL stored over it; the tail of a longer old name stays.

    The reference does it so (ondisk.md 1.3). Raises InvalidUse if `new` has more than 48 bytes.
    """
    if len(new) > NAME_LENGTH:
        raise InvalidUse(reason=f"a name has at most {NAME_LENGTH} bytes, this one {len(new)}: {new!r}")
    return (new + b"\0" + old[len(new) + 1 :])[:NAME_LENGTH]


# ------------------------------------------------------------------------------------------------ leader


@dataclass(frozen=True, slots=True)
class Leader:
    """A leader record: 200 bytes at the start of a delta lease's or a paxos lease's sector (ondisk.md 2.2).

    Names are the raw fields of 48 bytes. In a delta lease `resource_name` is the owner's host name,
    `num_hosts` 0, `max_hosts` 1 and `write_*` an event; in a paxos lease `write_*` says who wrote the
    record and when. Timestamps are whole seconds of the writer's clock; `io_timeout` is in seconds.
    """

    magic: int
    version: int
    flags: int
    sector_size: int
    num_hosts: int
    max_hosts: int
    owner_id: int
    owner_generation: int
    lver: int
    space_name: bytes
    resource_name: bytes
    timestamp: int
    unused1: int
    checksum: int
    unused2: int
    io_timeout: int
    write_id: int
    write_generation: int
    write_timestamp: int

    @classmethod
    def unpack(cls, sector: Bytes) -> Leader:
        """Decode without judging. Raises RecordTooShort."""
        _need(sector, LEADER_LENGTH, "leader record")
        return cls(*_LEADER.unpack_from(sector))

    def pack(self) -> bytes:
        """The 200 bytes, with the checksum as it is stored."""
        return _LEADER.pack(
            self.magic,
            self.version,
            self.flags,
            self.sector_size,
            self.num_hosts,
            self.max_hosts,
            self.owner_id,
            self.owner_generation,
            self.lver,
            self.space_name,
            self.resource_name,
            self.timestamp,
            self.unused1,
            self.checksum,
            self.unused2,
            self.io_timeout,
            self.write_id,
            self.write_generation,
            self.write_timestamp,
        )

    @property
    def computed_checksum(self) -> int:
        """What the checksum has to be; io_timeout and the write fields are not covered."""
        return crc(self.pack()[:LEADER_COVERED])

    @property
    def free(self) -> bool:
        """Nobody holds it. The owner fields keep the last owner."""
        return self.timestamp == 0

    def sealed(self) -> Leader:
        """This record with the right checksum."""
        return replace(self, checksum=self.computed_checksum)

    def changed(self, **fields: Any) -> Leader:
        """This record with other values in `fields`, and the checksum for them."""
        return replace(self, **fields).sealed()

    def into(self, sector: Bytes) -> bytes:
        """`sector` with this record over its first 200 bytes; the rest of it as it was."""
        _need(sector, LEADER_LENGTH, "sector for a leader record")
        return self.pack() + bytes(sector[LEADER_LENGTH:])

    def sector(self, sector_size: int) -> bytes:
        """A sector with this record and zeros."""
        return self.pack().ljust(sector_size, b"\0")


_DELTA_RECORD = "delta lease"
_PAXOS_RECORD = "resource lease"
_VERSIONS = {DELTA_MAGIC: DELTA_VERSION, PAXOS_MAGIC: PAXOS_VERSION}
_KNOWN_FLAGS = {DELTA_MAGIC: ALIGN_MASK, PAXOS_MAGIC: ALIGN_MASK | SHORT_HOLD}


def verify_header(leader: Leader, place: Place | str, magic: int, record: str) -> None:
    """Check only that a program of our version wrote a record of this kind; for probing.

    `magic` is DELTA_MAGIC or PAXOS_MAGIC, `record` the kind's name for the message.
    Raises LeaderMagicError (LeaseCleared for a deleted resource lease) or LeaderVersionError.
    """
    _verify_kind(leader, place, magic, record)
    _verify_minor(leader, place, magic, record)


def verify_delta(leader: Leader, place: Place | str, lockspace: bytes) -> None:
    """Check a delta lease in the order of ondisk.md 4.1, then that its rules are known to us.

    Raises LeaderMagicError, LeaderVersionError, LockspaceNameError, LeaderChecksumError, LeaderFlagsError.
    owner_id is not compared with the slot: a slot never acquired has 0.
    """
    _verify_kind(leader, place, DELTA_MAGIC, _DELTA_RECORD)
    _verify_lockspace(leader, place, lockspace, _DELTA_RECORD)
    _verify_checksum(leader, place, _DELTA_RECORD)
    _verify_rules(leader, place, DELTA_MAGIC, _DELTA_RECORD)


def verify_paxos(
    leader: Leader, place: Place | str, lockspace: bytes, resource: bytes, host_id: int | None
) -> None:
    """Check a resource lease's leader in the order of ondisk.md 5.1, then that its rules are known to us.

    With `host_id` None num_hosts is not compared with it. Raises LeaseCleared, LeaderMagicError,
    LeaderVersionError, LockspaceNameError, ResourceNameError, NumHostsError, LeaderChecksumError,
    LeaderFlagsError.
    """
    _verify_kind(leader, place, PAXOS_MAGIC, _PAXOS_RECORD)
    _verify_lockspace(leader, place, lockspace, _PAXOS_RECORD)
    if not same_name(leader.resource_name, resource):
        raise ResourceNameError(
            place=place, record=_PAXOS_RECORD, found=name_of(leader.resource_name), expected=name_of(resource)
        )
    if host_id is not None and leader.num_hosts < host_id:
        raise NumHostsError(place=place, num_hosts=leader.num_hosts, host_id=host_id)
    _verify_checksum(leader, place, _PAXOS_RECORD)
    _verify_rules(leader, place, PAXOS_MAGIC, _PAXOS_RECORD)


def _verify_kind(leader: Leader, place: Place | str, magic: int, record: str) -> None:
    if leader.magic != magic:
        error = LeaseCleared if magic == PAXOS_MAGIC and leader.magic == CLEAR_MAGIC else LeaderMagicError
        raise error(place=place, record=record, found=leader.magic)
    if leader.version & _MAJOR_MASK != _VERSIONS[magic] & _MAJOR_MASK:
        raise LeaderVersionError(place=place, record=record, found=leader.version)


def _verify_lockspace(leader: Leader, place: Place | str, lockspace: bytes, record: str) -> None:
    if not same_name(leader.space_name, lockspace):
        raise LockspaceNameError(
            place=place, record=record, found=name_of(leader.space_name), expected=name_of(lockspace)
        )


def _verify_checksum(leader: Leader, place: Place | str, record: str) -> None:
    computed = leader.computed_checksum
    if leader.checksum != computed:
        raise LeaderChecksumError(place=place, record=record, found=leader.checksum, computed=computed)


def _verify_rules(leader: Leader, place: Place | str, magic: int, record: str) -> None:
    """Refuse what a newer program may mean otherwise. The reference takes any minor version and flag.

    After the checksum, so that a damaged record is called damaged, with the reference's number, not new.
    """
    _verify_minor(leader, place, magic, record)
    unknown = leader.flags & ~_KNOWN_FLAGS[magic]
    if unknown:
        raise LeaderFlagsError(place=place, record=record, found=leader.flags, unknown=unknown)


def _verify_minor(leader: Leader, place: Place | str, magic: int, record: str) -> None:
    if leader.version > _VERSIONS[magic]:
        raise LeaderVersionError(place=place, record=record, found=leader.version)


# ------------------------------------------------------------------------------------------------- block


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
        _need(sector, offset + MODE_OFFSET + MODE_LENGTH, "host block")
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
        return replace(self, mode_padding=0, **fields).sealed()

    def into(self, sector: Bytes) -> bytes:
        """`sector` with bytes 0..55 and 128..143 replaced; the rest of it as it was."""
        _need(sector, MODE_OFFSET + MODE_LENGTH, "sector for a host block")
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

# ----------------------------------------------------------------------------------------------- request


@dataclass(frozen=True, slots=True)
class Request:
    """The request record in sector 1 of a resource lease: somebody wants version `lver` (0: nobody).

    `force_mode` 0 none, 1 kill the owner, 2 ask it gracefully. No checksum, and `padding` is undefined on
    disk (ondisk.md 2.6).
    """

    magic: int = REQUEST_MAGIC
    version: int = REQUEST_VERSION
    lver: int = 0
    force_mode: int = 0
    padding: int = 0

    @classmethod
    def unpack(cls, sector: Bytes) -> Request:
        """Decode without judging. Raises RecordTooShort."""
        _need(sector, _REQUEST.size, "request record")
        return cls(*_REQUEST.unpack_from(sector))

    def verify(self, place: Place | str) -> None:
        """Raises RequestMagicError, RequestVersionError."""
        if self.magic != REQUEST_MAGIC:
            raise RequestMagicError(place=place, found=self.magic)
        if self.version & _MAJOR_MASK != REQUEST_VERSION & _MAJOR_MASK:
            raise RequestVersionError(place=place, found=self.version)

    def pack(self) -> bytes:
        """The 24 bytes."""
        return _REQUEST.pack(self.magic, self.version, self.lver, self.force_mode, self.padding)

    def into(self, sector: Bytes) -> bytes:
        """`sector` with this record over its first 24 bytes; the rest of it as it was."""
        _need(sector, _REQUEST.size, "sector for a request record")
        return self.pack() + bytes(sector[_REQUEST.size :])

    def sector(self, sector_size: int) -> bytes:
        """A sector with this record and zeros."""
        return self.pack().ljust(sector_size, b"\0")


# ------------------------------------------------------------------------------------------- host bitmap

_BITMAP_HOSTS = max(MAX_HOSTS.values())


def bitmap_of(host_ids: Iterable[int]) -> bytes:
    """256 bytes with a bit for each host, lowest bit first (ondisk.md 2.3). Raises HostIdInvalid."""
    bits = 0
    for host_id in host_ids:
        if not 1 <= host_id <= _BITMAP_HOSTS:
            raise HostIdInvalid(host_id=host_id, max_hosts=_BITMAP_HOSTS)
        bits |= 1 << (host_id - 1)
    return bits.to_bytes(BITMAP_LENGTH, "little")


def bitmap_hosts(sector: Bytes) -> list[int]:
    """The hosts that a delta lease's sector calls, ascending; bits of no possible host are ignored."""
    _need(sector, BITMAP_OFFSET + BITMAP_LENGTH, "host bitmap")
    bits = int.from_bytes(sector[BITMAP_OFFSET : BITMAP_OFFSET + BITMAP_LENGTH], "little")
    hosts = []
    while bits:
        lowest = bits & -bits
        hosts.append(lowest.bit_length())
        bits ^= lowest
    return [host_id for host_id in hosts if host_id <= _BITMAP_HOSTS]


def bitmap_has(sector: Bytes, host_id: int) -> bool:
    """Whether a delta lease's sector calls `host_id`. Raises HostIdInvalid."""
    _need(sector, BITMAP_OFFSET + BITMAP_LENGTH, "host bitmap")
    if not 1 <= host_id <= _BITMAP_HOSTS:
        raise HostIdInvalid(host_id=host_id, max_hosts=_BITMAP_HOSTS)
    byte, bit = divmod(host_id - 1, 8)
    return bool(sector[BITMAP_OFFSET + byte] & 1 << bit)


# ---------------------------------------------------------------------------------------- initial images


def fresh_lockspace(name: bytes, geometry: Geometry, io_timeout: int) -> tuple[bytes, bytes]:
    """A lockspace that nobody has joined, as its two writes: the area, then its first sector (ondisk.md 2.9).

    In the first write the first record has no magic, so a torn initialisation is never mistaken for a
    lockspace. `io_timeout` in seconds, 0 for the default. Raises InvalidUse.
    """
    if not 0 <= io_timeout <= MAX_IO_TIMEOUT:
        raise InvalidUse(reason=f"io_timeout {io_timeout} is not between 1 and {MAX_IO_TIMEOUT} seconds")
    leader = Leader(
        magic=DELTA_MAGIC,
        version=DELTA_VERSION,
        flags=geometry.align_flag,
        sector_size=geometry.sector_size,
        num_hosts=0,
        max_hosts=1,
        owner_id=0,
        owner_generation=0,
        lver=0,
        space_name=pack_name(name),
        resource_name=bytes(NAME_LENGTH),
        timestamp=0,
        unused1=0,
        checksum=0,
        unused2=0,
        io_timeout=io_timeout or DEFAULT_IO_TIMEOUT,
        write_id=0,
        write_generation=0,
        write_timestamp=0,
    ).sealed()
    first = leader.sector(geometry.sector_size)
    others = first * (geometry.max_hosts - 1)
    area = leader.changed(magic=0).sector(geometry.sector_size) + others
    return area.ljust(geometry.align_size, b"\0"), first


def fresh_resource(
    lockspace: bytes, resource: bytes, geometry: Geometry, num_hosts: int = 0, cleared_at: int | None = None
) -> bytes:
    """The area of a resource lease that nobody has ever held (ondisk.md 2.9). Raises InvalidUse.

    `num_hosts` 0, or more than fit, means all host slots. With `cleared_at`, whole seconds of the clock, it
    is what a deleted lease leaves behind.
    """
    if num_hosts < 0:
        raise InvalidUse(reason=f"num_hosts {num_hosts} is negative")
    leader = Leader(
        magic=PAXOS_MAGIC if cleared_at is None else CLEAR_MAGIC,
        version=PAXOS_VERSION,
        flags=geometry.align_flag,
        sector_size=geometry.sector_size,
        num_hosts=num_hosts if 0 < num_hosts <= geometry.max_hosts else geometry.max_hosts,
        max_hosts=geometry.max_hosts,
        owner_id=0,
        owner_generation=0,
        lver=0,
        space_name=pack_name(lockspace),
        resource_name=pack_name(resource),
        timestamp=0,
        unused1=0,
        checksum=0,
        unused2=0,
        io_timeout=0,
        write_id=0,
        write_generation=0,
        write_timestamp=cleared_at or 0,
    ).sealed()
    head = leader.sector(geometry.sector_size) + Request().sector(geometry.sector_size)
    return head.ljust(geometry.align_size, b"\0")


def _need(data: Bytes, needed: int, record: str) -> None:
    if len(data) < needed:
        raise RecordTooShort(
            place=f"a buffer of {len(data)} bytes", record=record, needed=needed, got=len(data)
        )
