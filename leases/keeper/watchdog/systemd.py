"""systemd's service watchdog: systemd kills this service unless WATCHDOG=1 reaches it in time (sd_notify(3)).

The unit needs `WatchdogSec=` (any value up to the fire timeout), and, when a child process of the service
feeds, `NotifyAccess=all`. When the time is up, systemd sends SIGABRT to the processes of the unit and,
`TimeoutAbortSec=` later, SIGKILL. Both together must fit into the fire timeout, so the timer is set to what
remains of it.

It stops the processes of this unit and no others: virtual machines in scopes of their own run on. It does not
reset the machine, so it can't stop what hangs in the kernel.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import ClassVar

from leases.keeper.watchdog.base import boot_time
from leases.keeper.watchdog.fed import FedWatchdog
from paxos.errors import WatchdogUnavailable

#: seconds; what TimeoutAbortSec= of the unit must not exceed
ABORT_TIMEOUT = 10.0


class SystemdWatchdog(FedWatchdog):
    """Fed from the moment it is made: the timer of the service runs already."""

    kind: ClassVar[str] = "systemd"
    always_fed: ClassVar[bool] = True

    def __init__(
        self,
        fire_timeout: int,
        *,
        abort_timeout: float = ABORT_TIMEOUT,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = boot_time,
        thread: bool = True,
    ) -> None:
        super().__init__(fire_timeout, clock=clock, thread=thread)
        self.abort_timeout = abort_timeout
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watched_pid = environ.get("WATCHDOG_PID", "")
        self._timer_seconds = _seconds(environ.get("WATCHDOG_USEC", ""))
        self._watched = self._timer_seconds > 0
        if self._watched:
            self._timer_seconds = max(0.0, min(self._timer_seconds, fire_timeout - abort_timeout))
            self.interval = min(self.interval, max(self._timer_seconds, 0.4) / 4)
            self._run_feeder()

    def check(self) -> None:
        if not self._address:
            raise WatchdogUnavailable(reason="not a service of systemd that may notify it (no NOTIFY_SOCKET)")
        if not self._watched:
            raise WatchdogUnavailable(reason="the unit has no WatchdogSec= (no WATCHDOG_USEC)")
        if self._timer_seconds < 1:
            raise WatchdogUnavailable(
                reason=f"a fire timeout of {self.fire_timeout} s leaves no time beside the "
                f"{self.abort_timeout} s that systemd waits from SIGABRT to SIGKILL"
            )

    def describe(self) -> str:
        trouble = f"; IN TROUBLE: {self.trouble}" if self.trouble else ""
        child = self._watched_pid not in ("", str(os.getpid()))
        access = "; the unit needs NotifyAccess=all" if child else ""
        return (
            f"systemd: kills this unit's processes, and only those, {self._timer_seconds:.0f} s after the "
            f"last feeding (SIGABRT, SIGKILL {self.abort_timeout:.0f} s later if TimeoutAbortSec= is that)"
            f"{access}{trouble}"
        )

    def _start(self) -> None:
        self.check()
        self._notify(f"WATCHDOG_USEC={int(self._timer_seconds * 1e6)}\nWATCHDOG=1")

    def _feed(self) -> None:
        self._notify("WATCHDOG=1")

    def _cut(self, seconds: float) -> None:
        left = min(self._timer_seconds, seconds - self.abort_timeout)
        self._notify(f"WATCHDOG_USEC={max(1, int(left * 1e6))}")

    def _stop(self) -> None:
        """The service's timer runs as long as the service."""

    def _notify(self, message: str) -> None:
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(1.0)
            channel.sendto(message.encode(), address)


def _seconds(microseconds: str) -> float:
    """0 for what is no number."""
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
