"""The resource index: which lease lies where on a volume, by name (ondisk.md sections 2.7 and 9).

Entry N stands for the resource area at index + (2 + N) areas; the area between is an ordinary lease that guards
changes. An entry is written after its resource when it is created and zeroed before it when it is deleted, so an
entry never points to something that is no lease.

Better than the reference (13 items 4 and 5): no name twice, entry numbers within bounds, every change under the
guarding lease and with its full release, a rebuild believes only records with the right checksum and lockspace,
and a lease that is held is not deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from paxos.errors import (
    BadRecord,
    DiskError,
    IndexFull,
    IndexNameError,
    IndexOffsetError,
    LeaderMagicError,
    LeaseHeld,
    LeaseholdError,
    NameTaken,
    NoSuchLease,
    ResourceNameError,
    ShortIO,
)
from paxos.geometry import PROBE_LENGTH, Geometry, Place
from paxos.index_records import ENTRY_LENGTH, FREE_ENTRY, IndexEntry, IndexHeader, fresh_index
from paxos.lease_area import LeaseArea, survey
from paxos.liveness import Member
from paxos.owners import Owner, owners
from paxos.records import Leader, fresh_resource, name_of, pack_name, verify_paxos
from paxos.resource import Held, Want, acquire, release
from paxos.steps import Steps, now, read, write
from paxos.timing import INIT_WRITE_TIMEOUT

GUARD_NAME = b"rindex_lease"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Index:
    """An index on a disk, as its header says it is."""

    lockspace: bytes
    place: Place
    geometry: Geometry
    max_resources: int

    @property
    def guard(self) -> LeaseArea:
        """The lease that guards changes."""
        place = Place(self.place.disk, self.place.at(self.geometry.align_size))
        return LeaseArea(self.lockspace, GUARD_NAME, place, self.geometry)

    def offset(self, number: int) -> int:
        """The disk offset of the resource of entry `number`."""
        return self.place.at(self.geometry.indexed_resource_offset(number))

    def number(self, offset: int) -> int:
        """The entry number for a resource's disk offset. Raises IndexOffsetError."""
        number, rest = divmod(offset - self.offset(0), self.geometry.align_size)
        if rest or not 0 <= number < self.max_resources:
            raise IndexOffsetError(place=self.place, offset=offset)
        return number

    def lease(self, name: bytes, number: int) -> LeaseArea:
        return LeaseArea(self.lockspace, name, Place(self.place.disk, self.offset(number)), self.geometry)


@dataclass(frozen=True, slots=True)
class Entries:
    """The index area as read: the used entries' names by number, and the bytes."""

    names: dict[int, bytes]
    area: bytes

    def find(self, name: bytes) -> int | None:
        return next((number for number, found in self.names.items() if found == name), None)


def format_index(
    lockspace: bytes, place: Place, geometry: Geometry, max_resources: int = 0, num_hosts: int = 0
) -> Steps[None]:
    """Write an empty index and its guarding lease. Nothing is locked. Raises InvalidUse, DiskError."""
    index = fresh_index(lockspace, geometry, place.offset, max_resources)
    yield from write(place.disk, place.offset, index, INIT_WRITE_TIMEOUT)
    guard = fresh_resource(lockspace, GUARD_NAME, geometry, num_hosts)
    yield from write(place.disk, place.at(geometry.align_size), guard, INIT_WRITE_TIMEOUT)


def open_index(lockspace: bytes, place: Place, timeout: float) -> Steps[Index]:
    """Read and verify the header. Raises BadRecord (-274 to -277), SizesInvalid, DiskError."""
    view = yield from read(place.disk, place.offset, PROBE_LENGTH, timeout)
    header = IndexHeader.unpack(view)
    header.verify(place, lockspace, place.offset)
    return Index(lockspace, place, header.geometry, header.entries)


def read_entries(index: Index, timeout: float) -> Steps[Entries]:
    view = yield from read(index.place.disk, index.place.offset, index.geometry.align_size, timeout)
    area = bytes(view)
    return Entries(_names(index, area), area)


