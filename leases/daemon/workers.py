"""Threads for what may wait for a disk. One is added whenever all are busy, up to a limit; idle ones end after a while.

What waits for other hosts or processes (joining, leaving) gets a thread of its own, so a dozen joins that take three
minutes each keep nobody else waiting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

#: seconds after which a thread without work ends
_IDLE = 30.0

Done = Callable[[object, BaseException | None], None]


class Workers:
    """`most`: threads at once; what comes then waits for one of them, in order."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._jobs: deque[tuple[Callable[[], object], Done]] = deque()
        self._condition = threading.Condition()
        self._threads = 0
        self._idle = 0

    def submit(self, job: Callable[[], object], done: Done) -> None:
        """Call `done` (in the worker) with what the job returned, or with what it raised."""
        with self._condition:
            self._jobs.append((job, done))
            if self._idle >= len(self._jobs):
                self._condition.notify()
            elif self._threads < self.most:
                self._threads += 1
                threading.Thread(target=self._work, name="worker", daemon=True).start()

    def own_thread(self, name: str, job: Callable[[], object], done: Done) -> None:
        threading.Thread(target=_do, args=(job, done), name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                while not self._jobs:
                    if not self._condition.wait(_IDLE) and not self._jobs:
                        self._idle -= 1
                        self._threads -= 1
                        return
                self._idle -= 1
                job, done = self._jobs.popleft()
            _do(job, done)


def _do(job: Callable[[], object], done: Done) -> None:
    try:
        result = job()
    except BaseException as error:
        done(None, error)
    else:
        done(result, None)
