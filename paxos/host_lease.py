"""Host leases (delta leases): owning a host id, and proving again and again that its owner lives.

The idea (Chockler and Malkhi's light-weight leases, as sanlock uses them): each host id has one sector. To take it,
write your name into it, wait so long that anyone who passed the same check at the same moment has written too, and
read it back: the last writer owns it. To keep it, write a new timestamp before the old one goes stale.

The invariant: while a host id has an owner, nobody else writes its sector. A change of owner takes at least
`host_dead` seconds without a renewal, by which time the old owner's watchdog has fired; so a change of owner or
generation is proof to everybody that the old owner is dead (ondisk.md section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paxos.errors import (
    Aborted,
    BadRecord,
    DiskError,
    HostIdBusy,
    HostIdInvalid,
    IOTimeout,
    RenewDiff,
    RenewOwner,
    SectorSizeError,
)
from paxos.geometry import PROBE_LENGTH, Geometry, Place
from paxos.lockspace_area import LockspaceArea
from paxos.records import (
    DELTA_MAGIC,
    Leader,
    bitmap_of,
    name_of,
    replace_name,
    same_name,
    verify_delta,
    verify_header,
)
from paxos.steps import Pending, Steps, now, read, reap, sleep, write
from paxos.timing import Timing, judging_io_timeout

#: bytes of a host name that are stored: one of the 48 is kept for a NUL (ondisk.md 1.3)
MAX_OWNER_NAME = 47
_BITMAP = slice(256, 512)

#: called with what is being waited for and the seconds it takes
Progress = Callable[[str, float], None]
#: given a lockspace area just read (valid during the call) and the time, in seconds, after the read
Examine = Callable[[memoryview, float], object]


@dataclass(frozen=True, slots=True)
class Beacon:
    """What a host tells others with each renewal: whom to look at it, and at most one event."""

    hosts: frozenset[int] = frozenset()
    #: generation of the event's target, event number (0 = none), data
    event: tuple[int, int, int] = (0, 0, 0)


@dataclass(slots=True)
class HostLease:
    """A host id that is ours. One thread renews it; the fields are that thread's memory of the disk."""

    area: LockspaceArea
    host_id: int
    generation: int
    record: Leader
    #: seconds of our clock when the last renewal that succeeded was about to be written
    last_success: float
    #: the record that was there before ours
    previous: Leader
    #: `last_success` as it was before the last renewal: the one that a later renewal's check has confirmed
    confirmed_success: float
    #: whether `record` is surely what is on the disk
    certain: bool = True
    #: a renewal's read that timed out and was not given back yet
    overdue: Pending | None = None

    @property
    def name(self) -> bytes:
        return name_of(self.record.resource_name)


@dataclass(frozen=True, slots=True)
class Renewal:
    """One successful renewal."""

    timestamp: int
    read_seconds: float
    write_seconds: float
    #: an older owner's record that a late write had put over ours, and that was written over again
    healed: Leader | None


def probe(place: Place, timeout: float) -> Steps[tuple[bytes, Geometry]]:
    """The name and sizes of the lockspace at `place`. Raises BadRecord (-223, -224, -225, -230), DiskError."""
    view = yield from read(place.disk, place.offset, PROBE_LENGTH, timeout)
    leader = Leader.unpack(view)
    verify_header(leader, place, DELTA_MAGIC, "lockspace")
    if leader.sector_size not in (512, 4096):
        raise SectorSizeError(place=place, record="lockspace", found=leader.sector_size)
    return name_of(leader.space_name), Geometry.from_leader(leader.sector_size, leader.flags)


def read_sector(area: LockspaceArea, host_id: int, timeout: float) -> Steps[tuple[Leader, bytes]]:
    """The verified delta lease of `host_id`, and a copy of its sector."""
    sector_size = area.geometry.sector_size
    offset = area.place.at(area.geometry.delta_offset(host_id))
    view = yield from read(area.place.disk, offset, sector_size, timeout)
    sector = bytes(view)
    leader = Leader.unpack(sector)
    verify_delta(leader, Place(area.place.disk, offset), area.name)
    return leader, sector


def _write_sector(area: LockspaceArea, host_id: int, sector: bytes, timeout: float) -> Steps[None]:
    offset = area.place.at(area.geometry.delta_offset(host_id))
    yield from write(area.place.disk, offset, sector, timeout)


