"""Commands about a resource index: which lease lies where on a volume (daemon.md 7.14).

Changes are made under the lease that guards the index, unlike some of the reference's. Where the lockspace is not
joined, which clients must say, there is no such lease to be had, and they see to it that nobody else is at it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from leases.daemon.call import Call, Refused, Reply, Task, work
from leases.daemon.disks import opened, place_of, stated_sizes
from leases.daemon.numbers import IndexFlag
from leases.daemon.spaces import Space
from leases.daemon.wire import Index as WireIndex
from leases.daemon.wire import IndexEntry
from leases.lockspace import Lockspace
from leases.operations import Operations
from paxos import index
from paxos.disk.device import Device
from paxos.errors import LeaseholdError
from paxos.geometry import Geometry
from paxos.liveness import Member
from paxos.steps import Steps
from paxos.timing import DEFAULT_IO_TIMEOUT

T = TypeVar("T")


def format_index(call: Call) -> Task[Reply]:
    wanted = WireIndex.unpack(call.payload)
    sizes, place = stated_sizes(wanted.flags), place_of(wanted.disk)

    def use(device: Device) -> Steps[None]:
        geometry = sizes or Geometry.default(device.sector_size)
        yield from index.format_index(wanted.lockspace, place, geometry, wanted.max_resources)

    yield from opened(wanted.disk, use)
    call.daemon.journal.info("index formatted", lockspace=wanted.lockspace, disk=place)
    return Reply()


def lookup(call: Call) -> Task[Reply]:
    wanted, entry = _unpacked(call)

    def look(place: index.Index) -> Steps[IndexEntry]:
        name, offset = yield from index.lookup(place, DEFAULT_IO_TIMEOUT, entry.name or None, entry.offset or None)
        return replace(entry, name=name, offset=offset)

    return (yield from _answered(entry, _looked(call, wanted, look)))


def _looked(call: Call, wanted: WireIndex, look: Callable[[index.Index], Steps[T]]) -> Task[T]:
    """Something that only reads, with or without the lockspace."""
    if not call.header.flags & IndexFlag.NO_LOCKSPACE:
        _space(call, wanted)

    def use(_device: Device) -> Steps[T]:
        place = yield from index.open_index(wanted.lockspace, place_of(wanted.disk), DEFAULT_IO_TIMEOUT)
        return (yield from look(place))

    return (yield from opened(wanted.disk, use))


def update(call: Call) -> Task[Reply]:
    """Put a name into an entry, or take it out; the lease itself is not touched."""
    wanted, entry = _unpacked(call)
    adding = bool(call.header.flags & IndexFlag.ADD)
    removing = bool(call.header.flags & IndexFlag.REMOVE)
    if not entry.offset or (adding and not entry.name) or adding == removing:
        return Reply(-errno.EINVAL, payload=entry.pack())

    name, after = (entry.name, entry) if adding else (b"", IndexEntry())

    def change(member: Member, place: index.Index) -> Steps[IndexEntry]:
        yield from index.set_entry(member, place, entry.offset, name)
        return after

    def change_offline(place: index.Index) -> Steps[IndexEntry]:
        yield from index.set_entry_offline(place, entry.offset, name, DEFAULT_IO_TIMEOUT)
        return after

    return (yield from _answered(entry, _changed(call, wanted, change, change_offline)))


def create(call: Call) -> Task[Reply]:
    """Make a lease in the first free place; the answer has its offset and no name."""
    wanted, entry = _unpacked(call)
    num_hosts = call.header.data2 or call.header.data

    def change(member: Member, place: index.Index) -> Steps[IndexEntry]:
        area = yield from index.create(member, place, entry.name, num_hosts)
        return IndexEntry(offset=area.place.offset)

    return (yield from _answered(entry, _changed(call, wanted, change)))


def delete(call: Call) -> Task[Reply]:
    """Clear a lease that nobody holds, and its entry."""
    wanted, entry = _unpacked(call)

    def change(member: Member, place: index.Index) -> Steps[IndexEntry]:
        yield from index.delete(member, place, entry.name)
        return IndexEntry()

    return (yield from _answered(entry, _changed(call, wanted, change)))


def rebuild(call: Call) -> Task[Reply]:
    """Write all entries anew from the leases that are there."""

    def change(member: Member, place: index.Index) -> Steps[None]:
        yield from index.rebuild(member, place)

    def change_offline(place: index.Index) -> Steps[None]:
        yield from index.rebuild_offline(place, DEFAULT_IO_TIMEOUT)

    yield from _changed(call, WireIndex.unpack(call.payload), change, change_offline)
    return Reply()


# ------------------------------------------------------------------------------------------------------------


def _unpacked(call: Call) -> tuple[WireIndex, IndexEntry]:
    return WireIndex.unpack(call.payload), IndexEntry.unpack(call.payload, WireIndex.layout.size)


def _space(call: Call, wanted: WireIndex) -> Space:
    """The lockspace of an index, joined. Raises Refused."""
    space = call.daemon.spaces.held(wanted.lockspace)
    if not space.usable:
        raise Refused(-errno.ENOSPC)
    if space.index_busy:
        raise Refused(-errno.EBUSY)
    return space


def _changed(
    call: Call,
    wanted: WireIndex,
    change: Callable[[Member, index.Index], Steps[T]],
    change_offline: Callable[[index.Index], Steps[T]] | None = None,
) -> Task[T]:
    """Something that writes; one at a time in each lockspace.

    With NO_LOCKSPACE, and where this host has not joined it, `change_offline` is what is done.
    """
    offline = call.header.flags & IndexFlag.NO_LOCKSPACE and call.daemon.spaces.get(wanted.lockspace) is None
    if change_offline is not None and offline:
        return (yield from _looked(call, wanted, change_offline))
    space = _space(call, wanted)
    space.index_busy = True
    try:
        return (yield from work(partial(_change, space.joined, wanted, change)))
    finally:
        space.index_busy = False


def _change(lockspace: Lockspace, wanted: WireIndex, change: Callable[[Member, index.Index], Steps[T]]) -> T:
    place = lockspace.membership.engines.run(
        index.open_index(wanted.lockspace, place_of(wanted.disk), DEFAULT_IO_TIMEOUT)
    )
    return Operations(lockspace, lockspace.membership).change_index(place.guard, lambda member: change(member, place))


def _answered(entry: IndexEntry, task: Task[IndexEntry]) -> Task[Reply]:
    """The entry comes back in any case."""
    try:
        found = yield from task
    except (LeaseholdError, Refused) as failure:
        return Reply(failure.code, payload=entry.pack())
    return Reply(payload=found.pack())
