"""Lockspaces and what is locked in them: the daemon's whole memory of locks (lockmanager.md 7.3, 7.5).

A lockspace is known by the exact text of its path. The one called "" is always there, has no directory, and its
resources are absolute paths. A second request for a locked resource is decided here, without asking the kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from backends.lockfile import LockFile
from backends.patience import within
from backends.virtlockd import failures
from leases.manager import ResourceBusy
from paxos.errors import CannotOpen, DiskError

#: seconds a file system may take to answer one call; the clients wait meanwhile
PATIENCE = 10.0


@dataclass(slots=True, eq=False)
class Locked:
    """A resource that is locked. A pid stands among the owners as often as it acquired it."""

    name: str
    file: LockFile
    owners: list[int]


class Lockspaces:
    def __init__(self) -> None:
        self._spaces: dict[str, dict[str, Locked]] = {"": {}}

    # --- lockspaces ---

    def make(self, path: str) -> None:
        """Make a lockspace, and its directory if it is missing. Raises Refused; harmless if it is known."""
        if path not in self._spaces:
            self._make_directory(path)
            self._spaces[path] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._spaces

    def _make_directory(self, path: str) -> None:
        def make() -> None:
            if os.path.exists(path):
                if not os.path.isdir(path):
                    raise failures.not_a_directory(path)
                return
            os.makedirs(path, mode=0o700, exist_ok=True)

        try:
            within(PATIENCE, "mkdir", path, make)
        except OSError as error:
            raise failures.cannot_create_lockspace(path, error.errno or errno.EIO) from error
        except DiskError as silence:
            raise failures.cannot_create_lockspace(path, silence.errno) from silence

    # --- resources ---

    def create(self, space: str, name: str) -> None:
        """Make the file of a resource. Raises Refused if it is locked."""
        path = self._free_place(space, name)

        def make() -> None:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

        try:
            within(PATIENCE, "create", path, make)
        except OSError as error:
            raise failures.cannot_open(path, error.errno or errno.EIO) from error
        except DiskError as silence:
            raise failures.cannot_open(path, silence.errno) from silence

    def delete(self, space: str, name: str) -> None:
        """Unlink the file of a resource; fine if there is none. Raises Refused if it is locked."""
        path = self._free_place(space, name)

        def unlink() -> None:
            with suppress(FileNotFoundError):
                os.unlink(path)

        try:
            within(PATIENCE, "unlink", path, unlink)
        except OSError as error:
            raise failures.cannot_delete(path, error.errno or errno.EIO) from error
        except DiskError as silence:
            raise failures.cannot_delete(path, silence.errno) from silence

    def acquire(self, space: str, name: str, pid: int, *, shared: bool, autocreate: bool) -> None:
        """Raises Refused: locked by anybody, unless all share it."""
        resources = self._space(space)
        known = resources.get(name)
        if known is not None:
            if not (shared and known.file.shared):
                raise failures.locked(name)
            known.owners.append(pid)
            return
        path = _place(space, name)
        try:
            file = within(
                PATIENCE,
                "lock",
                path,
                lambda: LockFile.take(name, path, shared=shared, autocreate=autocreate),
                late=LockFile.give_back,
            )
        except ResourceBusy:
            raise failures.locked(name) from None
        except CannotOpen as error:
            raise failures.cannot_open(path, error.errno) from error
        except DiskError as error:
            raise failures.cannot_lock(path, error.errno) from error
        resources[name] = Locked(name, file, [pid])

    def release(self, space: str, name: str, pid: int) -> None:
        """Raises Refused if it is not locked, or not for this pid."""
        resources = self._space(space)
        known = resources.get(name)
        if known is None:
            raise failures.not_locked(name)
        if pid not in known.owners:
            raise failures.not_owner(pid)
        known.owners.remove(pid)
        if not known.owners:
            del resources[name]
            _give_back(known.file)

    def release_owner(self, pid: int) -> None:
        """The guest is gone: nothing is locked for it any more."""
        for resources in self._spaces.values():
            for name, known in list(resources.items()):
                known.owners = [owner for owner in known.owners if owner != pid]
                if not known.owners:
                    del resources[name]
                    _give_back(known.file)

    def holds(self, pid: int) -> bool:
        """Whether anything is locked for this pid."""
        return any(pid in locked.owners for _space, locked in self.locked())

    def locked(self) -> Iterator[tuple[str, Locked]]:
        """Everything that is locked, with its lockspace."""
        for space, resources in self._spaces.items():
            for locked in resources.values():
                yield space, locked

    @property
    def paths(self) -> list[str]:
        """Of all lockspaces but the one that is always there."""
        return [path for path in self._spaces if path]

    def restore(self, space: str, locked: Locked | None = None) -> None:
        """What a predecessor had: a lockspace, or a locked resource in it. Nothing is asked of the file system."""
        resources = self._spaces.setdefault(space, {})
        if locked is not None:
            resources[locked.name] = locked

    def _space(self, path: str) -> dict[str, Locked]:
        if path not in self._spaces:
            raise failures.unknown_lockspace(path)
        return self._spaces[path]

    def _free_place(self, space: str, name: str) -> str:
        if name in self._space(space):
            raise failures.locked(name)
        return _place(space, name)


def _place(space: str, name: str) -> str:
    """The file of a resource. Unlike the real one, refuses names that lead out of the lockspace."""
    if not space:
        return name
    if ".." in name.split("/"):
        raise failures.escapes(name)
    return f"{space}/{name}"


def _give_back(file: LockFile) -> None:
    # what the file system says is nobody's business any more: the descriptor is closed in any case
    with suppress(DiskError):
        within(PATIENCE, "unlock", file.path, file.give_back)
