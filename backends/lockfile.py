"""One locked file, locked as virtlockd does it: byte 0, length 1 (lockmanager.md 7.5), never waiting.

Where virtlockd takes a POSIX record lock, this is an open-file-description lock. The two conflict with each other in
the kernel, but this one belongs to the descriptor and not to the process: it survives the close of any other
descriptor of the file, and exec and a hand-over to another process with the descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass

from leases.manager import ResourceBusy
from paxos.errors import CannotOpen, DiskError, LeaseLost

# struct flock of 64-bit Linux: type, whence, start, length, pid
_FLOCK = struct.Struct("@hhqqi4x")
_BLOCK = 4096


class LockGone(LeaseLost):
    """The kernel, or the file system, says that the lock is not there any more."""

    template = "the lock of {resource} is lost: {reason}"


def _flock(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)


@dataclass(slots=True, eq=False)
class LockFile:
    """A lock that is held as long as `fd` is open, here or in another process that inherited it."""

    #: what people call it, for messages
    resource: str
    path: str
    fd: int
    shared: bool
    #: it was made for this lock, if it was not there, and goes away with the last lock
    autocreate: bool

    @classmethod
    def take(cls, resource: str, path: str, *, shared: bool, autocreate: bool) -> LockFile:
        """Lock the file. Raises ResourceBusy if somebody has it, CannotOpen, DiskError."""
        while True:
            fd = _open(path, autocreate)
            try:
                _lock(fd, resource, path, shared)
                if not autocreate or _is_still(path, fd):
                    return cls(resource, path, fd, shared, autocreate)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # somebody unlinked it just before we had the lock: nobody else would see ours

    def give_back(self) -> None:
        """Unlock. A file that was made for the lock is unlinked by whoever holds it last."""
        try:
            if self.autocreate and self._alone():
                with suppress(FileNotFoundError):
                    os.unlink(self.path)
        except OSError as error:
            raise _disk_error("unlink", self.path, error) from error
        finally:
            os.close(self.fd)

    def _alone(self) -> bool:
        """Whether nobody shares the lock, after which nobody can until we close."""
        if not _is_still(self.path, self.fd):
            return False
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def prove(self) -> None:
        """Show that the lock is still ours, on the file that the path names, and that the file system answers.

        Three questions. The path must still lead to the inode that we locked. A stranger (a new descriptor) must be
        refused the byte; and our own descriptor must not: then what the stranger runs into can only be ours, or that
        of somebody who shares it, so a shared lock is also looked up in the list of the kernel. Opening the stranger
        asks a network file system for the file anew, and the first block is read past the cache.

        May take as long as the file system likes. Raises LockGone, DiskError.
        """
        try:
            ours = os.fstat(self.fd)
            try:
                stranger = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise self._gone("the file is gone") from None
            try:
                if not os.path.samestat(ours, os.fstat(stranger)) or not _is_still(self.path, self.fd):
                    raise self._gone("the path leads to another file now")
                self._check_owner(stranger)
            finally:
                os.close(stranger)
            _read_past_cache(self.path)
        except OSError as error:
            raise _disk_error("check", self.path, error) from error

    def _check_owner(self, stranger: int) -> None:
        wanted = fcntl.F_RDLCK if self.shared else fcntl.F_WRLCK
        if _conflict(self.fd, wanted):
            raise self._gone("somebody else has it")
        if not _conflict(stranger, fcntl.F_WRLCK):
            raise self._gone("nobody has it")
        if self.shared and not _listed(self.fd):
            raise self._gone("only others have it")

    def _gone(self, reason: str) -> LockGone:
        return LockGone(resource=self.resource, reason=reason)


def _open(path: str, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise CannotOpen(disk=path, errno=error.errno, reason=error.strerror) from error


def _lock(fd: int, resource: str, path: str, shared: bool) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ResourceBusy(resource=resource, path=path) from None
        raise _disk_error("lock", path, error) from error


def _is_still(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _conflict(fd: int, kind: int) -> bool:
    """Whether a lock of this kind through `fd` would be refused."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(kind))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _listed(fd: int) -> bool:
    """Whether the kernel lists a lock with this descriptor (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        return any(line.startswith("lock:") and "OFDLCK" in line for line in info)


def _read_past_cache(path: str) -> None:
    """Read the first block from the disk itself, where the file system can do that."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return
        raise
    try:
        with mmap.mmap(-1, _BLOCK) as block:  # its address is a multiple of the page size
            os.preadv(fd, [block], 0)
    finally:
        os.close(fd)


def _disk_error(operation: str, path: str, error: OSError) -> DiskError:
    return DiskError(operation=operation, disk=path, offset=0, length=1, errno=error.errno, reason=error.strerror)
