"""How late renewals begin, as a histogram: what other work on this host does to them."""

from __future__ import annotations

from bisect import bisect_right

#: seconds; a renewal that begins later than the last one is in a class of its own
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


class Jitter:
    """`counts[n]`: renewals that began at least BOUNDS[n - 1] and less than BOUNDS[n] seconds after they were due."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)

    def note(self, seconds_late: float) -> None:
        self.counts[bisect_right(BOUNDS, seconds_late)] += 1


def shown(counts: list[int]) -> str:
    """`1:250,2:3,...`: renewals by the upper bound of their class in ms; empty classes are left out."""
    names = [*(f"{bound * 1000:g}" for bound in BOUNDS), "more"]
    return ",".join(f"{name}:{count}" for name, count in zip(names, counts, strict=False) if count)
