"""Who may do what, by the credentials that the kernel gives with a connection.

Whoever can connect may look, and hold leases of its own. To act on the leases of another process, to write to disks
and to join, leave or end the daemon takes an administrator: root, the user whose the daemon is, or a member of the
daemon's group or of one named in the settings. The socket's mode lets nobody else in to begin with.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_SO_PEERGROUPS = 59
_SO_PEERPIDFD = 77
_MAX_GROUPS = 65536


class Right(Enum):
    """What a command takes."""

    #: everybody who can connect
    LOOK = "look"
    #: for another process than the caller's
    OTHERS = "act on other processes' leases"
    FORMAT = "write to disks"
    ADMIN = "join, leave or end"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of whoever called connect()."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """`uid` is the daemon's own; `groups` are those whose members are administrators."""

    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, uid: int, gid: int, further: Iterable[int] = ()) -> Policy:
        return cls(uid, frozenset({gid, *further}))

    def allows(self, who: Credentials, right: Right) -> bool:
        if right is Right.LOOK or who.uid in (0, self.uid):
            return True
        return who.gid in self.groups or bool(self.groups & who.groups)


def credentials_of(connection: socket.socket) -> Credentials:
    size = struct.calcsize("=iII")
    pid, uid, gid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Credentials(pid, uid, gid, _groups_of(connection))


def _groups_of(connection: socket.socket) -> frozenset[int]:
    """The peer's supplementary groups; none where the kernel can't tell."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"={len(raw) // 4}I", raw[: len(raw) // 4 * 4]))


def pidfd_of(connection: socket.socket, pid: int) -> int:
    """A descriptor of the process that connected. Raises OSError if it is gone.

    Newer kernels give it with the connection. Older ones only by its number, which belongs to somebody else by now
    if the process ended between its connect and this.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError:
        return os.pidfd_open(pid)
    fd: int = struct.unpack("=i", raw)[0]
    os.set_inheritable(fd, False)
    return fd
