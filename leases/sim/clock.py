"""A host's own clock: it starts anywhere, runs a little fast or slow, and may stand still.

True time is the simulator's (seconds, float). Protocols only ever see a HostClock, as real hosts only see
theirs. A clock that stands still is what a paused virtual machine has: when it
wakes, no time has passed for it.
"""

from __future__ import annotations

#: a sleep ends this much (true seconds) after its time, rather than a rounding error before it
_NEVER_EARLY_S = 1e-7


class HostClock:
    """Reads `start` at true time `true_now` and runs `rate` seconds for each true second."""

    __slots__ = ("_base_own", "_base_true", "_still", "rate")

    def __init__(self, true_now: float, start: float = 0.0, rate: float = 1.0) -> None:
        assert rate > 0
        self.rate = rate
        self._base_true = true_now
        self._base_own = start
        self._still = False

    def read(self, true_now: float) -> float:
        """What this clock shows at a true time, in its own seconds."""
        if self._still:
            return self._base_own
        return self._base_own + (true_now - self._base_true) * self.rate

    def true_delay(self, own_seconds: float) -> float:
        """True seconds until this clock has surely moved `own_seconds`, if it keeps running."""
        return own_seconds / self.rate + _NEVER_EARLY_S

    def stand_still(self, true_now: float) -> None:
        self._base_own = self.read(true_now)
        self._base_true = true_now
        self._still = True

    def run_on(self, true_now: float) -> None:
        """Continue from where it stood still."""
        if self._still:
            self._base_true = true_now
            self._still = False
