"""How many bytes of payload belong to a request, by its header and by what has come of it so far.

A shape answers with the bytes needed as far as can be told by now; when so many are here it is asked again, until
they are enough. The header's own `length` is believed only by SET_LVB: clients of the reference state wrong ones
(daemon.md section 2).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeAlias

from leases.daemon.call import Refused
from leases.daemon.numbers import KILLPATH_FIELD, MAX_DISKS, MAX_LVB, MAX_RESOURCES, ReleaseFlag
from leases.daemon.wire import (
    Disk,
    Header,
    HostEvent,
    Index,
    IndexEntry,
    Lockspace,
    Options,
    Resource,
)

Shape: TypeAlias = Callable[[Header, bytearray], int]

_RESOURCE = Resource.layout.size
_DISK = Disk.layout.size
_NUM_DISKS = slice(124, 128)
#: names in one RELEASE; the reference's clients send up to 8
_MAX_RELEASED = 4096


def fixed(size: int) -> Shape:
    return lambda _header, _data: size


nothing = fixed(0)
disk = fixed(_DISK)
resource = fixed(_RESOURCE)
lockspace = fixed(Lockspace.layout.size)
event = fixed(Lockspace.layout.size + HostEvent.layout.size)
index = fixed(Index.layout.size)
index_entry = fixed(Index.layout.size + IndexEntry.layout.size)
kill_path = fixed(2 * KILLPATH_FIELD)


def _with_disks(data: bytearray, at: int) -> int | None:
    """Where the resource at `at` ends with its disks; None when that can't be told yet. Raises Refused."""
    if len(data) < at + _RESOURCE:
        return None
    count = int.from_bytes(data[at + _NUM_DISKS.start : at + _NUM_DISKS.stop], "little")
    if count > MAX_DISKS:
        raise Refused(-errno.ERANGE)
    return at + _RESOURCE + count * _DISK


def resource_with_disks(_header: Header, data: bytearray) -> int:
    return _with_disks(data, 0) or _RESOURCE


def acquire(header: Header, data: bytearray) -> int:
    """`data` resources with their disks, then options."""
    if header.data > MAX_RESOURCES:
        raise Refused(-errno.E2BIG)
    end = 0
    for _ in range(header.data):
        after = _with_disks(data, end)
        if after is None:
            return end + _RESOURCE
        end = after
    return end + Options.layout.size


def release(header: Header, _data: bytearray) -> int:
    if header.flags & ReleaseFlag.ALL:
        return 0
    if header.data > _MAX_RELEASED:
        raise Refused(-errno.E2BIG)
    if header.flags & ReleaseFlag.RENAME:
        return 2 * _RESOURCE
    if header.flags & ReleaseFlag.ORPHAN:
        return _RESOURCE
    return header.data * _RESOURCE


def value_block(header: Header, _data: bytearray) -> int:
    if header.payload < _RESOURCE:
        raise Refused(-errno.EINVAL)
    if header.payload - _RESOURCE > MAX_LVB:
        raise Refused(-errno.E2BIG)
    return header.payload
