"""The run directory: the socket, and the lock file that makes a second daemon give up at once (daemon.md section 1)."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress

from leases.daemon.numbers import SOCKET_NAME

LOCK_NAME = "sanlock.pid"
#: connections that may wait to be accepted
BACKLOG = 4096
#: of the socket: owner and group may connect
SOCKET_MODE = 0o660


class RunDirBusy(Exception):
    """Another daemon has this run directory."""


class RunDir:
    """`path` is made when it is not there, with `uid` and `gid` as its owners where this process may say so."""

    def __init__(self, path: str, uid: int, gid: int) -> None:
        self.path = path
        self._uid = uid
        self._gid = gid
        self._lock_fd = -1

    @property
    def socket_path(self) -> str:
        return os.path.join(self.path, SOCKET_NAME)

    def lock(self) -> None:
        """Take it for the life of this process, without waiting. Raises RunDirBusy, OSError."""
        if not os.path.isdir(self.path):
            os.makedirs(self.path, 0o755)
            os.chmod(self.path, 0o775)
            self._own(self.path)
        path = os.path.join(self.path, LOCK_NAME)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise RunDirBusy(f"another daemon runs in {self.path}: {path} is locked") from None
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        # a POSIX lock goes with the first descriptor of the file that is closed: this one never is
        self._lock_fd = fd

    def listen(self) -> socket.socket:
        """The listening socket, not blocking. Whatever was at its path belonged to a daemon that is gone."""
        with suppress(FileNotFoundError):
            os.unlink(self.socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(self.socket_path)
        finally:
            os.umask(before)
        self._own(self.socket_path)
        listener.listen(BACKLOG)
        return listener

    def _own(self, path: str) -> None:
        with suppress(PermissionError):
            os.chown(path, self._uid, self._gid)
