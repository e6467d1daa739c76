"""A small world to play in: one disk, a few machines, each with a process that runs what a test gives it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leases.sim.checkers import Judge
from leases.sim.disk import Path, SimDisk
from leases.sim.faults import NONE, Faults, Plan
from leases.sim.machine import Machine, Process
from leases.sim.world import World


class Ground:
    """`processes[i]` runs on `machines[i]`, which reaches `disk` by `paths[i]`."""

    def __init__(self, seed: int = 1, hosts: int = 2, faults: Faults = NONE, rules: tuple[object, ...] = ()) -> None:
        self.world = World(seed, Judge(rules))
        self.plan = Plan(seed, faults)
        self.disk = SimDisk(self.world, "disk", 4 << 20, remember_s=faults.stale_s)
        self.machines = [Machine(self.world, number, fire=60.0, margin=2.0) for number in range(1, hosts + 1)]
        self.paths = [Path(machine, self.disk, self.plan) for machine in self.machines]
        self.processes = []
        for machine in self.machines:
            machine.boot()
            self.processes.append(Process(machine, "test"))


@pytest.fixture
def ground() -> Callable[..., Ground]:
    return Ground
