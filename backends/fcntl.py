"""fcntl: what libvirt's lockd plugin and virtlockd do, so that both exclude each other on the same files.

Directly, a disk is locked on its own image. Indirectly, in a lockspace directory, on an empty file that is named after
the disk and comes and goes with the lock. A `<lease>` is a file that is there already (lockmanager.md 2.4, 6.2).

Unlike virtlockd, it notices when a lock is lost or the file system does not answer, and stops the guest.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable

from backends.keeping import LockKeeper
from backends.lockfile import LockFile
from backends.patience import within
from leases.keeper.watchdog import Watchdog, open_watchdog
from leases.lease import Lost
from leases.manager import (
    Access,
    FailureAction,
    GuestLocks,
    Kind,
    LockManager,
    OnFailure,
    Owner,
    Promises,
    Reach,
    Resource,
)
from paxos.errors import CannotOpen, InvalidUse
from paxos.timing import DEFAULT_FIRE_TIMEOUT, DEFAULT_IO_TIMEOUT, Timing


def indirect_name(disk_path: str) -> str:
    """The file in a lockspace directory that stands for a disk: SHA-256 of the path as text, in hex."""
    return hashlib.sha256(os.fsencode(disk_path)).hexdigest()


def lock_place(resource: Resource, directory: str | None) -> tuple[str, bool]:
    """The file to lock, and whether it is made for the lock. Raises InvalidUse for a lease that can't be a file."""
    if resource.kind is Kind.DISK:
        if directory is None:
            return resource.name, False
        return os.path.join(directory, indirect_name(resource.name)), True
    if resource.offset:
        raise InvalidUse(reason=f"{resource} has offset {resource.offset}: a lock on a file has none")
    for part in (resource.lockspace, resource.name):
        if part in ("", ".", "..") or "/" in part:
            raise InvalidUse(reason=f"{resource}: {part!r} can't be a file in {resource.path}")
    return os.path.join(resource.path, resource.lockspace, resource.name), False


class FcntlLocks(GuestLocks):
    """The locks of one guest on files, kept by a keeper of its own: a dead server takes no other guest with it."""

    def __init__(
        self, manager: FcntlManager, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure
    ) -> None:
        super().__init__(owner, resources, on_failure)
        self._manager = manager
        self._files: dict[tuple[object, ...], _ProvenFile] = {}
        self._keeper: LockKeeper | None = None
        self._started = False
        self._lost = Lost(lambda: None)

    @property
    def lost(self) -> Lost:
        return self._lost if self._keeper is None else self._keeper.lost

    def begin(self) -> None:
        manager = self._manager
        self._keeper = LockKeeper(self.owner, self.on_failure, manager.timing, manager.watchdog, self._prove)

    def taken(self) -> None:
        if self._started or self._keeper is None:
            return
        self._keeper.start()
        self._started = True

    def adopted(self, pid: int) -> None:
        assert self._keeper is not None
        self._keeper.adopt(pid)

    def end(self) -> None:
        self._started = False
        if self._keeper is not None:
            self._keeper.stop()

    def take(self, resource: Resource, version: int | None) -> None:
        path, autocreate = lock_place(resource, self._manager.directory)
        if autocreate:
            self._manager.make_directory()
        shared = resource.access is Access.SHARED
        file = within(
            self._manager.timing.io_timeout,
            "lock",
            path,
            lambda: LockFile.take(str(resource), path, shared=shared, autocreate=autocreate),
            late=LockFile.give_back,
        )
        self._files[resource.identity] = _ProvenFile(file)

    def give_back(self, resource: Resource) -> None:
        file = self._files.pop(resource.identity)
        within(self._manager.timing.io_timeout, "unlock", file.path, file.give_back)

    def _prove(self) -> None:
        for file in list(self._files.values()):
            file.prove()


class _ProvenFile:
    """A lock that one thread proves and another gives back: never both at once."""

    def __init__(self, file: LockFile) -> None:
        self.path = file.path
        self._file: LockFile | None = file
        self._lock = threading.Lock()

    def prove(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.prove()

    def give_back(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.give_back()


class FcntlManager(LockManager):
    """`directory`: the lockspace directory, made if missing; None: locks on the images themselves.

    `io_timeout`, `fire_timeout` in seconds, as for a lockspace; `watchdog`: one of its kinds by name, or an open one.
    """

    name = "fcntl"
    promises = Promises(
        excludes=Reach.FILE_SYSTEM, states=False, stops_guests=True, failure_actions=frozenset(FailureAction)
    )

    def __init__(
        self,
        directory: str | None = None,
        *,
        io_timeout: float = DEFAULT_IO_TIMEOUT,
        fire_timeout: int = DEFAULT_FIRE_TIMEOUT,
        watchdog: str | Watchdog = "guardian",
    ) -> None:
        self.directory = directory
        self.timing = Timing(io_timeout, fire_timeout)
        self._own_watchdog = isinstance(watchdog, str)
        self.watchdog = open_watchdog(watchdog, fire_timeout) if isinstance(watchdog, str) else watchdog

    def locks_of(self, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure) -> FcntlLocks:
        return FcntlLocks(self, owner, resources, on_failure)

    def make_directory(self) -> None:
        """As virtlockd makes it: mode 0700, parents included. Raises CannotOpen."""
        assert self.directory is not None
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise CannotOpen(disk=self.directory, errno=error.errno, reason=error.strerror) from error

    def close(self) -> None:
        if self._own_watchdog:
            self.watchdog.close()
