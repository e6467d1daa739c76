"""The leader record: who holds a lease. The same 200 bytes stand for delta leases and resource leases.

`Leader.unpack` judges nothing; `verify_delta` and `verify_paxos` say what is wrong with a record, in the
order of the spec, so that with several faults the reference's number is reported.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, Final

from paxos.checksum import crc
from paxos.errors import (
    BadRecord,
    LeaderChecksumError,
    LeaderFlagsError,
    LeaderMagicError,
    LeaderVersionError,
    LeaseCleared,
    LockspaceNameError,
    NumHostsError,
    ResourceNameError,
)
from paxos.fields import COUNTER_LIMIT, Bytes, name_of, need, same_major, same_name
from paxos.geometry import ALIGN_MASK, Place

DELTA_MAGIC: Final = 0x12212010
PAXOS_MAGIC: Final = 0x06152010
#: a deleted resource lease
CLEAR_MAGIC: Final = 0x11282016

DELTA_VERSION: Final = 0x00030004
PAXOS_VERSION: Final = 0x00060004

#: leader flag: the owner holds the lease only while it sets its shared mode
SHORT_HOLD: Final = 0x1

#: bytes of a leader record, and those its checksum covers
LEADER_LENGTH: Final = 200
LEADER_COVERED: Final = 168

_LEADER = struct.Struct("<IIIIQQQQQ48s48sQQIHHQQQ")
assert _LEADER.size == LEADER_LENGTH


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
        need(sector, LEADER_LENGTH, "leader record")
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
        changed = replace(self, **fields)
        object.__setattr__(changed, "checksum", changed.computed_checksum)  # nobody else has seen it yet
        return changed

    def into(self, sector: Bytes) -> bytes:
        """`sector` with this record over its first 200 bytes; the rest of it as it was."""
        need(sector, LEADER_LENGTH, "sector for a leader record")
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


def verify_paxos(leader: Leader, place: Place | str, lockspace: bytes, resource: bytes, host_id: int | None) -> None:
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
    if not same_major(leader.version, _VERSIONS[magic]):
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
    if max(leader.lver, leader.owner_generation) > COUNTER_LIMIT:
        raise BadRecord(place=place, record=f"{record} (version {leader.lver}, generation {leader.owner_generation})")


def _verify_minor(leader: Leader, place: Place | str, magic: int, record: str) -> None:
    if leader.version > _VERSIONS[magic]:
        raise LeaderVersionError(place=place, record=record, found=leader.version)
