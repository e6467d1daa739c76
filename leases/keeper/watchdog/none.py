"""No watchdog at all: for leases nobody must be stopped for, and said loudly wherever it is in force."""

from __future__ import annotations

from typing import ClassVar

from leases.keeper.watchdog.base import Watchdog, WatchdogConnection

WARNING = "no watchdog: a host that stalls keeps using its leases after other hosts have taken them"


class NoConnection(WatchdogConnection):
    def __init__(self, name: str) -> None:
        self.name = name

    def arm(self, renewal_time: float, expire_time: float) -> None:
        pass

    def renew(self, renewal_time: float, expire_time: float) -> None:
        pass

    def disarm(self) -> None:
        pass

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return WARNING


class NoWatchdog(Watchdog):
    kind: ClassVar[str] = "none"

    def __init__(self, fire_timeout: int) -> None:
        self.fire_timeout = fire_timeout

    def open(self, name: str) -> NoConnection:
        return NoConnection(name)

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return WARNING
