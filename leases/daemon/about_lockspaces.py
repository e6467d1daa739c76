"""Commands that join, ask about and leave lockspaces (daemon.md 7.2 to 7.4)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from leases import events
from leases.daemon.about_hosts import deliver
from leases.daemon.call import Call, Refused, Reply, Task, Wait, work
from leases.daemon.kept_membership import KeptMembership
from leases.daemon.leaving import leave
from leases.daemon.numbers import AddFlag, InquireLockspaceFlag, RemoveFlag
from leases.daemon.records_of import of_space
from leases.daemon.spaces import OK, RenewalRecord, Space, SpaceState
from leases.daemon.users import ClientUsers
from leases.daemon.wire import EventMessage, HostEvent, Lockspace
from leases.engines import Engines
from leases.lockspace import Lockspace as JoinedLockspace
from paxos import host_lease
from paxos.errors import (
    Aborted,
    BadRecord,
    CannotOpen,
    HostIdInvalid,
    HostLeaseLost,
    IOTimeout,
    LeaseholdError,
    LockspaceNameError,
)
from paxos.geometry import Place
from paxos.lockspace_area import LockspaceArea
from paxos.timing import MAX_IO_TIMEOUT, Timing

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon

_LOOK = 0.1


# ------------------------------------------------------------------------------------------------------ joining


@dataclass(frozen=True, slots=True)
class DaemonTiming(Timing):
    """Times as the daemon's settings change them; seconds, None: as usual."""

    grace: int | None = None
    bitmap_seconds: int | None = None
    read_extend: int | None = None

    @property
    def kill_grace(self) -> float:
        return Timing.kill_grace.fget(self) if self.grace is None else float(self.grace)  # type: ignore[attr-defined]

    @property
    def bitmap_life(self) -> float:
        return 6 * self.io_timeout if self.bitmap_seconds is None else float(self.bitmap_seconds)

    @property
    def renewal_read_extend(self) -> float:
        return self.io_timeout if self.read_extend is None else float(self.read_extend)


def add(call: Call) -> Task[Reply]:
    """Join. Without ASYNC the answer comes when that has ended, one way or another."""
    daemon, wanted = call.daemon, Lockspace.unpack(call.payload)
    if not wanted.name or not wanted.host_id or not wanted.disk.path:
        raise Refused(-errno.EINVAL)
    if daemon.ending:
        raise Refused(-errno.EPERM)
    io_timeout = call.header.data or daemon.settings.io_timeout
    if not 1 <= io_timeout <= MAX_IO_TIMEOUT:
        raise Refused(-errno.EINVAL)
    space = daemon.spaces.begin(wanted, io_timeout)
    daemon.journal.info("joining lockspace", lockspace=space.name, host_id=wanted.host_id, disk=wanted.disk.path)
    if call.header.flags & AddFlag.ASYNC:
        daemon.server.spawn(_join_unheard(daemon, space), f"joining {space.text}")
        return Reply()
    yield from join(daemon, space)
    return Reply()


def _join_unheard(daemon: Daemon, space: Space) -> Task[None]:
    try:
        yield from join(daemon, space)
    except (LeaseholdError, Refused):
        return  # it is in the log, and nobody waits for it


def join(daemon: Daemon, space: Space) -> Task[None]:
    """Bring a space from ADDING to HELD, or out of the table. Raises Refused, LeaseholdError."""
    try:
        lockspace = yield from work(partial(_join, daemon, space), own_thread=f"join {space.text}")
    except LeaseholdError as failure:
        daemon.spaces.remove(space)
        daemon.journal.error(
            "lockspace not joined", lockspace=space.name, host_id=space.wire.host_id, code=failure.code, reason=failure
        )
        if isinstance(failure, Aborted):
            raise Refused(-errno.EPERM) from None
        if isinstance(failure, CannotOpen):
            raise Refused(-errno.ENODEV) from None
        raise
    joined_at = int(lockspace.vitals.last_success)
    space.state = SpaceState.HELD
    space.acquiring.result = space.renewing.result = OK
    space.acquiring.attempt = space.acquiring.success = joined_at
    space.renewing.attempt = space.renewing.success = joined_at
    space.history.appendleft(RenewalRecord(joined_at))
    daemon.ledger.put(*of_space(space))
    daemon.journal.info("lockspace joined", lockspace=space.name, generation=lockspace.generation)
    if space.abort.is_set():  # asked to leave while it was joining
        yield from leave(daemon, space)
        raise Refused(-errno.EPERM)


def _join(daemon: Daemon, space: Space) -> JoinedLockspace:
    """Done by a thread of its own: it waits for the disk and for other hosts."""
    wire, settings = space.wire, daemon.settings
    place = Place(wire.disk.path, wire.disk.offset)
    engines = Engines()
    try:
        name, geometry = engines.run(host_lease.probe(place, space.io_timeout), space.abort)
    finally:
        engines.close()
    if name != wire.name:
        raise LockspaceNameError(place=place, record="lockspace", found=name, expected=wire.name)
    if wire.host_id > geometry.max_hosts:
        raise HostIdInvalid(host_id=wire.host_id, max_hosts=geometry.max_hosts)
    timing = DaemonTiming(
        space.io_timeout,
        settings.watchdog_fire_timeout,
        daemon.kill_grace,
        settings.bitmap_seconds,
        settings.renewal_read_extend_sec,
    )
    area = LockspaceArea(name, place, geometry)
    link, watchdog = daemon.keeper()
    membership = KeptMembership(area, wire.host_id, daemon.host_name, timing, watchdog, link)
    membership.uses.users = ClientUsers(daemon, space)
    membership.announcer.hooks.append(lambda event: daemon.loop.post(partial(happened, daemon, space, event)))
    lockspace = JoinedLockspace(membership, None)
    space.lockspace, space.membership = lockspace, membership
    membership.start(_no_progress, space.abort)
    return lockspace


