"""A client of virtlockd's protocol for tests, and locks taken by other programs as they take them."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

from backends.virtlockd.rpc import Error, Frames, Message, Procedure, Status, call, pack_number, pack_text

GUEST = UUID("4dea22b3-1d52-d8f3-2516-782e98ab3fa0")
SHARED, AUTOCREATE = 1, 2
PATIENCE = 30.0


class LockClient:
    """One connection. Calls return None, or the error that the daemon answered with."""

    def __init__(self, path: str | Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))  # with a timeout it would not wait in a full queue
        self.socket.settimeout(PATIENCE)
        self._frames = Frames()
        self._serial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def receive(self) -> Message | None:
        """The next message; None at the end."""
        while (message := self._frames.next()) is None:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._frames.feed(data)
        return message

    def call(self, procedure: Procedure, payload: bytes) -> Error | None:
        self.socket.sendall(call(procedure, self._serial, payload).pack())
        reply = self.receive()
        assert reply is not None, "the daemon hung up"
        assert (reply.procedure, reply.serial) == (procedure, self._serial)
        self._serial += 1
        return None if reply.status == Status.OK else Error.unpack(reply.payload)

    def register(self, pid: int | None = None, name: str = "guest1", id: int = 7) -> Error | None:
        """As the guest with this pid; None: as this process."""
        owner = GUEST.bytes + pack_text(name) + pack_number(id) + pack_number(os.getpid() if pid is None else pid)
        return self.call(Procedure.REGISTER, owner + pack_number(0))

    def restrict(self) -> Error | None:
        return self.call(Procedure.RESTRICT, pack_number(0))

    def new(self, path: str) -> Error | None:
        return self.call(Procedure.NEW, pack_text(path) + pack_number(0))

    def create_lockspace(self, path: str) -> Error | None:
        return self.call(Procedure.CREATE_LOCKSPACE, pack_text(path))

    def create(self, space: str, name: str) -> Error | None:
        return self.call(Procedure.CREATE_RESOURCE, pack_text(space) + pack_text(name) + pack_number(0))

    def delete(self, space: str, name: str) -> Error | None:
        return self.call(Procedure.DELETE_RESOURCE, pack_text(space) + pack_text(name) + pack_number(0))

    def acquire(self, space: str, name: str, flags: int = 0) -> Error | None:
        return self.call(Procedure.ACQUIRE_RESOURCE, pack_text(space) + pack_text(name) + pack_number(flags))

    def release(self, space: str, name: str) -> Error | None:
        return self.call(Procedure.RELEASE_RESOURCE, pack_text(space) + pack_text(name) + pack_number(0))


_OWN_CONNECTION = """
import os, signal, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from tests.support.lockclient import LockClient
if sys.argv[3] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
client = LockClient(sys.argv[2])
assert client.register(name="own") is None
assert client.restrict() is None
print("registered", flush=True)
for line in sys.stdin:
    if line == "close\\n":
        client.socket.close()
"""


class Guest:
    """A process with a registered, restricted connection of its own, as QEMU has it."""

    def __init__(self, path: str | Path, *, stubborn: bool = False) -> None:
        how = "stubborn" if stubborn else "plain"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_CONNECTION, os.pathsep.join(sys.path), str(path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "registered\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def close_connection(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("close\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def posix_lock(path: str | Path, kind: int = fcntl.LOCK_EX) -> int:
    """Lock byte 0 as virtlockd does, for this process; the descriptor. BlockingIOError if somebody has it."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB, 1, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_locked(path: str | Path) -> bool:
    """Whether a stranger is refused byte 0."""
    try:
        os.close(posix_lock(path))
    except BlockingIOError:
        return True
    return False
