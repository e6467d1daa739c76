"""paxos: leases on a volume, as libvirt's sanlock plugin uses them (lockmanager.md 8), embedded or through the daemon.

Automatic mode: a directory that all hosts share, one lease for each disk, in a file named after the disk, in a
lockspace that is made on demand. Manual mode: the guest's `<lease>` elements name leases that somebody laid out on a
volume, and its disks are not looked at. Both give hosts that run this and hosts that run libvirt with sanlock the same
leases.

The state that a guest takes along names each lease and the version at which it held it (lockmanager.md 4). A lease
that anybody had meanwhile is at a later version, and acquiring with the state is refused then; libvirt's own plugin
only looks whether the state can be read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

from leases.daemon.numbers import NAME_LENGTH, ResourceFlag
from leases.daemon.statestring import format_state, parse_state
from leases.daemon.wire import Disk
from leases.daemon.wire import Resource as PlacedLease
from leases.keeper.watchdog import Watchdog
from leases.manager import (
    Access,
    FailureAction,
    GuestLocks,
    Kind,
    LockManager,
    Loss,
    OnFailure,
    Owner,
    Promises,
    Reach,
    Resource,
    ResourceBusy,
    StateRefused,
    StateStale,
)
from paxos.errors import AlreadyHeld, InvalidUse, LverMismatch
from paxos.timing import DEFAULT_FIRE_TIMEOUT

#: the lockspace of automatic mode, and its file in the directory
LOCKSPACE = "__LIBVIRT__DISKS__"


def automatic_name(disk_path: str) -> str:
    """The lease of a disk, and its file in the directory: MD5 of the path as text, in hex."""
    return hashlib.md5(os.fsencode(disk_path), usedforsecurity=False).hexdigest()


class Host(Protocol):
    """This host's way to leases: a membership of its own, or the daemon's."""

    def prepare(self, lease: PlacedLease) -> None:
        """See to it that the lockspace is joined and, in automatic mode, that the lease is laid out."""

    def version(self, lease: PlacedLease) -> int:
        """At which version the lease is on the disk now."""

    def user(self, owner: Owner, on_failure: OnFailure) -> User: ...

    def close(self) -> None: ...


class User(Protocol):
    """One guest as a user of leases."""

    @property
    def lost(self) -> Loss: ...

    def begin(self) -> None: ...

    def acquire(self, lease: PlacedLease, version: int | None) -> int:
        """Returns the version at which it is held. Raises LverMismatch if it is not at `version` before."""

    def release(self, lease: PlacedLease) -> None: ...

    def adopt(self, pid: int) -> None: ...

    def end(self) -> None: ...


class PaxosLocks(GuestLocks):
    def __init__(
        self, manager: PaxosManager, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure
    ) -> None:
        super().__init__(owner, resources, on_failure)
        self._manager = manager
        self._user = manager.host.user(owner, on_failure)
        self._held: dict[tuple[object, ...], PlacedLease] = {}

    @property
    def lost(self) -> Loss:
        return self._user.lost

    def begin(self) -> None:
        self._manager.require_leases(self.resources)
        self._user.begin()

    def end(self) -> None:
        self._user.end()

    def adopted(self, pid: int) -> None:
        self._user.adopt(pid)

    def foreseen(self) -> str:
        leases = []
        for lease in filter(None, map(self._manager.place, self._lockable())):
            self._manager.host.prepare(lease)
            flags = ResourceFlag.SHARED if lease.shared else ResourceFlag.LVER
            lver = 0 if lease.shared else self._manager.host.version(lease)
            leases.append(PlacedLease(lease.lockspace, lease.name, lease.disks, int(flags), lver))
        return format_state(leases).decode("utf-8", "surrogateescape")

    def take(self, resource: Resource, version: int | None) -> None:
        lease = self._manager.place(resource)
        if lease is None:
            return
        host = self._manager.host
        host.prepare(lease)
        try:
            lver = self._user.acquire(lease, version)
        except AlreadyHeld as held:
            raise ResourceBusy(resource=str(resource), cause=held) from held
        except LverMismatch:
            raise _stale([(str(resource), version or 0, host.version(lease))]) from None
        flags = ResourceFlag.SHARED if lease.shared else ResourceFlag.LVER
        self._held[resource.identity] = PlacedLease(lease.lockspace, lease.name, lease.disks, int(flags), lver)

    def give_back(self, resource: Resource) -> None:
        lease = self._held.pop(resource.identity, None)
        if lease is not None:
            self._user.release(lease)

    def state_of(self, resources: Sequence[Resource]) -> str:
        held = [self._held[resource.identity] for resource in resources if resource.identity in self._held]
        return format_state(held).decode("utf-8", "surrogateescape")

    def versions(self, state: str) -> dict[Resource, int]:
        """Compares all of them with the disk before any is taken, since taking one makes its next version."""
        try:
            saved = parse_state(state.encode("utf-8", "surrogateescape"))
        except InvalidUse as error:
            raise StateRefused(reason=str(error)) from error
        by_name = {(lease.lockspace, lease.name): lease for lease in saved}
        found: dict[Resource, int] = {}
        changed = []
        for resource in self.resources:
            lease = None if resource.access is Access.READ_ONLY else self._manager.place(resource)
            if lease is None:
                continue
            then = by_name.pop((lease.lockspace, lease.name), None)
            if then is None:
                raise StateRefused(reason=f"it says nothing of {resource}")
            if then.flags & ResourceFlag.LVER:
                found[resource] = then.lver
                self._manager.host.prepare(lease)
                now = self._manager.host.version(lease)
                if now != then.lver:
                    changed.append((str(resource), then.lver, now))
        for lockspace, name in by_name:
            raise StateRefused(reason=f"the guest does not use {(lockspace + b':' + name).decode(errors='replace')}")
        if changed:
            raise _stale(changed)
        return found


def _stale(changed: Sequence[tuple[str, int, int]]) -> StateStale:
    what = ", ".join(f"{resource} was at version {saved} and is at {now}" for resource, saved, now in changed)
    return StateStale(reason=what, changed=tuple(changed))


class PaxosManager(LockManager):
    """`directory`: automatic mode in there; None: manual mode.

    lockspaces         manual mode, embedded: what to join, as "NAME:HOST_ID:PATH:OFFSET" (HOST_ID 0: any free one)
    host_id            automatic mode: which host this is; None: any free one
    io_timeout         seconds, for a lockspace that is made; None: the default, or as the lockspace says
    fire_timeout, watchdog   as for a lockspace; embedded only
    daemon             go through the daemon with this run directory ("": the usual one); None: embedded
    require_leases     manual mode: refuse guests that write to disks and have no lease
    """

    name = "paxos"
    promises = Promises(
        excludes=Reach.VOLUME,
        states=True,
        stops_guests=True,
        failure_actions=frozenset({FailureAction.POWEROFF, FailureAction.PAUSE, FailureAction.RESTART}),
    )

    def __init__(
        self,
        directory: str | None = None,
        *,
        lockspaces: Sequence[str] = (),
        host_id: int | None = None,
        io_timeout: int | None = None,
        fire_timeout: int = DEFAULT_FIRE_TIMEOUT,
        watchdog: str | Watchdog = "guardian",
        daemon: str | None = None,
        require_leases: bool = True,
    ) -> None:
        self.directory = directory
        self._require_leases = require_leases
        self.host: Host
        if daemon is None:
            from backends.paxos_embedded import EmbeddedHost

            self.host = EmbeddedHost(directory, lockspaces, host_id, io_timeout, fire_timeout, watchdog)
        else:
            from backends.paxos_daemon import DaemonHost

            self.host = DaemonHost(daemon, directory, host_id or 0, io_timeout or 0)

    def locks_of(self, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure) -> PaxosLocks:
        return PaxosLocks(self, owner, resources, on_failure)

    def place(self, resource: Resource) -> PlacedLease | None:
        """The lease that stands for a resource; None for a disk in manual mode. Raises InvalidUse."""
        shared = int(ResourceFlag.SHARED) if resource.access is Access.SHARED else 0
        if resource.kind is Kind.LEASE:
            lockspace, name = resource.lockspace.encode(), resource.name.encode()
            if not 0 < len(name) < NAME_LENGTH or not 0 < len(lockspace) < NAME_LENGTH:
                raise InvalidUse(reason=f"{resource}: names have 1 to {NAME_LENGTH - 1} bytes")
            return PlacedLease(lockspace, name, (Disk(resource.path, resource.offset),), shared)
        if self.directory is None:
            return None
        digest = automatic_name(resource.name)
        disk = Disk(os.path.join(self.directory, digest), 0)
        return PlacedLease(LOCKSPACE.encode(), digest.encode(), (disk,), shared)

    def require_leases(self, resources: Sequence[Resource]) -> None:
        """Manual mode: who writes to a disk alone must have a lease. Raises InvalidUse."""
        if self.directory is not None or not self._require_leases:
            return
        writes = any(one.kind is Kind.DISK and one.access is Access.EXCLUSIVE for one in resources)
        if writes and not any(one.kind is Kind.LEASE for one in resources):
            raise InvalidUse(reason="the guest writes to disks and has no lease for them")

    def close(self) -> None:
        self.host.close()
