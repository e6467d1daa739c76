"""Several protocols side by side in one world in memory: each sleeps on its own, time goes to whoever wakes first."""

from __future__ import annotations

from typing import Any

from paxos.steps import Sleep, Steps
from tests.support.memory import MemoryWorld, Running


class Crew:
    """Protocols that run at the same time. Their I/O takes no time; where it is late, all wait for it."""

    def __init__(self, world: MemoryWorld) -> None:
        self.world = world
        self.sleeping: list[tuple[Running, float]] = []

    def add(self, protocol: Steps[Any]) -> Running:
        running = self.world.start(protocol)
        self._until_asleep(running)
        return running

    def run(self, until: float) -> None:
        """Let all go on until the clock shows `until`, or all have ended. A failure of one is raised."""
        while self.sleeping:
            running, wakes = min(self.sleeping, key=lambda one: one[1])
            if wakes > until:
                break
            self.sleeping.remove((running, wakes))
            self.world.pass_time(max(0.0, wakes - self.world.time))
            running.wake()
            self._until_asleep(running)
        self.world.pass_time(max(0.0, until - self.world.time))

    def _until_asleep(self, running: Running) -> None:
        running.until(lambda step: isinstance(step, Sleep))
        if running.failure is not None:
            raise running.failure
        if running.step is not None:
            self.sleeping.append((running, self.world.time + running.step.seconds))