def _names(index: Index, area: bytes) -> dict[int, bytes]:
    start = index.geometry.index_entry_offset(0)
    names = {}
    for number in range(index.max_resources):
        at = start + number * ENTRY_LENGTH
        if any(area[at : at + 8]) or area[at + 16]:
            entry = IndexEntry.unpack(area, at)
            if not entry.free:
                names[number] = name_of(entry.name)
    return names


def lookup(
    index: Index, timeout: float, name: bytes | None = None, offset: int | None = None
) -> Steps[tuple[bytes, int]]:
    """A lease's (name, offset). By name: NoSuchLease; by offset: its name, maybe empty; both: IndexNameError if they
    differ; neither: the first free place (IndexFull)."""
    entries = yield from read_entries(index, timeout)
    if name is not None:
        number = entries.find(name)
        if offset is not None and number != index.number(offset):
            found = entries.names.get(index.number(offset), b"")
            if found != name:
                raise IndexNameError(place=index.place, found=found, offset=offset, expected=name)
            number = index.number(offset)
        if number is None:
            raise NoSuchLease(resource=name, place=index.place)
        return name, index.offset(number)
    if offset is not None:
        return entries.names.get(index.number(offset), b""), offset
    return b"", index.offset(_first_free(index, entries))


def _first_free(index: Index, entries: Entries) -> int:
    for number in range(index.max_resources):
        if number not in entries.names:
            return number
    raise IndexFull(place=index.place, max_resources=index.max_resources)


def create(member: Member, index: Index, name: bytes, num_hosts: int = 0) -> Steps[LeaseArea]:
    """Make a lease in the first free place. Raises NameTaken, IndexFull, HeldElsewhere (the guard), DiskError."""
    pack_name(name)
    return (yield from _guarded(member, index, lambda entries: _create(member, index, entries, name, num_hosts)))


def _create(member: Member, index: Index, entries: Entries, name: bytes, num_hosts: int) -> Steps[LeaseArea]:
    taken = entries.find(name)
    if taken is not None:
        raise NameTaken(resource=name, offset=index.offset(taken))
    number = _first_free(index, entries)
    lease = index.lease(name, number)
    image = fresh_resource(index.lockspace, name, index.geometry, num_hosts)
    yield from write(lease.place.disk, lease.place.offset, image, INIT_WRITE_TIMEOUT)
    entry = IndexEntry.of(name, lease.place.offset)
    yield from _write_entry(index, entries, number, entry, member.timing.io_timeout)
    return lease


def delete(member: Member, index: Index, name: bytes) -> Steps[None]:
    """Remove a lease that nobody holds.

    Raises NoSuchLease, LeaseHeld, BadRecord, HeldElsewhere (the guard), DiskError.
    """
    yield from _guarded(member, index, lambda entries: _delete(member, index, entries, name))


def _delete(member: Member, index: Index, entries: Entries, name: bytes) -> Steps[None]:
    number = entries.find(name)
    if number is None:
        raise NoSuchLease(resource=name, place=index.place)
    lease = index.lease(name, number)
    for owner in (yield from _owners(member, index, lease, number)):
        raise LeaseHeld(resource=name, owner_host=owner.host_id, generation=owner.generation)
    yield from _write_entry(index, entries, number, FREE_ENTRY, member.timing.io_timeout)
    cleared_at = int((yield from now()))
    image = fresh_resource(index.lockspace, name, index.geometry, cleared_at=cleared_at)
    yield from write(lease.place.disk, lease.place.offset, image, INIT_WRITE_TIMEOUT)


def _owners(member: Member, index: Index, lease: LeaseArea, number: int) -> Steps[list[Owner]]:
    """Who holds what lies in the area of entry `number`, whatever its name there is: it may have been renamed.

    What is no lease is held by nobody. What can't be understood, or is damaged, may be held: BadRecord.
    """
    any_host = 1  # not our id: it need not be among the hosts that the lease is laid out for
    try:
        scene = yield from survey(lease, any_host, member.timing.io_timeout)
    except LeaderMagicError:
        return []
    except ResourceNameError as renamed:
        scene = yield from survey(index.lease(renamed.found, number), any_host, member.timing.io_timeout)
    return owners(scene)


