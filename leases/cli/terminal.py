"""The terminal under a command that runs in a process group of its own: who is in the foreground.

A command that is a job of its own gets the terminal at once, as a shell would give it. In a script or a pipeline
others of our group may use the terminal too, so there the command gets it only when it wants to read: the kernel
stops it then (SIGTTIN), it is given the terminal and goes on. While it does not have it, Ctrl-C reaches this
process, which forwards it.
"""

from __future__ import annotations

import os
import signal
import stat


class Terminal:
    """The controlling terminal of this process, if there is one."""

    def __init__(self) -> None:
        try:
            self._fd: int | None = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            self._fd = None
        self.given = False

    def offer(self, group: int) -> bool:
        """Put this process group in the foreground if we are there. Whether it is there now."""
        if self._fd is None:
            return False
        if self._foreground() == os.getpgrp():
            self.given = self._set(group)
        return self._foreground() == group

    def offer_if_job(self, group: int) -> None:
        """The same, if as far as can be seen a shell started this process as all of a foreground job."""
        if os.getpgrp() == os.getpid() and not any(map(_is_pipe, (0, 1))):
            self.offer(group)

    def take_back(self) -> None:
        """Back in the foreground ourselves, if we gave it away."""
        if self.given:
            self._set(os.getpgrp())
            self.given = False

    def _foreground(self) -> int | None:
        assert self._fd is not None
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return None  # it hung up

    def _set(self, group: int) -> bool:
        assert self._fd is not None
        # changing it from the background would stop us
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            os.tcsetpgrp(self._fd, group)
        except OSError:
            return False  # it hung up, or the group ended
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return True


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False
