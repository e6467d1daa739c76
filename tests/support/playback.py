"""Recorded conversations played back by a socket that stands in for the daemon: for tests of clients.

The n-th connection made gets the n-th recorded one: whatever was recorded from the client is read and compared,
whatever was recorded from the daemon is sent.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from leases.daemon.numbers import SOCKET_NAME
from tests.support.fake_daemon import receive_exactly

RECORDINGS = Path(__file__).resolve().parents[1] / "data" / "protocol"


def recorded_cases(name: str) -> dict[str, dict[str, Any]]:
    """The cases of a file of recordings, by their names."""
    document = json.loads((RECORDINGS / name).read_text())
    return {case["name"]: case for case in document["cases"]}


class Playback:
    """Plays the daemon's part of one case. In the end `check` says what the client did differently."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="play-", dir="/tmp"))
        self._connections: list[dict[str, Any]] = case["connections"]
        self._differences: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.run_dir / SOCKET_NAME))
        self._listener.listen(16)
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self.run_dir)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._play, args=(connection, len(self._threads)), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _play(self, connection: socket.socket, number: int) -> None:
        if number >= len(self._connections):
            self._differences.append(f"connection {number} was not recorded")
            connection.close()
            return
        recorded = self._connections[number]
        with connection:
            for message in recorded["messages"]:
                expected = bytes.fromhex(message["hex"])
                if message["dir"] == "d2c":
                    with contextlib.suppress(BrokenPipeError):
                        connection.sendall(expected)
                    continue
                got = receive_exactly(connection, len(expected))
                if got != expected:
                    self._differences.append(
                        f"connection {number}:\n  sent     {got.hex()}\n  recorded {expected.hex()}"
                    )
                    return
            # a client may close without having read all, which resets the connection
            with contextlib.suppress(ConnectionResetError):
                if recorded["end"][:1] != ["daemon-closed"] and (rest := connection.recv(1)):
                    self._differences.append(f"connection {number}: went on with {rest.hex()}")

    def check(self) -> None:
        """Assert that the client sent what was recorded, on as many connections, and closed them."""
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "the client sent less than recorded, or left a connection open"
        assert not self._differences, "\n".join(self._differences)
        assert len(self._threads) == len(self._connections)
