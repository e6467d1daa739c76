"""I/O by threads that block in preadv and pwritev: where the kernel forbids asynchronous I/O.

Only the waiter has a timeout; the thread stays with a hung disk as long as the disk hangs, and others are
started for what comes after. All are daemon threads, so a hung disk does not keep the program from ending.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from paxos.disk.buffers import Buffer

_Job = tuple[int, int, memoryview, int, bool]


class Threads:
    """As many threads as transfers were ever in flight at once."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._queued: list[_Job] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._threads = 0
        self._busy = 0

    def queue(self, number: int, fd: int, buffer: Buffer, length: int, offset: int, writing: bool) -> None:
        self._queued.append((number, fd, buffer.memory[:length], offset, writing))

    def submit(self) -> Sequence[tuple[int, int]]:
        for job in self._queued:
            self._busy += 1
            if self._busy > self._threads:
                self._threads += 1
                threading.Thread(target=self._work, name="disk", daemon=True).start()
            self._jobs.put(job)
        self._queued.clear()
        return ()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            number, fd, memory, offset, writing = job
            try:
                moved = os.pwritev(fd, [memory], offset) if writing else os.preadv(fd, [memory], offset)
            except OSError as failure:
                moved = -(failure.errno or errno.EIO)
            self._ended.put((number, moved))

    def wait(self, timeout: float) -> Sequence[tuple[int, int]]:
        ended = []
        try:
            first = self._ended.get(timeout=timeout) if timeout > 0 else self._ended.get_nowait()
            while True:
                if first is not None:
                    self._busy -= 1
                    ended.append(first)
                first = self._ended.get_nowait()
        except Empty:
            return ended

    def cancel(self, number: int) -> bool:
        return False

    def wake(self) -> None:
        self._ended.put(None)

    def close(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0
