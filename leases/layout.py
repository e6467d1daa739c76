"""Laying out a volume: the lockspace first, the resource index and its guarding lease after it, then the leases.

    offset 0          lockspace
    1 area            index
    2 areas           the lease that guards the index
    3 areas and on    the index's leases

Byte for byte what the reference's tools write (ondisk.md 2.9 and 9). A file is written full: a hole reads faster
than a disk, and may find no room when it is filled at last.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from dataclasses import dataclass

from paxos.disk.device import Device, Devices
from paxos.disk.engine import Engine
from paxos.errors import (
    BadRecord,
    CannotOpen,
    DiskError,
    InvalidUse,
    LeaseholdError,
    SizesInvalid,
    VolumeInUse,
)
from paxos.geometry import MIB, Geometry, Place
from paxos.host_lease import Progress, probe
from paxos.index import format_index
from paxos.index_records import DEFAULT_RESOURCES
from paxos.records import fresh_lockspace, pack_name
from paxos.steps import Steps, read, write
from paxos.timing import DEFAULT_IO_TIMEOUT, INIT_WRITE_TIMEOUT

#: leases that a new file has room for, unless told otherwise
FILE_LEASES = 64
#: areas before the first lease of the index
FIXED_AREAS = 3
_SECTOR_SIZES = (512, 4096)


def index_place(path: str, geometry: Geometry) -> Place:
    """Where the index of a volume is that was laid out here."""
    return Place(path, geometry.align_size)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written. `leases`: how many the index can name; `hosts`: host slots of each, 0 for all."""

    lockspace: bytes
    leases: int | None = None
    hosts: int = 0
    io_timeout: int = DEFAULT_IO_TIMEOUT
    sector_size: int | None = None
    align_size: int | None = None
    force: bool = False


def lay_out(path: str, plan: Plan, progress: Progress) -> None:
    """Make `path` a volume; a file that does not exist is made. Nothing is written when it is refused.

    Raises VolumeInUse, SizesInvalid, InvalidUse, CannotOpen, DiskError.
    """
    pack_name(plan.lockspace)
    if not plan.lockspace:
        raise InvalidUse(reason="a lockspace must have a name")
    if not 1 <= plan.io_timeout <= 255:
        raise InvalidUse(reason=f"io_timeout {plan.io_timeout} is not between 1 and 255 seconds")
    if plan.hosts < 0 or (plan.leases or 0) < 0:
        raise InvalidUse(reason="numbers of hosts and leases are not negative")
    if os.path.exists(path):
        _over_existing(path, plan, progress)
    else:
        _into_new_file(path, plan, progress)


def geometry_for(plan: Plan, detected_sector_size: int) -> Geometry:
    """Both sizes as asked for, or neither and as the disk is (ondisk.md 1.1). Raises SizesInvalid."""
    if plan.sector_size is None and plan.align_size is None:
        return Geometry.default(detected_sector_size)
    if plan.sector_size is None or plan.align_size is None:
        raise SizesInvalid(sector_size=plan.sector_size or "(not given)", align_size=plan.align_size or "(not given)")
    if plan.sector_size % detected_sector_size:
        raise InvalidUse(reason=f"sectors of {plan.sector_size} bytes on a disk with {detected_sector_size}-byte ones")
    return Geometry(plan.sector_size, plan.align_size)


def _into_new_file(path: str, plan: Plan, progress: Progress) -> None:
    geometry = geometry_for(plan, 512)
    leases = _checked_leases(plan.leases or FILE_LEASES, geometry)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660)
    except OSError as failure:
        raise CannotOpen(disk=path, errno=failure.errno, reason=os.strerror(failure.errno or errno.EIO)) from failure
    try:
        _fill(fd, 0, (FIXED_AREAS + leases) * geometry.align_size, path, progress)
        os.close(fd)
        fd = -1
        _write(path, plan, geometry, leases)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


