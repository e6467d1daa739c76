"""Contests: our code, the real sanlock daemon and the bare I/O do the same thing in turn, and the medians compare.

A contest is one benchmark (of our code). Before each of its rounds the others have theirs, so whatever the machine
does meanwhile it does to all; their medians and the ratios are in the benchmark's `extra_info` and in a table at the
end of the run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import rmtree
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.contestants import Round

#: one line for each contest, for the end of the run
_results: list[str] = []


class Contest:
    """Compares rounds; see the module. `ours` is what is timed for us, `prepare` is what must be so before it."""

    def __init__(self, benchmark: BenchmarkFixture, name: str) -> None:
        self._benchmark = benchmark
        self._name = name

    def __call__(
        self,
        ours: Callable[[], object],
        others: dict[str, Round],
        *,
        prepare: Callable[[], object] = lambda: None,
        afterwards: Callable[[], dict[str, list[float]]] = dict,
        rounds: int = 100,
    ) -> None:
        """`afterwards` brings the times (s) of who can't be told when to have a round."""
        times: dict[str, list[float]] = {name: [] for name in others}

        def before() -> None:
            for name, take in others.items():
                times[name].append(take())
            prepare()

        for take in others.values():
            take()  # unmeasured: first times are slow
        prepare()
        ours()
        self._benchmark.pedantic(ours, setup=before, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]
        if self._benchmark.stats is None:  # --benchmark-disable
            return
        mine = self._benchmark.stats.stats.median
        times |= afterwards()
        line = f"{self._name:40} {'ours':>8} {_text(mine)}"
        for name, taken in times.items():
            theirs = median(taken)
            self._benchmark.extra_info[f"{name}_median"] = theirs
            self._benchmark.extra_info[f"ratio_to_{name}"] = mine / theirs
            line += f"   {name:>8} {_text(theirs)} ({mine / theirs:.2f})"
        _results.append(line)


def _text(seconds: float) -> str:
    return f"{seconds * 1e3:9.3f} ms"


@pytest.fixture
def contest(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Contest:
    return Contest(benchmark, request.node.name.removeprefix("test_"))


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """On a file system with direct I/O."""
    path = Path(tempfile.mkdtemp(prefix="leasehold-bench-", dir="/var/tmp"))
    yield path
    rmtree(path, ignore_errors=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _results:
        terminalreporter.section("contests: medians, and our time as a share of the others'")
        for line in _results:
            terminalreporter.write_line(line)
