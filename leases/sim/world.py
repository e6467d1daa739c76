"""Virtual time: an event queue in which everything happens in one reproducible order.

When everybody sleeps, time jumps. All randomness comes from one seed, split into named streams, so that one
part of a run drawing more or fewer numbers does not change what the others draw. Nothing here reads a real
clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from random import Random
from typing import Any

from leases.sim.checkers import Judge
from leases.sim.trace import Trace


class World:
    """True time `now` (seconds), the queue of what is to happen, and those who watch: trace and judge."""

    def __init__(self, seed: int, judge: Judge | None = None, trace: Trace | None = None) -> None:
        self.seed = seed
        self.now = 0.0
        self.trace = trace if trace is not None else Trace()
        self.judge = judge if judge is not None else Judge([])
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._sequence = 0

    def stream(self, name: str) -> Random:
        """A source of random numbers of its own, the same for the same seed and name."""
        return Random(f"{self.seed}/{name}")

    def at(self, time: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Call `call(argument)` at true time `time`; if that is past at once, after what is due already."""
        self._sequence = sequence = self._sequence + 1
        heappush(self._queue, (time if time > self.now else self.now, sequence, call, argument))

    def after(self, seconds: float, call: Callable[[Any], None], argument: Any = None) -> None:
        self.at(self.now + seconds, call, argument)

    def pending(self) -> Iterator[Any]:
        """What the calls that are to come will be given."""
        return (argument for _, _, _, argument in self._queue)

    def run(self, until: float) -> None:
        """Let happen what is due up to true time `until`. Violations and bugs come out as raised."""
        queue = self._queue
        events = 0
        try:
            while queue and queue[0][0] <= until:
                self.now, _, call, argument = heappop(queue)
                events += 1
                call(argument)
            self.now = max(self.now, until)
        finally:
            self.events += events

    def note(self, host: int, who: str, event: str, number: int = 0, detail: Any = "") -> None:
        """Record an event at the present time."""
        self.trace.add(self.now, host, who, event, number, detail)
