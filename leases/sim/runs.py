"""Many runs: seed after seed on all cores, resumable, added up.

A run is wholly told by its Setup, so a worker process gets nothing else and gives back numbers; the trace of a run that
failed is had by running it again. A state file has one line for each finished seed: a campaign that is begun again
with the same file leaves those out, and adds them up all the same.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from leases.sim.checkers import Violation
from leases.sim.cluster import Cluster, Outcome, Setup
from leases.sim.shrink import rule_of
from paxos.errors import InvalidUse


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one seed. `seconds` is virtual time, `cpu` what it took of one core."""

    seed: int
    seconds: float
    operations: int
    grants: int
    events: int
    cpu: float
    #: the rule that was broken, or the kind of exception that came out of a protocol, and what it said
    rule: str = ""
    failure: str = ""
    #: rules that hosts of the reference broke among themselves, with how often
    among_references: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Totals:
    """All results of a campaign, added up."""

    runs: int = 0
    hours: float = 0.0
    operations: int = 0
    grants: int = 0
    events: int = 0
    cpu: float = 0.0
    violations: int = 0
    #: two holders at a time, all of them hosts of the reference
    reference_doubles: int = 0

    def add(self, result: Result) -> None:
        self.runs += 1
        self.hours += result.seconds / 3600
        self.operations += result.operations
        self.grants += result.grants
        self.events += result.events
        self.cpu += result.cpu
        self.violations += bool(result.rule)
        self.reference_doubles += dict(result.among_references).get("one owner", 0)

    @property
    def rate(self) -> float:
        """Lease operations a second on one core."""
        return self.operations / self.cpu if self.cpu else 0.0


def simulate(setup: Setup) -> Outcome:
    """One run, with its trace."""
    return Cluster(setup).run()


def result_of(setup: Setup) -> Result:
    """One run, without."""
    begun = time.process_time()
    outcome = simulate(setup)
    broken: dict[str, int] = {}
    for double in outcome.doubles:
        broken[double.rule] = broken.get(double.rule, 0) + 1
    return Result(
        seed=setup.seed,
        seconds=outcome.seconds,
        operations=outcome.operations,
        grants=outcome.grants,
        events=outcome.events,
        cpu=time.process_time() - begun,
        rule=rule_of(outcome.failure),
        failure=_words(outcome.failure),
        among_references=tuple(sorted(broken.items())),
    )


def _words(failure: Exception | None) -> str:
    if failure is None:
        return ""
    return str(failure) if isinstance(failure, Violation) else f"{type(failure).__name__}: {failure}"


def campaign(
    setup: Setup,
    seeds: Iterable[int],
    *,
    jobs: int,
    state: Path | None = None,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Run `setup` for each seed, on `jobs` cores; results in the order of seeds. `told` hears of each as it ends.

    Raises InvalidUse if `state` is of another campaign.
    """
    seeds = list(seeds)
    kept = _State(state, setup) if state is not None else None
    results = {seed: kept.results[seed] for seed in seeds if kept is not None and seed in kept.results}
    for result in results.values():
        told(result)
    todo = [replace(setup, seed=seed) for seed in seeds if seed not in results]
    for result in _on_cores(todo, jobs):
        results[result.seed] = result
        if kept is not None:
            kept.add(result)
        told(result)
    return [results[seed] for seed in seeds]


def _on_cores(setups: list[Setup], jobs: int) -> Iterator[Result]:
    jobs = min(jobs, len(setups))
    if jobs <= 1:
        yield from map(result_of, setups)
        return
    # spawned, not forked: whoever calls may have threads; and behind everybody who has to keep a time
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=os.nice, initargs=(10,)) as pool:
        yield from pool.imap_unordered(result_of, setups)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


class _State:
    """Results on disk. The first line says of which campaign."""

    def __init__(self, path: Path, setup: Setup) -> None:
        self._path = path
        self.results: dict[int, Result] = {}
        told = json.dumps({"setup": repr(replace(setup, seed=0))})
        if not path.exists():
            path.write_text(told + "\n")
            return
        first, *lines = path.read_text().splitlines() or [""]
        if first != told:
            raise InvalidUse(reason=f"{path} has the results of other runs: {first[:200]}")
        for line in lines:
            with suppress(ValueError):  # the last line may have been cut off
                result = json.loads(line)
                result["among_references"] = tuple(map(tuple, result["among_references"]))
                self.results[result["seed"]] = Result(**result)

    def add(self, result: Result) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
