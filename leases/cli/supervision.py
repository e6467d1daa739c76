"""While the command runs: signals go to it, its stops and its end are noticed, and so is the loss of its lease.

What stops the command when its lease is lost is the keeper of the lockspace, which was told of its process group.

A command that holds a lease is not suspended from the keyboard: a shell waits for us, not for it, and if we stopped
too, nobody would renew the lease and the command would be killed when it expires.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from leases.cli.child import Child
from leases.cli.failure import one_line
from leases.cli.signals import FORWARDED, Signals
from leases.cli.terminal import Terminal
from leases.manager import Loss

#: seconds between two looks at the lease and at what the command left behind
TICK = 0.2
#: what the command started may run on so long before we say why we wait
LEFTOVERS_NOTICED = 1.0


class Kept(Protocol):
    """What the command runs under: a lease, or a guest's locks. `resource`: what people call it."""

    @property
    def resource(self) -> str: ...

    @property
    def lost(self) -> Loss: ...


class Supervision:
    """One command under one lease. `say` tells the user a line."""

    def __init__(self, child: Child, lease: Kept, signals: Signals, say: Callable[[str], None]) -> None:
        self.child = child
        self.lease = lease
        self.signals = signals
        self.terminal = Terminal()
        self.say = say
        #: why the lease was lost, None as long as it is ours
        self.lost: str | None = None
        #: it was stopped because it is not in the foreground of the terminal
        self._wants_terminal = False

    def run(self, environment: Mapping[str, str]) -> None:
        """Set the command off; returns when it and all of its process group have ended. Raises CannotExecute."""
        self.terminal.offer_if_job(self.child.pid)
        try:
            self.child.start(environment)
            while self.child.ended is None:
                self._turn()
            self._wait_for_leftovers()
        finally:
            self.terminal.take_back()

    def _turn(self) -> None:
        for number in self.signals.wait(TICK):
            if number in FORWARDED:
                self.child.signal(number)
            elif number == signal.SIGCONT:  # a shell continued us, maybe in the foreground now
                self.terminal.offer_if_job(self.child.pid)
                self.child.signal(signal.SIGCONT)
            elif number == signal.SIGTSTP:
                self._refuse_to_stop()
        status = self.child.poll()
        if status is not None and os.WIFSTOPPED(status):
            self._stopped(os.WSTOPSIG(status))
        # a shell that puts us in the foreground need not tell us
        if self._wants_terminal and self.terminal.offer(self.child.pid):
            self._wants_terminal = False
            self.child.signal(signal.SIGCONT)
        self._check_lease()

    def _stopped(self, number: int) -> None:
        if number in (signal.SIGTTIN, signal.SIGTTOU):
            self._wants_terminal = True
        elif number == signal.SIGTSTP:
            self._refuse_to_stop()
            self.child.signal(signal.SIGCONT)

    def _refuse_to_stop(self) -> None:
        self.say("a command that holds a lease can't be suspended from the keyboard; it goes on")

    def _wait_for_leftovers(self) -> None:
        """The lease is in use as long as anything runs that the command started in its group."""
        began = time.monotonic()
        said = False
        while leftovers := self.child.leftovers():
            if not said and time.monotonic() - began >= LEFTOVERS_NOTICED:
                self.say(
                    f"{self.child.command[0]} has ended, but {len(leftovers)} of the processes it started run on "
                    f"({', '.join(map(str, leftovers[:5]))}); the lease is kept until they end"
                )
                said = True
            self._turn()

    def _check_lease(self) -> None:
        reason = self.lease.lost.reason
        if self.lost is None and reason is not None:
            self.lost = one_line(reason)
            self.say(f"lost the lease {self.lease.resource}, so {self.child.command[0]} is being stopped: {self.lost}")