def _over_existing(path: str, plan: Plan, progress: Progress) -> None:
    with Devices() as devices:
        device = devices.open(path, DEFAULT_IO_TIMEOUT)
        geometry = geometry_for(plan, device.sector_size)
        leases, size = _room(device, plan, geometry)
        if not plan.force:
            _refuse_unless_empty(device, geometry)
        if size > device.size:
            with open(path, "r+b", buffering=0) as file:
                _fill(file.fileno(), device.size, size, path, progress)
    _write(path, plan, geometry, leases)


def _room(device: Device, plan: Plan, geometry: Geometry) -> tuple[int, int]:
    """How many leases the index gets, and the size in bytes that the volume must have for them."""
    fits = device.size // geometry.align_size - FIXED_AREAS
    if device.is_block:
        leases = plan.leases or min(DEFAULT_RESOURCES, fits)
        if leases > fits or fits < 0:
            raise InvalidUse(reason=f"{device.path} has room for {max(fits, 0)} leases of {geometry.align_size} bytes")
        return _checked_leases(leases, geometry), 0
    leases = plan.leases or max(FILE_LEASES, min(DEFAULT_RESOURCES, fits))
    return _checked_leases(leases, geometry), (FIXED_AREAS + leases) * geometry.align_size


def _checked_leases(leases: int, geometry: Geometry) -> int:
    if leases > geometry.max_index_entries:
        raise InvalidUse(reason=f"an index of these sizes names at most {geometry.max_index_entries} leases")
    return leases


def _refuse_unless_empty(device: Device, geometry: Geometry) -> None:
    with Engine() as engine:
        try:
            name, _ = engine.run(probe(Place(device.path), DEFAULT_IO_TIMEOUT))
        except (BadRecord, LeaseholdError) as error:
            if isinstance(error, DiskError) and device.size >= geometry.align_size:
                raise
        else:
            raise VolumeInUse(
                path=device.path, found=f"it holds the lockspace {name.decode(errors='backslashreplace')}"
            )
        length = min(FIXED_AREAS * geometry.align_size, device.size) // device.sector_size * device.sector_size
        for offset in range(0, length, MIB):
            at = engine.run(_first_byte(device.path, offset, min(MIB, length - offset)))
            if at is not None:
                raise VolumeInUse(path=device.path, found=f"there is data at byte {at}")


def _first_byte(path: str, offset: int, length: int) -> Steps[int | None]:
    """The offset of the first byte of this range that is not zero."""
    data = bytes((yield from read(path, offset, length, DEFAULT_IO_TIMEOUT)))
    stripped = data.lstrip(b"\0")
    return offset + length - len(stripped) if stripped else None


def _fill(fd: int, start: int, end: int, path: str, progress: Progress) -> None:
    """Write zeros, and see to it that they are on the disk."""
    began = time.monotonic()
    zeros = bytes(MIB)
    try:
        for offset in range(start, end, MIB):
            os.pwrite(fd, zeros[: min(MIB, end - offset)], offset)
            done = offset + MIB - start
            if done % (16 * MIB) == 0:
                left = (time.monotonic() - began) * (end - start - done) / done
                progress(f"writing {path} ({done // MIB} of {(end - start) // MIB} MiB)", left)
        os.fsync(fd)
    except OSError as failure:
        raise DiskError(operation="write", length=MIB, disk=path, offset=start, errno=failure.errno) from failure


def _write(path: str, plan: Plan, geometry: Geometry, leases: int) -> None:
    with Engine() as engine:
        engine.run(_records(path, plan, geometry, leases))


def _records(path: str, plan: Plan, geometry: Geometry, leases: int) -> Steps[None]:
    """The lockspace's first sector comes last: what was begun and not finished is no volume."""
    area, first = fresh_lockspace(plan.lockspace, geometry, plan.io_timeout)
    yield from write(path, 0, area, INIT_WRITE_TIMEOUT)
    yield from format_index(plan.lockspace, index_place(path, geometry), geometry, leases, plan.hosts)
    yield from write(path, 0, first, INIT_WRITE_TIMEOUT)
