"""What the daemon holds, written down beside its socket, so that the next one can go on where it was killed.

A file of lines, each a key with its newest value, or without one when it is gone. It is written before what it tells
of is done, and read once, at a start. It need not outlive the machine (run directories do not), so nothing is synced;
what it says is proven against the disk and the processes before it is believed (leases/daemon/adoption.py).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

FILE_NAME = "held.log"
#: lines that may be outdated before the file is written anew
_OUTDATED = 4096

Value = dict[str, Any]


class Ledger:
    """Of one run directory, whose lock this process has."""

    def __init__(self, run_dir: str) -> None:
        self.path = os.path.join(run_dir, FILE_NAME)
        self._values: dict[str, Value] = {}
        self._lines = 0
        self._fd = -1

    def read(self) -> dict[str, Value]:
        """What an earlier daemon wrote. A last line that was cut off is as if it had not been begun."""
        found: dict[str, Value] = {}
        with suppress(FileNotFoundError), open(self.path, encoding="utf-8") as file:
            for line in file:
                try:
                    key, value = json.loads(line)
                except ValueError:
                    break
                if value is None:
                    found.pop(key, None)
                else:
                    found[key] = value
        return found

    def begin(self) -> None:
        """From now on it is this daemon's, and empty."""
        self._rewrite()

    def put(self, key: str, value: Value) -> None:
        self._values[key] = value
        self._append(key, value)

    def drop(self, key: str) -> None:
        if self._values.pop(key, None) is not None:
            self._append(key, None)

    def _append(self, key: str, value: Value | None) -> None:
        if self._fd < 0:
            return
        self._lines += 1
        if self._lines > len(self._values) + _OUTDATED:
            self._rewrite()
        else:
            with suppress(OSError):  # a full file system: the next daemon will know less
                os.write(self._fd, _line(key, value))

    def _rewrite(self) -> None:
        """Everything at once, in a new file that then takes the other one's place."""
        new = self.path + ".new"
        fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with suppress(OSError):
            os.write(fd, b"".join(_line(key, value) for key, value in self._values.items()))
        os.replace(new, self.path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._lines = fd, len(self._values)


def _line(key: str, value: Value | None) -> bytes:
    return json.dumps([key, value], separators=(",", ":")).encode() + b"\n"
