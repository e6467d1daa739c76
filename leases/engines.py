"""Disk engines for the threads of this process: each takes one for a while, and does its own I/O with it.

Interrupted by Ctrl-C in the middle of an I/O, a protocol would not know what it wrote. So while the main thread
drives one, `ctrl_c_waits` lets it come to a place where it merely waits.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from paxos.disk.abort import AbortSignal
from paxos.disk.device import Devices
from paxos.disk.engine import Engine
from paxos.steps import Steps

T = TypeVar("T")

#: transfers in flight of one engine: a lease operation has one at a time, the others are overdue ones
_CAPACITY = 64
#: idle engines kept, unless told otherwise; each has 2 MiB of memory
_KEPT = 4


class Engines:
    """Engines over one table of devices."""

    def __init__(self, devices: Devices | None = None, kept: int = _KEPT) -> None:
        self.devices = Devices() if devices is None else devices
        self._kept = kept
        self._idle: list[Engine] = []

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """One for this thread, until the end of the block."""
        try:
            engine = self._idle.pop()
        except IndexError:
            engine = Engine(self.devices, capacity=_CAPACITY)
        engine.abandoned = []
        try:
            yield engine
        finally:
            if len(self._idle) < self._kept:
                self._idle.append(engine)
            else:
                engine.close()

    def run(self, steps: Steps[T], abort: AbortSignal | None = None) -> T:
        """Drive one protocol. What it returns must not be a view of what it read."""
        with self.engine() as engine:
            return engine.run(steps, abort)

    def close(self) -> None:
        """Never waits for a disk."""
        self._close_idle()
        self.devices.close()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        """An engine that nobody closes keeps its memory and its context in the kernel.

        Not at the interpreter's end: a thread that is stopped then may have one of the locks for good.
        """
        if not sys.is_finalizing():
            self._close_idle()


class CtrlC:
    """Whether Ctrl-C was pressed meanwhile."""

    def __init__(self) -> None:
        self.pressed = False


@contextmanager
def ctrl_c_waits(abort: AbortSignal | None = None) -> Iterator[CtrlC]:
    """Ctrl-C sets `abort` and raises KeyboardInterrupt at the end of the block; pressed again, at once.

    Only in the main thread, and only where Ctrl-C has Python's own meaning.
    """
    state = CtrlC()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield state
        return

    def pressed(_number: int, _frame: FrameType | None) -> None:
        if state.pressed:
            raise KeyboardInterrupt
        state.pressed = True
        if abort is not None:
            abort.set("interrupted")

    signal.signal(signal.SIGINT, pressed)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if state.pressed:
            raise KeyboardInterrupt