def _no_progress(_what: str, _seconds: float) -> None:
    pass


# ------------------------------------------------------------------------------------------- what happens to it


def happened(daemon: Daemon, space: Space, event: events.Event) -> None:
    """Told by the lockspace's own threads, carried out by the loop's."""
    match event:
        case events.Renewed():
            _renewed(space, event)
        case events.RenewalFailed():
            _renewal_failed(space, event)
            daemon.journal.error("renewal failed", lockspace=space.name, reason=event.error)
        case events.RenewalLate():
            daemon.journal.warning("renewals are late", lockspace=space.name, seconds=event.seconds)
        case events.Stalled():
            daemon.journal.error("this host stood still", lockspace=space.name, seconds=event.seconds)
        case events.RecoveryBegun():
            space.failing = space.killing = True
            daemon.journal.error("lockspace failed: stopping its users", lockspace=space.name, reason=event.reason)
            _let_go_of_orphans(daemon, space)
        case events.LeaseGone():
            daemon.journal.error("lease lost", lockspace=space.name, lease=event.resource, reason=event.reason)
        case events.HolderStopped():
            daemon.journal.warning("client stopped", lockspace=space.name, pid=event.pid, how=event.how)
        case events.LeaseRequested():
            daemon.journal.info("lease requested", lockspace=space.name, lease=event.resource, force=event.force)
        case events.HostEvent():
            _deliver(space, event)
        case events.Unsettled():
            daemon.journal.warning("lease unsettled", lockspace=space.name, lease=event.resource, reason=event.error)
        case events.Settled():
            daemon.journal.info("lease settled", lockspace=space.name, lease=event.resource)
        case events.Left():
            daemon.journal.info("lockspace left", lockspace=space.name, failure=event.failure)
            daemon.space_left(space)


def _renewed(space: Space, event: events.Renewed) -> None:
    at = int(event.expires - space.joined.membership.timing.renewal_fail)
    space.renewing.result, space.renewing.attempt, space.renewing.success = OK, at, at
    space.history.append(RenewalRecord(at, int(event.read_seconds * 1000), int(event.write_seconds * 1000)))


def _renewal_failed(space: Space, event: events.RenewalFailed) -> None:
    error, space.renewing.attempt = event.error, int(event.at)
    space.renewing.result = getattr(error, "code", -errno.EIO)
    if isinstance(error, HostLeaseLost | BadRecord):
        space.corrupt_result = error.code
    if space.history:
        last = space.history.pop()
        timeouts, errors = last.next_timeouts, last.next_errors
        if isinstance(error, IOTimeout):
            timeouts += 1
        else:
            errors += 1
        space.history.append(RenewalRecord(last.timestamp, last.read_ms, last.write_ms, timeouts, errors))


def _let_go_of_orphans(daemon: Daemon, space: Space) -> None:
    """Leases that no client uses do not keep a failed lockspace, unless it was said that they do."""
    for token in daemon.tokens.of_space(space):
        if token.client is None and token.lease is not None:
            token.lease.lost.acknowledge()


def _deliver(space: Space, event: events.HostEvent) -> None:
    space.requests[event.from_host] = int(event.at)
    told = HostEvent(space.wire.host_id, event.to_generation, event.event, event.data)
    deliver(space, EventMessage(told, event.from_host, event.from_generation))


# --------------------------------------------------------------------------------------------- asking, leaving


def inquire(call: Call) -> Task[Reply]:
    """0 held; ENOENT not; EINPROGRESS on its way in or out, which with WAIT is waited for."""
    wanted = Lockspace.unpack(call.payload)
    while True:
        space = call.daemon.spaces.find(wanted)
        if space is None:
            raise Refused(-errno.ENOENT)
        if space.usable:
            return Reply()
        if not call.header.flags & InquireLockspaceFlag.WAIT:
            raise Refused(-errno.EINPROGRESS)
        if call.client.gone:
            return Reply()
        yield Wait(_LOOK)


def remove(call: Call) -> Task[Reply]:
    """Leave; whoever uses leases in it is killed, unless UNUSED says that nobody may."""
    daemon, wanted, flags = call.daemon, Lockspace.unpack(call.payload), call.header.flags
    space = daemon.spaces.find(wanted)
    if flags & RemoveFlag.UNUSED and space is not None and daemon.tokens.of_space(space):
        raise Refused(-errno.EBUSY)
    if space is None:
        raise Refused(-errno.ENOENT)
    if space.state is SpaceState.REMOVING:
        raise Refused(-errno.EINPROGRESS)
    if space.index_busy:
        raise Refused(-errno.EBUSY)
    if flags & RemoveFlag.ASYNC:
        daemon.server.spawn(leave(daemon, space), f"leaving {space.text}")
    else:
        yield from leave(daemon, space)
    return Reply()
