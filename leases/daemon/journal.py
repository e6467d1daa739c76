"""The daemon's log: one line an event, the last MiB of it in memory, written to stderr by a thread of its own.

Nobody ever waits for a log. Where stderr does not take its lines as fast as they come, lines are dropped there and
counted; in memory they are there all the same.

    2026-11-24 06:12:03 5321 [4711]: lockspace failed lockspace=vm reason="no renewal for 80 s"
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

ERROR, WARNING, INFO, DEBUG = 3, 4, 6, 7

#: bytes of text kept
KEPT = 1 << 20
#: lines that may wait for stderr
_QUEUED = 4096
#: longest value of one line
_MAX_VALUE = 512


class Journal:
    """`level`: the most detailed one that is written to `fd`. In memory everything is kept."""

    def __init__(self, level: int = INFO, fd: int = 2) -> None:
        self.level = level
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._queue: deque[bytes] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._filled = threading.Event()
        self._writer: threading.Thread | None = None
        self._closing = False

    def error(self, text: str, **facts: object) -> None:
        self._add(ERROR, text, facts)

    def warning(self, text: str, **facts: object) -> None:
        self._add(WARNING, text, facts)

    def info(self, text: str, **facts: object) -> None:
        self._add(INFO, text, facts)

    def debug(self, text: str, **facts: object) -> None:
        self._add(DEBUG, text, facts)

    def dump(self) -> bytes:
        """What is kept, oldest first."""
        with self._lock:
            return b"".join(self._lines)

    def close(self, patience: float = 1.0) -> None:
        """Write what is left, waiting `patience` seconds at most for it."""
        self._closing = True
        self._filled.set()
        if self._writer is not None:
            self._writer.join(patience)

    def _add(self, level: int, text: str, facts: dict[str, object]) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        shown = "".join(f" {key}={_shown(value)}" for key, value in facts.items() if value is not None)
        line = f"{stamp} {uptime} [{threading.get_native_id()}]: {text}{shown}\n".encode("utf-8", "backslashreplace")
        with self._lock:
            self._lines.append(line)
            self._size += len(line)
            while self._size > KEPT:
                self._size -= len(self._lines.popleft())
            if level > self.level:
                return
            if len(self._queue) >= _QUEUED:
                self._dropped += 1
                return
            self._queue.append(line)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
                self._writer.start()
        self._filled.set()

    def _write(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()
            closing = self._closing
            while (text := self._next()) is not None:
                try:
                    while text:
                        text = text[os.write(self._fd, text) :]
                except BlockingIOError:
                    time.sleep(0.05)
                except OSError:
                    break  # nobody reads it any more
            if closing:
                return

    def _next(self) -> bytes | None:
        with self._lock:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                return b"(%d lines were dropped here: nobody read them)\n" % dropped
            return self._queue.popleft() if self._queue else None


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, float):
        value = round(value, 3)
    text = str(value)[:_MAX_VALUE]
    plain = text and not any(char in text for char in ' "=\n')
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
