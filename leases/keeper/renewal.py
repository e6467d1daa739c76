"""The renewal thread: takes the host lease, arms the watchdog, and renews until the lockspace is left.

It has an engine of its own, with its own descriptors, buffers and I/O context, and takes no lock that a client's
work can hold for longer than a few dictionary operations.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from paxos.disk.abort import AbortSignal
from paxos.disk.engine import Engine
from paxos.steps import Steps

#: how much more urgent than the threads of an ordinary program
_NICE = -15


class RenewalThread(threading.Thread):
    """Runs `life` (join, then keep_renewing) on `engine`; `when_done` gets what it failed with, if it did."""

    def __init__(
        self, name: str, engine: Engine, life: Steps[None], when_done: Callable[[BaseException | None], None]
    ) -> None:
        super().__init__(name=f"renewal {name}", daemon=True)
        self._engine = engine
        self._life = life
        self._when_done = when_done
        self._abort = AbortSignal()

    @property
    def aborted(self) -> bool:
        return self._abort.is_set()

    def abort(self, reason: str) -> None:
        """It ends where it merely waits; what it is writing it writes first."""
        self._abort.set(reason)

    def run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        failure: BaseException | None = None
        try:
            self._engine.run(self._life, self._abort)
        except Exception as error:
            failure = error
        finally:
            self._engine.close()
        self._when_done(failure)
