"""How hosts call each other on disk: the request record of a lease, and the host bitmap beside a delta lease.

A host that wants a lease writes a request there, then sets the owner's bit in its own delta lease's sector;
the owner sees the bit when it next reads the lockspace, and looks for requests (ondisk.md section 7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from paxos.errors import HostIdInvalid, RequestMagicError, RequestVersionError
from paxos.fields import Bytes, need, same_major
from paxos.geometry import MAX_HOSTS, Place

REQUEST_MAGIC: Final = 0x08292011
REQUEST_VERSION: Final = 0x00010001

BITMAP_OFFSET: Final = 256
BITMAP_LENGTH: Final = 256
_BITMAP_HOSTS = max(MAX_HOSTS.values())

_REQUEST = struct.Struct("<IIQII")


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
        need(sector, _REQUEST.size, "request record")
        return cls(*_REQUEST.unpack_from(sector))

    def verify(self, place: Place | str) -> None:
        """Raises RequestMagicError, RequestVersionError."""
        if self.magic != REQUEST_MAGIC:
            raise RequestMagicError(place=place, found=self.magic)
        if not same_major(self.version, REQUEST_VERSION):
            raise RequestVersionError(place=place, found=self.version)

    def pack(self) -> bytes:
        """The 24 bytes."""
        return _REQUEST.pack(self.magic, self.version, self.lver, self.force_mode, self.padding)

    def into(self, sector: Bytes) -> bytes:
        """`sector` with this record over its first 24 bytes; the rest of it as it was."""
        need(sector, _REQUEST.size, "sector for a request record")
        return self.pack() + bytes(sector[_REQUEST.size :])

    def sector(self, sector_size: int) -> bytes:
        """A sector with this record and zeros."""
        return self.pack().ljust(sector_size, b"\0")


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
    need(sector, BITMAP_OFFSET + BITMAP_LENGTH, "host bitmap")
    bits = int.from_bytes(sector[BITMAP_OFFSET : BITMAP_OFFSET + BITMAP_LENGTH], "little")
    hosts = []
    while bits:
        lowest = bits & -bits
        hosts.append(lowest.bit_length())
        bits ^= lowest
    return [host_id for host_id in hosts if host_id <= _BITMAP_HOSTS]


def bitmap_has(sector: Bytes, host_id: int) -> bool:
    """Whether a delta lease's sector calls `host_id`. Raises HostIdInvalid."""
    need(sector, BITMAP_OFFSET + BITMAP_LENGTH, "host bitmap")
    if not 1 <= host_id <= _BITMAP_HOSTS:
        raise HostIdInvalid(host_id=host_id, max_hosts=_BITMAP_HOSTS)
    byte, bit = divmod(host_id - 1, 8)
    return bool(sector[BITMAP_OFFSET + byte] & (1 << bit))
