"""Leases through the daemon, sanlock's or our own: it is the member of the lockspaces, this process its client.

The daemon stops processes, and knows them by their connections. So a guest here is this process, which is what the
daemon stops when the leases are lost; or a process that registered itself, whose connection the leases then hang on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from backends.paxos import LOCKSPACE
from leases.client import Client, Holder, Registration, connect, versioned
from leases.daemon.results import AlreadyJoined, DaemonUnreachable, UnknownClient
from leases.daemon.statestring import format_lockspace
from leases.daemon.wire import Disk
from leases.daemon.wire import Lockspace as PlacedLockspace
from leases.daemon.wire import Resource as PlacedLease
from leases.manager import OnFailure, Owner
from paxos.errors import CannotOpen, InvalidUse, LeaseholdError, LeaseLost, TryAgain

#: how often, and how many seconds apart, joining is tried while the daemon is just leaving or joining
_TRIES = 10
_PAUSE = 1.0


class DaemonHost:
    """`run_dir`: the daemon's, "" for the usual one. `host_id` and `io_timeout` are for the automatic lockspace."""

    def __init__(self, run_dir: str, directory: str | None, host_id: int, io_timeout: int) -> None:
        self.client: Client = connect(run_dir or None)
        self._directory = directory
        self._host_id = host_id
        self._io_timeout = io_timeout
        self._joined = False

    def prepare(self, lease: PlacedLease) -> None:
        """In manual mode somebody else joins, as with libvirt's plugin."""
        if self._directory is None or lease.lockspace != LOCKSPACE.encode():
            return
        if not self._joined:
            self._join(self._directory)
            self._joined = True
        (disk,) = lease.disks
        if self._make_file(disk.path):
            self._lay_out(
                disk.path, lambda: self.client.write_resource(PlacedLease(lease.lockspace, lease.name, lease.disks))
            )

    def _join(self, directory: str) -> None:
        path = os.path.join(directory, LOCKSPACE)
        lockspace = PlacedLockspace(LOCKSPACE.encode(), 0, Disk(path, 0))
        if self._make_file(path):
            self._lay_out(path, lambda: self.client.write_lockspace(lockspace, io_timeout=self._io_timeout))
        joining = PlacedLockspace(LOCKSPACE.encode(), self._host_id, Disk(path, 0))
        for left in reversed(range(_TRIES)):
            try:
                self.client.add_lockspace(format_lockspace(joining).decode(), self._io_timeout)
            except AlreadyJoined:
                return
            except TryAgain:
                if not left:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def _make_file(self, path: str) -> bool:
        """A file of zeros, unless it is there: whether it was made."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        except OSError as error:
            raise CannotOpen(disk=path, errno=error.errno, reason=error.strerror) from error
        with open(fd, "wb") as file:
            file.write(bytes(self.client.align(path)))
            file.flush()
            os.fsync(file.fileno())
        return True

    def _lay_out(self, path: str, write: Callable[[], None]) -> None:
        try:
            write()
        except LeaseholdError:
            with suppress(OSError):
                os.unlink(path)
            raise

    def version(self, lease: PlacedLease) -> int:
        return self.client.read_resource(PlacedLease(lease.lockspace, lease.name, lease.disks)).lver

    def user(self, owner: Owner, on_failure: OnFailure) -> DaemonUser:
        return DaemonUser(self.client, owner, on_failure)

    def close(self) -> None:
        """The lockspace stays joined: other users of the daemon may be in it."""


class Forgotten(LeaseLost):
    template = "the daemon knows of no leases of process {pid} any more: {cause}"


class DaemonLoss:
    """The daemon stops a process that loses its leases, and tells nobody: what is left is to ask it."""

    #: seconds between two looks
    TICK = 0.2

    def __init__(self, user: DaemonUser) -> None:
        self._user = user
        self._reason: LeaseholdError | None = None

    @property
    def reason(self) -> LeaseholdError | None:
        if self._reason is None:
            try:
                self._user.look()
            except (UnknownClient, DaemonUnreachable) as cause:
                self._reason = Forgotten(resource=self._user.owner.name, pid=self._user.owner.pid, cause=cause)
        return self._reason

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
        """Nothing to say: the daemon waits for the end of the process."""


class DaemonUser:
    def __init__(self, client: Client, owner: Owner, on_failure: OnFailure) -> None:
        self._client = client
        self.owner = owner
        self._on_failure = on_failure
        self._registration: Registration | None = None
        self._holder: Holder | None = None
        self.lost = DaemonLoss(self)

    def look(self) -> None:
        """Raises UnknownClient or DaemonUnreachable once the daemon has no leases of ours."""
        if self._holder is not None:
            self._holder.held()

    def begin(self) -> None:
        self.lost = DaemonLoss(self)
        if self.owner.pid not in (0, os.getpid()):
            if self._on_failure.program:
                raise InvalidUse(reason="only a process itself can tell the daemon which program is to stop it")
            self._holder = self._client.process(self.owner.pid)
            return
        self._holder = self._registration = self._client.register()
        if self._on_failure.program:
            program, *arguments = self._on_failure.program
            self._registration.killpath(program, *arguments)

    def acquire(self, lease: PlacedLease, version: int | None) -> int:
        assert self._holder is not None
        wanted = PlacedLease(lease.lockspace, lease.name, lease.disks)
        if version is not None:
            wanted = versioned(wanted, version)
        self._holder.acquire(wanted, shared=lease.shared, owner_name=self.owner.name.encode()[:47])
        held = {(one.lockspace, one.name): one.lver for one in self._holder.held()}
        return held[lease.lockspace, lease.name]

    def release(self, lease: PlacedLease) -> None:
        assert self._holder is not None
        with suppress(UnknownClient):  # it has ended, and the daemon released what it had
            self._holder.release(PlacedLease(lease.lockspace, lease.name, lease.disks))

    def adopt(self, pid: int) -> None:
        """Raises InvalidUse: the daemon knows only processes that registered themselves."""
        raise InvalidUse(reason=f"the daemon can't be told that process {pid} uses the leases of another")

    def end(self) -> None:
        self._holder = None
        if self._registration is not None:
            self._registration.close()
            self._registration = None
