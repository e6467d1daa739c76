"""The daemon's clock, where `leases.keeper.watchdog` (which has the same) may not be imported yet."""

from __future__ import annotations

import time


def boot_time() -> float:
    """Seconds since boot, counting suspended time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
