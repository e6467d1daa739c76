"""Signals of `leasehold run`: before the command runs they end the waiting, afterwards they are the command's."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType, TracebackType

from paxos.disk.abort import AbortSignal

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
#: those that end a program which does not ask for them
ENDING = frozenset(FORWARDED) - {signal.SIGWINCH}


class Signals:
    """Context manager: collects signals in a queue that can be polled; those that end a program set `abort`.

    What was ignored when we were started (nohup, a shell's background jobs) stays ignored.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[int, object] = {}
        self.abort = AbortSignal()
        #: the signal that set `abort`
        self.aborted_by: int | None = None

    def __enter__(self) -> Signals:
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> list[int]:
        """The signals that came since the last call; waits up to `seconds` for the first."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return []
        return list(os.read(self._read, 4096))

    def _caught(self, number: int, frame: FrameType | None) -> None:
        """Its number lies in the pipe already, for `wait`."""
        if number in ENDING and self.aborted_by is None:
            self.aborted_by = number
            self.abort.set(f"stopped by {signal.Signals(number).name} before the lease was taken")