def _with_bitmap(sector: bytes, bitmap: bytes) -> bytes:
    return sector[: _BITMAP.start] + bitmap + sector[_BITMAP.stop :]


_NO_BITS = bitmap_of(())


def acquire(
    area: LockspaceArea,
    host_id: int,
    owner_name: bytes,
    timing: Timing,
    progress: Progress = lambda _what, _seconds: None,
) -> Steps[HostLease]:
    """Take `host_id` for the host called `owner_name` (unique in the cluster; cut to 47 bytes).

    Takes 2 io_timeouts of the last owner when the id is free, and `host_dead` more when its owner has not left.
    Raises HostIdInvalid, HostIdBusy, BadRecord, DiskError; Aborted may be thrown in while it sleeps.
    """
    if not 1 <= host_id <= area.geometry.max_hosts:
        raise HostIdInvalid(host_id=host_id, max_hosts=area.geometry.max_hosts)
    owner_name = owner_name[:MAX_OWNER_NAME]
    found, sector = yield from read_sector(area, host_id, timing.io_timeout)
    again, _ = yield from read_sector(area, host_id, timing.io_timeout)
    if again != found:
        # It changes right now, or one of the reads went astray: what the next record builds on must be certain.
        raise HostIdBusy(host_id=host_id, lockspace=area.name, owner_name=again.resource_name)
    if found.owner_id not in (0, host_id):
        # Another host's record that went astray. Which generation it covers nobody knows: none may be given out again.
        place = Place(area.place.disk, area.place.at(area.geometry.delta_offset(host_id)))
        raise BadRecord(place=place, record=f"host lease (it is of host {found.owner_id})")
    other = Timing(judging_io_timeout(found.io_timeout, timing.io_timeout), timing.fire_timeout)
    if not found.free and not _is_our_last(found, owner_name, (yield from now()), other):
        found, sector = yield from _wait_for_death(area, host_id, found, timing, other, progress)

    started = yield from now()
    record = found.changed(
        owner_id=host_id,
        owner_generation=found.owner_generation + 1,
        timestamp=int(started),
        io_timeout=int(timing.io_timeout) & 0xFF,
        resource_name=replace_name(found.resource_name, owner_name),
    )
    yield from _write_sector(area, host_id, _with_bitmap(record.into(sector), _NO_BITS), timing.io_timeout)
    lease = HostLease(
        area, host_id, record.owner_generation, record, started, previous=found, confirmed_success=started
    )
    progress("settling: a rival for this host id would have written by then", other.join_settle)
    try:
        yield from sleep(other.join_settle)
    except Aborted:
        yield from _undo(lease, timing)
        raise
    seen, _ = yield from read_sector(area, host_id, timing.io_timeout)
    if seen != record:
        raise HostIdBusy(host_id=host_id, lockspace=area.name, owner_name=seen.resource_name)
    return lease


def _is_our_last(found: Leader, owner_name: bytes, at: float, timing: Timing) -> bool:
    """Whether `found` is what an old instance of ours left, which cannot still be running: same name, same machine.

    Stricter than the reference: by this boot's clock it must not be so old that another host configured with our id may
    have taken it since, and this be a late write of ours over its record.
    """
    return same_name(found.resource_name, owner_name) and at - found.timestamp < timing.host_dead


def _undo(lease: HostLease, timing: Timing) -> Steps[None]:
    """Free an id that was taken but not proven ours, unless a rival has it; so the next one need not wait."""
    seen, _ = yield from read_sector(lease.area, lease.host_id, timing.io_timeout)
    if seen == lease.record:
        yield from release(lease, timing)


def _wait_for_death(
    area: LockspaceArea, host_id: int, found: Leader, timing: Timing, other: Timing, progress: Progress
) -> Steps[tuple[Leader, bytes]]:
    """Wait until the owner of `found` is dead by its own rules, in one-second steps (abortable)."""
    progress(f"host id {host_id} was not given back: waiting until its owner is surely dead", other.host_dead)
    deadline = (yield from now()) + other.host_dead
    while (left := deadline - (yield from now())) > 0:
        yield from sleep(min(1.0, left))
    again, sector = yield from read_sector(area, host_id, timing.io_timeout)
    if again != found and not again.free:
        raise HostIdBusy(host_id=host_id, lockspace=area.name, owner_name=again.resource_name)
    return again, sector


