"""Leases without a daemon: this process is a member of the lockspaces itself, from the first guest until the end."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from backends.paxos import LOCKSPACE
from leases.daemon.statestring import parse_lockspace
from leases.daemon.wire import Resource as PlacedLease
from leases.engines import Engines
from leases.joining import Wish, join
from leases.keeper.watchdog import Watchdog, open_watchdog
from leases.lease import Lease
from leases.lockspace import Lockspace
from leases.manager import OnFailure, Owner
from paxos.disk.device import Devices
from paxos.errors import CannotOpen, LeaseholdError, NotJoined
from paxos.geometry import Geometry, Place
from paxos.host_lease import probe
from paxos.lease_area import LeaseArea, read_leader
from paxos.lockspace_area import LockspaceArea
from paxos.records import Leader, fresh_lockspace, fresh_resource
from paxos.steps import Steps, read
from paxos.timing import DEFAULT_IO_TIMEOUT

#: enough of a record to see its sizes, and a whole sector of any disk (bytes)
_HEAD = 4096


class EmbeddedHost:
    """See PaxosManager for the settings."""

    def __init__(
        self,
        directory: str | None,
        lockspaces: Sequence[str],
        host_id: int | None,
        io_timeout: int | None,
        fire_timeout: int,
        watchdog: str | Watchdog,
    ) -> None:
        self._directory = directory
        self._io_timeout = io_timeout
        self._fire_timeout = fire_timeout
        self._own_watchdog = isinstance(watchdog, str)
        self._watchdog = open_watchdog(watchdog, fire_timeout) if isinstance(watchdog, str) else watchdog
        self._engines = Engines(Devices(read_only=True))
        self._lock = threading.Lock()
        self._joined: dict[bytes, Lockspace] = {}
        self._known = {
            one.name: (one, one.host_id or None) for one in (parse_lockspace(os.fsencode(text)) for text in lockspaces)
        }
        self._host_id = host_id

    # --- lockspaces ---

    def lockspace(self, name: bytes) -> Lockspace:
        """Joined, now if it is not yet. Raises NotJoined for one that is none of ours, and as joining does."""
        with self._lock:
            joined = self._joined.get(name)
            if joined is not None and joined.failure is None:
                return joined
            self._joined[name] = joined = self._join(name)
            return joined

    def _join(self, name: bytes) -> Lockspace:
        if self._directory is not None and name == LOCKSPACE.encode():
            path = os.path.join(self._directory, LOCKSPACE)
            self._make_directory(self._directory)
            whole, first = fresh_lockspace(name, Geometry.default(), self._io_timeout or DEFAULT_IO_TIMEOUT)
            self._make_file(path, first + whole[len(first) :])
            place, host_id = Place(path), self._host_id
        elif name in self._known:
            known, host_id = self._known[name]
            place = Place(known.disk.path, known.disk.offset)
        else:
            raise NotJoined(lockspace=name)
        found, geometry = self._engines.run(probe(place, DEFAULT_IO_TIMEOUT))
        area = LockspaceArea(found, place, geometry)
        wish = Wish(host_id, None, self._io_timeout, self._fire_timeout, self._watchdog)
        return join(area, wish, self._engines.run, lambda _what, _seconds: None, None)

    # --- leases ---

    def prepare(self, lease: PlacedLease) -> None:
        self.lockspace(lease.lockspace)
        if self._directory is not None and lease.lockspace == LOCKSPACE.encode():
            self._make_file(lease.disks[0].path, fresh_resource(lease.lockspace, lease.name, Geometry.default()))

    def area(self, lease: PlacedLease) -> LeaseArea:
        """Raises BadRecord if there is no lease, DiskError."""
        (disk,) = lease.disks
        place = Place(disk.path, disk.offset)
        geometry = self._engines.run(_sizes(place))
        return LeaseArea(lease.lockspace, lease.name, place, geometry)

    def version(self, lease: PlacedLease) -> int:
        leader, _ = self._engines.run(read_leader(self.area(lease), DEFAULT_IO_TIMEOUT))
        return leader.lver

    def user(self, owner: Owner, on_failure: OnFailure) -> EmbeddedUser:
        return EmbeddedUser(self, owner, on_failure)

    def close(self) -> None:
        """Leave. Nobody here uses a lease any more."""
        with self._lock:
            for lockspace in self._joined.values():
                lockspace.leave()
            self._joined.clear()
        self._engines.close()
        if self._own_watchdog:
            self._watchdog.close()

    # --- files ---

    def _make_directory(self, path: str) -> None:
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise CannotOpen(disk=path, errno=error.errno, reason=error.strerror) from error

    def _make_file(self, path: str, content: bytes) -> None:
        """Unless it is there. Whoever sees it sees all of it."""
        if os.path.exists(path):
            return
        try:
            fd, unfinished = tempfile.mkstemp(prefix=f".{os.path.basename(path)}-", dir=os.path.dirname(path))
            try:
                with open(fd, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                with suppress(FileExistsError):
                    os.link(unfinished, path)
            finally:
                os.unlink(unfinished)
        except OSError as error:
            raise CannotOpen(disk=path, errno=error.errno, reason=error.strerror) from error


def _sizes(place: Place) -> Steps[Geometry]:
    """What the record at `place` says of its area's sizes; whether to believe it, whoever reads the area finds out."""
    leader = Leader.unpack((yield from read(place.disk, place.offset, _HEAD, DEFAULT_IO_TIMEOUT)))
    return Geometry.from_leader(leader.sector_size, leader.flags)


class EmbeddedUser:
    """A guest, or this process, as a user of leases."""

    def __init__(self, host: EmbeddedHost, owner: Owner, on_failure: OnFailure) -> None:
        self._host = host
        self._owner = owner
        self._on_failure = on_failure
        self._leases: dict[tuple[bytes, bytes], Lease] = {}
        self.lost = LostLeases(())

    def begin(self) -> None:
        self._leases = {}
        self.lost = LostLeases(self._leases.values())

    def acquire(self, lease: PlacedLease, version: int | None) -> int:
        lockspace = self._host.lockspace(lease.lockspace)
        held = lockspace.acquire_area(self._host.area(lease), shared=lease.shared, lver=version)
        try:
            if self._owner.pid:
                self._add_holder(held)
        except BaseException:
            held.release()
            raise
        self._leases[lease.lockspace, lease.name] = held
        return held.token.lver

    def _add_holder(self, held: Lease) -> None:
        held.add_holder(self._owner.pid, group=self._owner.group, kill_path=self._on_failure.program)

    def adopt(self, pid: int) -> None:
        self._owner = replace(self._owner, pid=pid)
        for held in self._leases.values():
            self._add_holder(held)

    def release(self, lease: PlacedLease) -> None:
        self._leases.pop((lease.lockspace, lease.name)).release()

    def end(self) -> None:
        pass


class LostLeases:
    """The loss of a guest is the first one of its leases."""

    #: seconds between two looks
    TICK = 0.05

    def __init__(self, leases: Iterable[Lease]) -> None:
        self._leases = leases

    @property
    def reason(self) -> LeaseholdError | None:
        return next((lease.lost.reason for lease in list(self._leases) if lease.lost.is_set()), None)

    def is_set(self) -> bool:
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(self.TICK)
        return True

    def acknowledge(self) -> None:
        for lease in list(self._leases):
            lease.lost.acknowledge()
