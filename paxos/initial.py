"""The first content of lockspaces and resource leases (ondisk.md 2.9)."""

from __future__ import annotations

from paxos.calls import Request
from paxos.errors import InvalidUse
from paxos.fields import NAME_LENGTH, pack_name
from paxos.geometry import Geometry
from paxos.leader import CLEAR_MAGIC, DELTA_MAGIC, DELTA_VERSION, PAXOS_MAGIC, PAXOS_VERSION, Leader
from paxos.timing import DEFAULT_IO_TIMEOUT, MAX_IO_TIMEOUT


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
