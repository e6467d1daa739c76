"""Devices: block devices and regular files, opened for direct, synchronous I/O, once per process.

Opening can hang with the disk (NFS, FUSE), so nobody but a short-lived thread ever waits in open(2): whoever
needs the device waits for that thread, with a timeout, and is woken when it is done (ondisk.md 1.2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from paxos.errors import CannotOpen

#: I/Os of one process that may be on their way to one device, beside the few each engine may always have.
#: Far below the 128 requests of a small device queue: io_submit blocks when there is no free one.
SHARED_IN_FLIGHT = 64
#: what a regular file counts as (ondisk.md 1.1)
FILE_SECTOR_SIZE = 512

_BLKSSZGET = 0x1268
_BLKGETSIZE64 = 0x80081272


class Device:
    """An open disk: `path`, `fd`, `sector_size` and `size` in bytes (as of opening), `is_block`, `read_only`.

    The descriptor is closed when nobody refers to the device any more, an I/O in flight included.
    `tokens` has one entry for each I/O that may still be started (see SHARED_IN_FLIGHT).
    """

    __slots__ = ("fd", "is_block", "path", "read_only", "sector_size", "size", "tokens")

    def __init__(self, path: str, fd: int, read_only: bool) -> None:
        self.path = path
        self.fd = fd
        self.read_only = read_only
        self.tokens: list[None] = [None] * SHARED_IN_FLIGHT
        status = os.fstat(fd)
        self.is_block = stat.S_ISBLK(status.st_mode)
        if self.is_block:
            self.sector_size = _ask(fd, _BLKSSZGET, "=i")
            self.size = _ask(fd, _BLKGETSIZE64, "=Q")
        else:
            self.sector_size = FILE_SECTOR_SIZE
            self.size = status.st_size

    @classmethod
    def open(cls, path: str, *, read_only: bool = False) -> Device:
        """Open a block device or regular file. May hang with the disk. Raises CannotOpen."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_DIRECT | os.O_SYNC | os.O_CLOEXEC
        try:
            mode = os.stat(path).st_mode
            if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
                raise CannotOpen(disk=path, errno=errno.ENODEV, reason="neither a block device nor a regular file")
            fd = os.open(path, flags)
        except OSError as failure:
            raise _cannot_open(path, failure) from failure
        try:
            return cls(path, fd, read_only)
        except OSError as failure:
            os.close(fd)
            raise _cannot_open(path, failure) from failure

    def __repr__(self) -> str:
        return f"<Device {self.path} sector {self.sector_size} size {self.size}>"

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.fd)


def _ask(fd: int, request: int, layout: str) -> int:
    answer: int = struct.unpack(layout, fcntl.ioctl(fd, request, bytes(struct.calcsize(layout))))[0]
    return answer


def _cannot_open(path: str, failure: OSError) -> CannotOpen:
    reason = os.strerror(failure.errno) if failure.errno else str(failure)
    if failure.errno == errno.EINVAL:
        reason = "its file system has no direct I/O"
    return CannotOpen(disk=path, errno=failure.errno or errno.EIO, reason=reason)


class Opening:
    """A device being opened. Once `done`, the device is in the table, or `failure` says why not."""

    __slots__ = ("done", "failure", "wakers")

    def __init__(self) -> None:
        self.done = False
        self.failure: CannotOpen | None = None
        self.wakers: list[Callable[[], None]] = []


class Devices:
    """A table of open devices by path, opened on first use and kept; may be shared by engines and threads."""

    def __init__(self, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self._table: dict[str, Device] = {}
        self._openings: dict[str, Opening] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> Device | None:
        """The device, if it is open. Never waits."""
        return self._table.get(path)

    def open(self, path: str, timeout: float) -> Device:
        """The device, opened if it is not, within `timeout` seconds. Raises CannotOpen (ETIMEDOUT included)."""
        device = self.get(path)
        if device is not None:
            return device
        done = threading.Event()
        opening = self.start_opening(path, done.set)
        if not done.wait(timeout):
            raise open_timed_out(path, timeout)
        if opening.failure is not None:
            raise opening.failure
        return self._table[path]

    def start_opening(self, path: str, wake: Callable[[], None]) -> Opening:
        """Open `path` in a thread of its own, or join in where one is at it; `wake` is called at its end."""
        with self._lock:
            opening = self._openings.get(path)
            started = opening is not None
            if opening is None:
                opening = self._openings[path] = Opening()
            if wake not in opening.wakers:
                opening.wakers.append(wake)
        if not started:
            threading.Thread(target=self._open, args=(path, opening), name="open", daemon=True).start()
        return opening

    def _open(self, path: str, opening: Opening) -> None:
        device = None
        try:
            device = Device.open(path, read_only=self.read_only)
        except CannotOpen as failure:
            opening.failure = failure
        with self._lock:
            if device is not None:
                self._table.setdefault(path, device)
            del self._openings[path]
            opening.done = True
        for wake in opening.wakers:
            wake()

    def forget(self, path: str) -> None:
        """Take the device out of the table; it is closed when its last I/O is back."""
        with self._lock:
            self._table.pop(path, None)

    def close(self) -> None:
        """Forget every device."""
        with self._lock:
            self._table.clear()

    def __enter__(self) -> Devices:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_timed_out(path: str, timeout: float) -> CannotOpen:
    return CannotOpen(disk=path, errno=errno.ETIMEDOUT, reason=f"open has not returned after {timeout:.1f} s")
