"""The daemon: connections of libvirt and of its guests, and what the end of one means (lockmanager.md 7.6).

A guest's own connection is one whose peer, by its credentials, is the pid it registered. When that ends, the guest
has ended, and its locks are released; a guest that lives on without it is stopped first. The end of any other
connection means nothing.

Stopped in order while something is locked, the daemon leaves a process behind that only holds: it serves nobody new,
still notices the end of guests, and hands everything to the next daemon. A restart (SIGUSR1) is the same, but for the
listening socket, which it keeps, so that clients wait instead of being refused.
"""

from __future__ import annotations

import base64
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from backends.lockfile import LockFile
from backends.virtlockd import handover
from backends.virtlockd.lockspaces import Locked, Lockspaces
from backends.virtlockd.procedures import Caller, Registered, answer
from backends.virtlockd.rpc import BadFrame, Frames
from backends.virtlockd.signals import Signals

_CREDENTIALS = struct.Struct("=iII")
_CHUNK = 65536
#: of a guest that lives on without its connection: seconds until SIGTERM and SIGKILL
_TERMINATE_AFTER = 0.2
_KILL_AFTER = 1.8
MAX_CLIENTS = 1024


@dataclass(slots=True, eq=False)
class Connection:
    socket: socket.socket
    #: pid of the process that connected
    peer: int
    #: of that process; None if it was gone before we looked
    pidfd: int | None
    caller: Caller = field(default_factory=Caller)
    frames: Frames = field(default_factory=Frames)
    out: bytes = b""

    @property
    def guest(self) -> int | None:
        """The pid of the guest whose own connection it is, if it is one."""
        owner = self.caller.owner
        return owner.pid if owner is not None and owner.pid == self.peer else None


@dataclass(slots=True, eq=False)
class Orphan:
    """A guest that lost its connection and has not ended yet."""

    pid: int
    pidfd: int
    since: float
    sent: int = 0