def set_entry(member: Member, index: Index, offset: int, name: bytes) -> Steps[None]:
    """Put `name` (empty: nothing) into the entry of a resource offset, without touching the resource.

    Raises IndexOffsetError, NameTaken, HeldElsewhere (the guard), DiskError.
    """
    timeout = member.timing.io_timeout
    yield from _guarded(member, index, lambda entries: _set_entry(index, entries, offset, name, timeout))


def _set_entry(index: Index, entries: Entries, offset: int, name: bytes, timeout: float) -> Steps[None]:
    number = index.number(offset)
    taken = entries.find(name) if name else None
    if taken is not None and taken != number:
        raise NameTaken(resource=name, offset=index.offset(taken))
    entry = IndexEntry.of(name, offset) if name else FREE_ENTRY
    yield from _write_entry(index, entries, number, entry, timeout)


def rebuild(member: Member, index: Index) -> Steps[Entries]:
    """Write all entries anew from the leases that lie in the areas. Raises HeldElsewhere (the guard), DiskError."""
    timeout = member.timing.io_timeout
    return (yield from _guarded(member, index, lambda entries: _rebuild(index, entries, timeout)))


def set_entry_offline(index: Index, offset: int, name: bytes, timeout: float) -> Steps[None]:
    """As `set_entry`, without the guard: for volumes that no host has joined, which the caller sees to."""
    entries = yield from read_entries(index, timeout)
    yield from _set_entry(index, entries, offset, name, timeout)


def rebuild_offline(index: Index, timeout: float) -> Steps[Entries]:
    """As `rebuild`, without the guard: for volumes that no host has joined, which the caller sees to."""
    entries = yield from read_entries(index, timeout)
    return (yield from _rebuild(index, entries, timeout))


def _rebuild(index: Index, entries: Entries, timeout: float) -> Steps[Entries]:
    area = bytearray(entries.area)
    names: dict[int, bytes] = {}
    for number in range(index.max_resources):
        try:
            name = yield from _name_at(index, number, timeout)
        except ShortIO:
            name = None
            names_end = index.geometry.index_entry_offset(number)
            area[names_end:] = bytes(len(area) - names_end)
            break
        if name in names.values():
            name = None  # a second lease of that name can't be found by it; the first one stays
        at = index.geometry.index_entry_offset(number)
        entry = IndexEntry.of(name, index.offset(number)) if name else FREE_ENTRY
        area[at : at + ENTRY_LENGTH] = entry.pack()
        if name:
            names[number] = name
    yield from write(index.place.disk, index.place.offset, bytes(area), INIT_WRITE_TIMEOUT)
    return Entries(names, bytes(area))


def _name_at(index: Index, number: int, timeout: float) -> Steps[bytes | None]:
    """The name of the lease in the area of entry `number`, if there is a sound one of this lockspace."""
    size = index.geometry.sector_size
    view = yield from read(index.place.disk, index.offset(number), size, timeout)
    leader = Leader.unpack(view)
    try:
        verify_paxos(leader, Place(index.place.disk, index.offset(number)), index.lockspace, leader.resource_name, None)
    except BadRecord:
        return None
    return name_of(leader.resource_name)


def _guarded(member: Member, index: Index, change: Callable[[Entries], Steps[T]]) -> Steps[T]:
    """Run `change` on the entries while the guarding lease is ours."""
    held: Held = yield from acquire(member, index.guard, Want(nowait=True))
    try:
        entries = yield from read_entries(index, member.timing.io_timeout)
        result = yield from change(entries)
    except DiskError:
        # What failed may still land on the index, so nobody else may change it: the guard stays ours until it is
        # settled (paxos.settle, on `index.guard`).
        raise
    except LeaseholdError:
        yield from release(member, held)
        raise
    yield from release(member, held)
    return result


def _write_entry(index: Index, entries: Entries, number: int, entry: IndexEntry, timeout: float) -> Steps[None]:
    """Write the one sector in which an entry lies."""
    at = index.geometry.index_entry_offset(number)
    size = index.geometry.sector_size
    start = at - at % size
    sector = bytearray(entries.area[start : start + size])
    sector[at - start : at - start + ENTRY_LENGTH] = entry.pack()
    yield from write(index.place.disk, index.place.at(start), bytes(sector), timeout)
