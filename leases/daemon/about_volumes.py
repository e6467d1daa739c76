"""Commands that format and read lockspaces and leases; no lockspace need be joined for them (daemon.md 7.9)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace

from leases.daemon.call import Call, Refused, Reply, Task
from leases.daemon.disks import opened, opened_or_nodev, place_of, stated_sizes
from leases.daemon.numbers import ResourceFlag, WriteResourceFlag
from leases.daemon.wire import Disk, Host, Lockspace, Resource
from paxos.disk.device import Device
from paxos.errors import DiskError, LeaseholdError, LockspaceNameError, ResourceNameError
from paxos.geometry import DEFAULT_ALIGN, PROBE_LENGTH, Geometry, Place
from paxos.host_lease import probe
from paxos.lease_area import LeaseArea, survey
from paxos.owners import owners
from paxos.records import (
    DELTA_MAGIC,
    PAXOS_MAGIC,
    Leader,
    fresh_lockspace,
    fresh_resource,
    name_of,
    verify_header,
)
from paxos.steps import Steps, now, read, write
from paxos.timing import DEFAULT_IO_TIMEOUT


def align(call: Call) -> Task[Reply]:
    """The align size that goes with the sector size of a disk, as a positive result."""

    def use(device: Device) -> Steps[int]:
        yield from ()
        return DEFAULT_ALIGN[device.sector_size]

    return Reply((yield from opened_or_nodev(Disk.unpack(call.payload), use)))


# ---------------------------------------------------------------------------------------------------- lockspaces


def write_lockspace(call: Call) -> Task[Reply]:
    wanted = Lockspace.unpack(call.payload)
    sizes, limit = stated_sizes(wanted.flags), call.daemon.settings.write_init_io_timeout
    io_timeout, place = call.header.data2 or DEFAULT_IO_TIMEOUT, place_of(wanted.disk)

    def use(device: Device) -> Steps[None]:
        geometry = sizes or Geometry.default(device.sector_size)
        area, first = fresh_lockspace(wanted.name, geometry, io_timeout)
        yield from write(place.disk, place.offset, area, limit)
        yield from write(place.disk, place.offset, first, limit)

    yield from opened_or_nodev(wanted.disk, use)
    call.daemon.journal.info("lockspace formatted", lockspace=wanted.name, disk=place, pid=call.client.credentials.pid)
    return Reply()


def read_lockspace(call: Call) -> Task[Reply]:
    """Name, sizes and io_timeout; an empty name matches any. The structure comes back in any case."""
    wanted = Lockspace.unpack(call.payload)
    place, host_id = place_of(wanted.disk), wanted.host_id or 1

    def use(_device: Device) -> Steps[tuple[Lockspace, int]]:
        name, geometry = yield from probe(place, DEFAULT_IO_TIMEOUT)
        if wanted.name not in (b"", name):
            raise LockspaceNameError(place=place, record="lockspace", found=name, expected=wanted.name)
        offset = place.at((host_id - 1) * geometry.sector_size)
        view = yield from read(place.disk, offset, geometry.sector_size, DEFAULT_IO_TIMEOUT)
        leader = Leader.unpack(view)
        verify_header(leader, Place(place.disk, offset), DELTA_MAGIC, "lockspace")
        return replace(wanted, name=name, host_id=host_id, flags=geometry.wire_flags), leader.io_timeout

    try:
        found, io_timeout = yield from opened_or_nodev(wanted.disk, use)
    except (LeaseholdError, Refused) as failure:
        return Reply(failure.code, payload=wanted.pack())
    return Reply(0, io_timeout, found.pack())


# --------------------------------------------------------------------------------------------------------- leases


def write_resource(call: Call) -> Task[Reply]:
    """Format a lease on each of its disks, or with CLEAR wipe it.

    Better than the reference, whose client puts the number of hosts where its daemon does not look.
    """
    wanted = Resource.unpack_with_disks(call.payload)
    sizes, limit = stated_sizes(wanted.flags), call.daemon.settings.write_init_io_timeout
    num_hosts = call.header.data2 or call.header.data
    if not wanted.disks:
        raise Refused(-errno.ERANGE)
    clear = bool(call.header.flags & WriteResourceFlag.CLEAR)

    def on(disk: Disk) -> Callable[[Device], Steps[None]]:
        def use(device: Device) -> Steps[None]:
            geometry = sizes or Geometry.default(device.sector_size)
            cleared_at = int((yield from now())) if clear else None
            image = fresh_resource(wanted.lockspace, wanted.name, geometry, num_hosts, cleared_at)
            yield from write(disk.path, disk.offset, image, limit)

        return use

    for disk in wanted.disks:
        yield from opened(disk, on(disk))
    call.daemon.journal.info(
        "lease cleared" if clear else "lease formatted", lockspace=wanted.lockspace, lease=wanted.name,
        disk=place_of(wanted.disks[0]), pid=call.client.credentials.pid,
    )  # fmt: skip
    return Reply()


@dataclass(frozen=True, slots=True)
class _Found:
    area: LeaseArea
    leader: Leader


def _look(wanted: Resource) -> Steps[_Found]:
    """The leader record on the first disk, checked as far as a reader must; empty names match any."""
    place = place_of(wanted.disks[0])
    leader = Leader.unpack((yield from read(place.disk, place.offset, PROBE_LENGTH, DEFAULT_IO_TIMEOUT)))
    verify_header(leader, place, PAXOS_MAGIC, "resource lease")
    lockspace, name = name_of(leader.space_name), name_of(leader.resource_name)
    if wanted.lockspace not in (b"", lockspace):
        raise LockspaceNameError(place=place, record="resource lease", found=lockspace, expected=wanted.lockspace)
    if wanted.name not in (b"", name):
        raise ResourceNameError(place=place, record="resource lease", found=name, expected=wanted.name)
    geometry = Geometry.from_leader(leader.sector_size, leader.flags)
    return _Found(LeaseArea(lockspace, name, place, geometry), leader)


def read_resource(call: Call) -> Task[Reply]:
    """Names, version and sizes. The structure comes back in any case."""
    wanted = Resource.unpack_with_disks(call.payload)
    if not wanted.disks:
        return Reply(-errno.ERANGE, payload=wanted.pack())
    try:
        found = yield from opened(wanted.disks[0], lambda _device: _look(wanted))
    except LeaseholdError as failure:
        return Reply(failure.code, payload=wanted.pack())
    sizes = found.area.geometry.wire_flags
    shown = replace(wanted, lockspace=found.area.lockspace, name=found.area.name, lver=found.leader.lver, flags=sizes)
    return Reply(payload=shown.pack())


def read_owners(call: Call) -> Task[Reply]:
    """Who holds a lease, by what is on its disk: the exclusive owner, or the shared ones."""
    wanted = Resource.unpack_with_disks(call.payload)
    if not wanted.disks:
        return Reply(-errno.ERANGE, payload=wanted.pack())

    def use(_device: Device) -> Steps[tuple[_Found, list[Host]]]:
        found = yield from _look(wanted)
        scene = yield from survey(found.area, 1, DEFAULT_IO_TIMEOUT)
        return found, [Host(one.host_id, one.generation, one.timestamp) for one in owners(scene)]

    try:
        found, hosts = yield from opened(wanted.disks[0], use)
    except DiskError as failure:
        return Reply(failure.code, payload=wanted.pack())
    except LeaseholdError as failure:
        unknown = failure.code == -223 and not wanted.flags & _SIZES
        return Reply(-errno.EINVAL if unknown else failure.code, payload=wanted.pack())
    stated = wanted.flags & _SIZES
    if stated and stated != found.area.geometry.wire_flags:
        return Reply(-errno.EINVAL, payload=wanted.pack())
    shared = bool(hosts) and not hosts[0].timestamp
    flags = wanted.flags | (int(ResourceFlag.SHARED) if shared else 0)
    shown = replace(wanted, lockspace=found.area.lockspace, name=found.area.name, lver=found.leader.lver, flags=flags)
    return Reply(0, len(hosts), shown.pack() + b"".join(host.pack() for host in hosts))


_SIZES = 0x3F0