class Server:
    """`listener`: where libvirt connects; None: only hold. `successors`: where the next daemon does."""

    def __init__(self, listener: socket.socket | None, successors: socket.socket, *, idle_timeout: float = 0.0) -> None:
        self.spaces = Lockspaces()
        self.listener = listener
        self._kept_listener: socket.socket | None = None
        self._successors = successors
        self._idle_timeout = idle_timeout
        self._idle_since: float | None = None
        self._connections: set[Connection] = set()
        self._orphans: dict[int, Orphan] = {}
        self._selector = selectors.DefaultSelector()
        self._accepting = False
        self._ended = False
        #: called before this process ends or becomes another, in the one that serves
        self.on_stop: Callable[[], None] = lambda: None

    # --- the loop ---

    def run(self) -> bool:
        """Serve until stopped. Whether this process is to become the next daemon (SIGUSR1)."""
        with Signals() as signals:
            self._watch(signals.fileno(), lambda: None)
            self._watch(self._successors.fileno(), self._succeeded)
            while not self._ended:
                self._accept_or_not()
                for key, events in self._selector.select(self._pause()):
                    if key.fd in self._selector.get_map():
                        self._handle(key.data, events)
                self._press_orphans()
                for number in signals.take():
                    if number == signal.SIGUSR1:
                        if self._leave_a_holder(keep_listening=True):
                            return True
                    elif not self._ended:
                        self._stop()
                if self.listener is None and not any(self.spaces.locked()):
                    self._ended = True  # nothing to hold any more
        return False

    def _handle(self, data: Any, events: int) -> None:
        if isinstance(data, Connection):
            self._attend(data, events)
        else:
            data()

    def _watch(self, fd: int, action: Any, events: int = selectors.EVENT_READ) -> None:
        self._selector.register(fd, events, action)

    def _pause(self) -> float | None:
        """Seconds until something is due without anybody asking."""
        due = [orphan.since + _due_after(orphan) for orphan in self._orphans.values() if orphan.sent < 2]
        if self._idle_timeout and not self._connections and not any(self.spaces.locked()):
            self._idle_since = self._idle_since or time.monotonic()
            if time.monotonic() >= self._idle_since + self._idle_timeout:
                self._ended = True
            due.append(self._idle_since + self._idle_timeout)
        else:
            self._idle_since = None
        return max(0.0, min(due) - time.monotonic()) if due else None

    # --- connections ---

    def _accept_or_not(self) -> None:
        if self.listener is None:
            return
        room = len(self._connections) < MAX_CLIENTS
        if room and not self._accepting:
            self._watch(self.listener.fileno(), self._accept)
        elif self._accepting and not room:
            self._selector.unregister(self.listener.fileno())
        self._accepting = room

    def _accept(self) -> None:
        assert self.listener is not None
        try:
            client, _address = self.listener.accept()
        except OSError:
            return
        client.setblocking(False)
        pid, uid, _gid = _CREDENTIALS.unpack(
            client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid != os.geteuid():
            client.close()
            return
        self._add(Connection(client, pid, _pidfd(pid)))

    def _add(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._watch(connection.socket.fileno(), connection, _interest(connection))

    def _attend(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ and not self._read(connection):
                self._close(connection)
                return
            self._answer(connection)
        except (BadFrame, OSError):
            self._close(connection)
            return
        self._selector.modify(connection.socket.fileno(), _interest(connection), connection)

    def _read(self, connection: Connection) -> bool:
        """Whether there is more to come."""
        try:
            data = connection.socket.recv(_CHUNK)
        except BlockingIOError:
            return True
        connection.frames.feed(data)
        return bool(data)

    def _answer(self, connection: Connection) -> None:
        """Send what is due, and answer calls one after the other as long as the client takes the answers."""
        while True:
            if connection.out:
                try:
                    sent = connection.socket.send(connection.out)
                except BlockingIOError:
                    return
                connection.out = connection.out[sent:]
                continue
            message = connection.frames.next()
            if message is None:
                return
            reply = answer(message, connection.caller, self.spaces)
            if reply is not None:
                connection.out = reply.pack()

    def _close(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket.fileno())
        connection.socket.close()
        self._connections.discard(connection)
        pid, pidfd = connection.guest, connection.pidfd
        if pid is not None and self.spaces.holds(pid):
            if pidfd is None or _has_ended(pidfd):
                self.spaces.release_owner(pid)
            elif pid not in self._orphans:
                self._adopt(Orphan(pid, os.dup(pidfd), time.monotonic()))
        if pidfd is not None:
            os.close(pidfd)

    # --- guests that live on without their connection ---

    def _adopt(self, orphan: Orphan) -> None:
        self._orphans[orphan.pid] = orphan
        self._watch(orphan.pidfd, lambda: self._bury(orphan))

    def _bury(self, orphan: Orphan) -> None:
        self._selector.unregister(orphan.pidfd)
        os.close(orphan.pidfd)
        del self._orphans[orphan.pid]
        self.spaces.release_owner(orphan.pid)

    def _press_orphans(self) -> None:
        """Unlike the real one, keep the locks until the guest is dead: it may still write."""
        for orphan in self._orphans.values():
            while orphan.sent < 2 and time.monotonic() >= orphan.since + _due_after(orphan):
                with suppress(OSError):
                    signal.pidfd_send_signal(orphan.pidfd, (signal.SIGTERM, signal.SIGKILL)[orphan.sent])
                orphan.sent += 1

    # --- the end ---

    def _stop(self) -> None:
        """In order. Nobody is killed: what is locked stays locked, in a process that we leave behind."""
        if self.listener is None:
            return  # we are that process
        if any(self.spaces.locked()) and not self._leave_a_holder(keep_listening=False):
            return
        self.on_stop()
        self._ended = True

    def _leave_a_holder(self, *, keep_listening: bool) -> bool:
        """Fork. True in the old process, which has nothing more to do with it; False in the holder."""
        if self.listener is None:
            return False
        if os.fork():
            return True
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        self._selector.close()  # it is the parent's as well
        self._selector = selectors.DefaultSelector()
        self._watch(self._successors.fileno(), self._succeeded)
        for connection in self._connections:
            self._watch(connection.socket.fileno(), connection, _interest(connection))
        for orphan in self._orphans.values():
            self._watch(orphan.pidfd, lambda orphan=orphan: self._bury(orphan))
        self._kept_listener = self.listener if keep_listening else None
        if not keep_listening:
            self.listener.close()
        self.listener = None
        return False

    # --- successors ---

    def _succeeded(self) -> None:
        """Somebody asks for everything."""
        channel, _address = self._successors.accept()
        with channel:
            channel.settimeout(handover.PATIENCE)
            with suppress(OSError, handover.HandoverFailed):
                if handover.word(channel) == handover.TAKE and self.listener is not None:
                    handover.refuse(channel)
                elif handover.send(channel, *self._estate()):
                    self._ended = True
                    os._exit(0)  # at once: no lock is ours to give back, no file ours to remove

    def _estate(self) -> tuple[dict[str, Any], list[int]]:
        """Everything we have, as JSON and descriptors; in the JSON a descriptor is its place in the list."""
        fds: list[int] = []

        def place(fd: int | None) -> int | None:
            if fd is None:
                return None
            fds.append(fd)
            return len(fds) - 1

        listener = self.listener or self._kept_listener
        document = {
            "listener": place(listener.fileno() if listener else None),
            "clients": [
                {
                    "socket": place(one.socket.fileno()),
                    "pidfd": place(one.pidfd),
                    "peer": one.peer,
                    "restricted": one.caller.restricted,
                    "owner": _owner_as_json(one.caller.owner),
                    "received": base64.b64encode(one.frames.rest).decode(),
                    "unsent": base64.b64encode(one.out).decode(),
                }
                for one in self._connections
            ],
            "orphans": [{"pid": one.pid, "pidfd": place(one.pidfd)} for one in self._orphans.values()],
            "lockspaces": self.spaces.paths,
            "locked": [
                {
                    "lockspace": space,
                    "name": locked.name,
                    "path": locked.file.path,
                    "fd": place(locked.file.fd),
                    "shared": locked.file.shared,
                    "autocreate": locked.file.autocreate,
                    "owners": locked.owners,
                }
                for space, locked in self.spaces.locked()
            ],
        }
        return document, fds

    def inherit(self, document: dict[str, Any], fds: list[int]) -> None:
        """Take up what a predecessor had, but for the listening socket."""
        for space in document["lockspaces"]:
            self.spaces.restore(space)
        for one in document["locked"]:
            file = LockFile(one["name"], one["path"], fds[one["fd"]], one["shared"], one["autocreate"])
            self.spaces.restore(one["lockspace"], Locked(one["name"], file, one["owners"]))
        for one in document["orphans"]:
            self._adopt(Orphan(one["pid"], fds[one["pidfd"]], time.monotonic()))
        for one in document["clients"]:
            client = socket.socket(fileno=fds[one["socket"]])
            client.setblocking(False)
            pidfd = None if one["pidfd"] is None else fds[one["pidfd"]]
            caller = Caller(_owner_from_json(one["owner"]), one["restricted"])
            frames = Frames(base64.b64decode(one["received"]))
            self._add(Connection(client, one["peer"], pidfd, caller, frames, base64.b64decode(one["unsent"])))


def _due_after(orphan: Orphan) -> float:
    return (_TERMINATE_AFTER, _KILL_AFTER)[orphan.sent]


def _interest(connection: Connection) -> int:
    """A client that does not take its answer is not asked for more."""
    return selectors.EVENT_WRITE if connection.out else selectors.EVENT_READ


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _has_ended(pidfd: int) -> bool:
    with selectors.PollSelector() as poll:
        poll.register(pidfd, selectors.EVENT_READ)
        return bool(poll.select(0))


def _owner_as_json(owner: Registered | None) -> dict[str, Any] | None:
    if owner is None:
        return None
    return {"uuid": str(owner.uuid), "name": owner.name, "id": owner.id, "pid": owner.pid}


def _owner_from_json(owner: dict[str, Any] | None) -> Registered | None:
    return None if owner is None else Registered(UUID(owner["uuid"]), owner["name"], owner["id"], owner["pid"])
