"""Make a failing run smaller: fewer faults, fewer hosts, fewer clients, until nothing more can be left out.

Faults are deleted in chunks that get smaller (Zeller's delta debugging). Leaving one out changes what happens
after
it, so a smaller run may fail at another moment; it counts as long as the same rule is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from leases.sim.checkers import Violation
from leases.sim.cluster import Outcome, Setup

Run = Callable[[Setup], Outcome]


def rule_of(failure: Exception | None) -> str:
    """What a run failed by: the rule it broke, or the kind of exception that came out of a protocol."""
    if failure is None:
        return ""
    return failure.rule if isinstance(failure, Violation) else type(failure).__name__


def shrink(failing: Outcome, run: Run, *, max_runs: int = 400) -> Outcome:
    """A smaller run that breaks the same rule as `failing`, found with at most `max_runs` runs."""
    rule = rule_of(failing.failure)
    assert rule
    best = failing
    runs = 0

    def fails(setup: Setup) -> bool:
        nonlocal best, runs
        if runs >= max_runs:
            return False
        runs += 1
        outcome = run(setup)
        if rule_of(outcome.failure) != rule:
            return False
        best = outcome
        return True

    setup = failing.setup
    if not setup.calm_s or failing.seconds < setup.hours * 3600:
        setup = replace(setup, hours=failing.seconds / 3600 + 0.001, calm_s=0.0)
    setup = replace(setup, only=frozenset(key for key, _ in failing.chosen))
    if not fails(setup):
        return failing
    while runs < max_runs:
        size = _size(best.setup)
        _fewer_faults(lambda: best, fails)
        _fewer_hosts_and_clients(lambda: best, fails)
        if _size(best.setup) == size:
            break
    return best


def _size(setup: Setup) -> tuple[int, int, int]:
    return len(setup.only or ()), setup.hosts, setup.work.clients


def _fewer_faults(best: Callable[[], Outcome], fails: Callable[[Setup], bool]) -> None:
    chunk = max(1, len(best().chosen) // 2)
    while True:
        keys = [key for key, _ in best().chosen]
        start = 0
        while start < len(keys):
            fewer = keys[:start] + keys[start + chunk :]
            if fails(replace(best().setup, only=frozenset(fewer))):
                keys = [key for key in fewer if key in {key for key, _ in best().chosen}]
            else:
                start += chunk
        if chunk == 1:
            return
        chunk = max(1, chunk // 2)


def _fewer_hosts_and_clients(best: Callable[[], Outcome], fails: Callable[[Setup], bool]) -> None:
    while best().setup.hosts > 2 and fails(replace(best().setup, hosts=best().setup.hosts - 1)):
        pass
    while best().setup.work.clients > 1:
        work = replace(best().setup.work, clients=best().setup.work.clients - 1)
        if not fails(replace(best().setup, work=work)):
            break
