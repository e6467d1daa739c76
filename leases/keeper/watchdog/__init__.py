"""Watchdogs: what stops this host's users of a lease when it is no longer renewed. One module for each kind.

wdmd       sanlock's watchdog daemon resets the machine      (the one that sanlock hosts of the cluster use)
device     the kernel's /dev/watchdog resets the machine     (fed by us)
systemd    systemd kills the processes of this service       (fed by us)
guardian   a process of ours kills those that use leases
none       nothing does
auto       wdmd if one answers, else a device if one is usable, else a guardian
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from leases.keeper.watchdog import device as device_kind
from leases.keeper.watchdog import wdmd as wdmd_kind
from leases.keeper.watchdog.base import Watchdog, WatchdogConnection, boot_time
from leases.keeper.watchdog.device import DeviceWatchdog
from leases.keeper.watchdog.guardian import Guardian
from leases.keeper.watchdog.none import NoWatchdog
from leases.keeper.watchdog.systemd import ABORT_TIMEOUT, SystemdWatchdog
from leases.keeper.watchdog.wdmd import WdmdWatchdog
from paxos.errors import InvalidUse, WatchdogUnavailable
from paxos.timing import DEFAULT_FIRE_TIMEOUT

__all__ = ["KINDS", "Watchdog", "WatchdogConnection", "boot_time", "open_watchdog"]

KINDS = ("auto", "wdmd", "device", "systemd", "guardian", "none")


def open_watchdog(
    kind: str,
    fire_timeout: int = DEFAULT_FIRE_TIMEOUT,
    *,
    wdmd_socket: str = wdmd_kind.SOCKET_PATH,
    devices: Sequence[str] = device_kind.PATHS,
    abort_timeout: float = ABORT_TIMEOUT,
    grace: float | None = None,
    on_feeder_death: Literal["wait", "kill"] = "wait",
) -> Watchdog:
    """The watchdog of this `kind`, with nothing armed; what it is, its `describe()` says.

    `fire_timeout`, `abort_timeout` (systemd) and `grace` (guardian) in seconds. Only "auto" looks whether a
    kind is there; the others say so when a lockspace is opened. InvalidUse for a kind that does not exist.
    """
    if kind == "none":
        return NoWatchdog(fire_timeout)
    if fire_timeout < 1:
        raise InvalidUse(reason=f"a watchdog can't fire after {fire_timeout} s")
    if kind == "auto":
        missing = []
        for choice in (WdmdWatchdog(fire_timeout, wdmd_socket), DeviceWatchdog(fire_timeout, devices)):
            try:
                choice.check()
            except WatchdogUnavailable as refusal:
                missing.append(str(refusal.reason))
                choice.close()
            else:
                return choice
        return Guardian(fire_timeout, grace=grace, on_feeder_death=on_feeder_death, because="; ".join(missing))
    if kind == "wdmd":
        return WdmdWatchdog(fire_timeout, wdmd_socket)
    if kind == "device":
        return DeviceWatchdog(fire_timeout, devices)
    if kind == "systemd":
        return SystemdWatchdog(fire_timeout, abort_timeout=abort_timeout)
    if kind == "guardian":
        return Guardian(fire_timeout, grace=grace, on_feeder_death=on_feeder_death)
    raise InvalidUse(reason=f"no watchdog is called {kind!r}; there are {', '.join(KINDS)}")