def renew(lease: HostLease, timing: Timing, beacon: Beacon, examine: Examine) -> Steps[Renewal]:
    """Prove once more that we live: read the whole area, check the own sector, write it with a new timestamp.

    The area as read goes to `examine` before anything is written, and even if the write then fails.
    Raises IOTimeout and DiskError (the lease stays ours until `renewal_fail`), or HostLeaseLost and BadRecord
    (the sector is not ours any more: recovery starts at once).
    """
    area = lease.area
    start = yield from now()
    view = yield from _read_area(lease, timing)
    offset = area.geometry.delta_offset(lease.host_id)
    sector = bytes(view[offset : offset + area.geometry.sector_size])
    found = Leader.unpack(sector)
    verify_delta(found, Place(area.place.disk, area.place.at(offset)), area.name)
    healed = _check_ours(lease, found)
    examine(view, (yield from now()))
    written_at = yield from now()
    generation, event, data = beacon.event
    base = lease.record if healed else found
    record = base.changed(
        timestamp=int(written_at),
        io_timeout=int(timing.io_timeout) & 0xFF,
        write_id=generation,
        write_generation=event,
        write_timestamp=data,
    )
    new_sector = _with_bitmap(record.into(sector), bitmap_of(beacon.hosts))
    lease.certain = False
    lease.record = record
    yield from _write_sector(area, lease.host_id, new_sector, timing.renewal_write)
    lease.certain = True
    lease.confirmed_success, lease.last_success = lease.last_success, written_at
    done = yield from now()
    return Renewal(record.timestamp, written_at - start, done - written_at, healed)


def _read_area(lease: HostLease, timing: Timing) -> Steps[memoryview]:
    """The whole area; where the last attempt's read is still overdue, what it brings late (ondisk.md 4.3 step 1)."""
    if lease.overdue is not None:
        pending, lease.overdue = lease.overdue, None
        try:
            view = yield from reap(pending, timing.renewal_read_extend)
            if view is not None:
                return view
        except DiskError:
            pass  # abandoned: the driver keeps its buffer until it comes back
    place, geometry = lease.area.place, lease.area.geometry
    try:
        return (yield from read(place.disk, place.offset, geometry.align_size, timing.renewal_read))
    except IOTimeout as timeout:
        lease.overdue = timeout.pending
        raise


def _check_ours(lease: HostLease, found: Leader) -> Leader | None:
    """Raise unless the record found is ours; return it if a dead predecessor's late write covers ours."""
    ours = lease.record
    if (
        found.owner_id == ours.owner_id
        and found.owner_generation == ours.owner_generation
        and found.resource_name == ours.resource_name
    ):
        if lease.certain and found != ours:
            raise RenewDiff(host_id=lease.host_id, lockspace=lease.area.name)
        return None
    if _is_late_write_of(lease.previous, found):
        return found
    raise RenewOwner(
        host_id=lease.host_id,
        lockspace=lease.area.name,
        owner_name=found.resource_name,
        generation=found.owner_generation,
    )


def _is_late_write_of(previous: Leader, found: Leader) -> bool:
    """Whether `found` can only be a renewal that the owner before us wrote before it died.

    Better than the reference, which loses its lockspace to these 512 bytes. Whoever takes a host id raises its
    generation, so a record of our predecessor's generation is no new owner; and it stopped renewing at most
    `renewal_fail` after the last renewal that we saw of it.
    """
    alive_for = Timing(previous.io_timeout or 1).renewal_fail
    return (
        not previous.free
        and found.owner_id == previous.owner_id
        and found.owner_generation == previous.owner_generation
        and found.resource_name == previous.resource_name
        and previous.timestamp <= found.timestamp <= previous.timestamp + alive_for
    )


def release(lease: HostLease, timing: Timing) -> Steps[None]:
    """Give the host id back. Only where the last renewal succeeded; the caller sees to that (ondisk.md 4.4)."""
    record = lease.record.changed(timestamp=0)
    sector = record.sector(lease.area.geometry.sector_size)
    yield from _write_sector(lease.area, lease.host_id, _with_bitmap(sector, _NO_BITS), timing.io_timeout)
    lease.record = record
