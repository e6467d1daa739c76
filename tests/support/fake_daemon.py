"""A daemon's socket without a daemon: it records what clients send and answers what a test tells it to."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from leases.daemon.numbers import SOCKET_NAME, Command
from leases.daemon.wire import Header, HostEvent, Index, IndexEntry, Lockspace, Resource

#: commands whose header does not say how much follows
_PAYLOADS = {
    Command.HOST_STATUS: Lockspace.layout.size,
    Command.RENEWAL: Lockspace.layout.size,
    Command.LOOKUP_RINDEX: Index.layout.size + IndexEntry.layout.size,
    Command.REG_EVENT: Lockspace.layout.size + HostEvent.layout.size,
}

#: bytes of the structure that follows the header of a reply
_ANSWERS = {
    Command.READ_LOCKSPACE: Lockspace.layout.size,
    Command.READ_RESOURCE: Resource.layout.size,
    Command.READ_RESOURCE_OWNERS: Resource.layout.size,
    Command.LOOKUP_RINDEX: IndexEntry.layout.size,
    Command.UPDATE_RINDEX: IndexEntry.layout.size,
    Command.CREATE_RESOURCE: IndexEntry.layout.size,
    Command.DELETE_RESOURCE: IndexEntry.layout.size,
}

#: makes the reply to a request, from its header and payload; b"" for none, None to close the connection
Answer = Callable[[Header, bytes], bytes | None]


def succeed(header: Header, payload: bytes) -> bytes | None:
    """Result 0, with an empty structure where one follows."""
    if header.command == Command.REGISTER:
        return b""
    follows = bytes(_ANSWERS.get(Command(header.command), 0))
    return header.reply(0, payload=len(follows)).pack() + follows


class FakeDaemon:
    """Listens in a run directory of its own; `requests` are the whole requests in order of their arrival."""

    def __init__(self, answer: Answer = succeed) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.run_dir = Path(tempfile.mkdtemp(prefix="fake-", dir="/tmp"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.run_dir / SOCKET_NAME))
        self._listener.listen(64)
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for connection in self._connections:
            connection.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def stop(self) -> None:
        """Listen no longer; the socket file stays."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to talk to it."""
        return {**os.environ, "SANLOCK_RUN_DIR": str(self.run_dir)}

    def say(self, message: bytes) -> None:
        """Send something unasked on the newest connection."""
        self._connections[-1].sendall(message)

    def hang_up(self) -> None:
        """End all connections."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait_for_requests(self, count: int) -> None:
        """Until so many have arrived, for those that are not answered."""
        while len(self.requests) < count:
            time.sleep(0.01)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for header, payload in _requests(connection):
                self.requests.append(header.pack() + payload)
                reply = self.answer(header, payload)
                if reply is None:
                    break
                connection.sendall(reply)
            connection.close()


def _requests(connection: socket.socket) -> Iterator[tuple[Header, bytes]]:
    while len(raw := receive_exactly(connection, Header.layout.size)) == Header.layout.size:
        header = Header.unpack(raw)
        known = _PAYLOADS.get(Command(header.command))
        yield header, receive_exactly(connection, header.payload if known is None else known)


def receive_exactly(connection: socket.socket, length: int) -> bytes:
    """`length` bytes, or fewer at the end of the connection."""
    data = b""
    while len(data) < length and (part := connection.recv(length - len(data))):
        data += part
    return data
