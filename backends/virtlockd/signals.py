"""The signals of the daemon, as something that can be waited for, and what USR1 ends in."""

from __future__ import annotations

import os
import signal
import sys


class Signals:
    """SIGTERM, SIGINT, SIGQUIT and SIGUSR1 as something that can be waited for."""

    CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @classmethod
    def hold_back(cls) -> None:
        """Let them wait for the next `with`: who has taken everything over must not die before it serves."""
        signal.pthread_sigmask(signal.SIG_BLOCK, cls.CAUGHT)

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        """Those that came since the last call."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def __enter__(self) -> Signals:
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self.CAUGHT:
            signal.signal(number, lambda _number, _frame: None)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a holder that handed over leaves no zombie
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.CAUGHT)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.set_wakeup_fd(-1)


def become_the_next() -> None:
    """Replace this program by itself, as it is on the disk now."""
    Signals.hold_back()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
