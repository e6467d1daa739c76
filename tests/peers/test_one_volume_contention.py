"""One volume, two engines: hosts of ours and real sanlock daemons contend for one lease, hundreds of rounds.

Two looks at every turn, neither of them through an engine: a file lock that the kernel keeps, and the times that each
contender wrote down (tests/support/contender.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median

import pytest

from paxos.geometry import MIB
from tests.support.peers import SYSTEM_PYTHON, SanlockDaemon
from tests.support.storage import Disk, LoopDisk, PlainDisk
from tests.support.two_engines import ROOT, OneVolume, one_volume

pytestmark = [pytest.mark.peers, pytest.mark.storage, pytest.mark.slow]

#: turns and seconds after which it is over, and how long that may take
_ROUNDS, _SECONDS, _PATIENCE = 400, 10.0, 240.0
#: longer than this (s) nobody waits for a turn among contenders who ask all the time
_STARVED = 60.0


@dataclass(frozen=True)
class Turn:
    """From asking for the lease to giving it back; `began` is infinite where the turn never came."""

    who: str
    wanted: float
    began: float
    ended: float
    shared: bool
    overlap: bool


class Contender:
    """A contending process, and the daemon that it needs."""

    def __init__(self, who: str, host_id: int, volume: OneVolume, arena: Path, share: float, stack: ExitStack) -> None:
        engine = who.rstrip("0123456789")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if engine == "sanlock":
            daemon = stack.enter_context(SanlockDaemon(who))
            daemon.add_lockspace("LS", host_id, volume.path)
            environment = daemon.environment
        facts = {"path": volume.path, "offset": volume.offsets["vm0"], "lease": "vm0", "host_id": host_id}
        facts |= {"arena": str(arena), "who": who, "share": share}
        self.process = subprocess.Popen(
            [
                SYSTEM_PYTHON if engine == "sanlock" else sys.executable,
                str(ROOT / "tests/support/contender.py"),
                engine,
                json.dumps(facts),
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._kill)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self) -> None:
        """The first time: begin. The second time: end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def contend(volume: OneVolume, arena: Path, contenders: Sequence[str], share: float = 0.0) -> list[Turn]:
    """Let these contend for vm0 until there were enough turns; all turns in the order in which they began."""
    with ExitStack() as stack:
        running = [Contender(who, n + 1, volume, arena, share, stack) for n, who in enumerate(contenders)]
        for one in running:
            one.tell()
        start = time.monotonic()
        deadline = start + _PATIENCE
        while len(_turns(arena)) < _ROUNDS or time.monotonic() < start + _SECONDS:
            assert time.monotonic() < deadline, f"only {len(_turns(arena))} turns"
            assert all(one.process.poll() is None for one in running)
            time.sleep(0.25)
        for one in running:
            one.tell()
        assert [one.process.wait(60) for one in running] == [0] * len(running)
        return sorted(_turns(arena), key=lambda turn: turn.began)


def _turns(arena: Path) -> list[Turn]:
    found = []
    for journal in arena.glob("*.journal"):
        for line in journal.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # just being written
                turn = json.loads(line)
                if "until" in turn:
                    found.append(Turn(journal.stem, turn["wanted"], inf, turn["until"], False, False))
                else:
                    times = turn["wanted"], turn["from"], turn["to"]
                    found.append(Turn(journal.stem, *times, turn["shared"], turn["overlap"]))
    return found


def check(turns: list[Turn], contenders: Sequence[str], record: Recorder) -> None:
    """Nobody overlapped whom it must not; everybody had turns, and waited for none too long."""
    had = [turn for turn in turns if turn.began < inf]
    assert not [turn for turn in had if turn.overlap]
    last_exclusive, last = 0.0, 0.0
    for turn in had:
        assert turn.began > (last_exclusive if turn.shared else last)
        last = max(last, turn.ended)
        if not turn.shared:
            last_exclusive = max(last_exclusive, turn.ended)
    for who in contenders:
        own = [turn for turn in had if turn.who == who]
        waits = [min(turn.began, turn.ended) - turn.wanted for turn in turns if turn.who == who]
        record(who, len(own) / len(had), median(waits), max(waits))
        assert own and max(waits) < _STARVED


class Recorder:
    """Says how the turns fell, in the test's output and in the report of a test run."""

    def __init__(self, record_property: Callable[[str, object], None]) -> None:
        self._record_property = record_property

    def __call__(self, who: str, share: float, median_wait: float, longest_wait: float) -> None:
        text = f"{share:.0%} of the turns, waited {median_wait * 1000:.0f} ms (median), {longest_wait:.2f} s at most"
        print(f"{who}: {text}")
        self._record_property(who, text)


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Recorder:
    return Recorder(record_property)


@pytest.fixture(params=["file", "loop"])
def volume(request: pytest.FixtureRequest) -> Iterator[OneVolume]:
    disk: Disk = PlainDisk(8 * MIB) if request.param == "file" else LoopDisk(512, 8 * MIB)
    with disk:
        yield one_volume(disk, ["vm0"])


CROWDS = pytest.mark.parametrize(
    "contenders",
    [["leasehold1", "sanlock1"], ["leasehold1", "leasehold2", "sanlock1"], ["sanlock1", "sanlock2", "leasehold1"]],
    ids="+".join,
)


@CROWDS
def test_nobody_holds_it_twice_and_nobody_starves(
    volume: OneVolume, tmp_path: Path, contenders: list[str], record: Recorder
) -> None:
    turns = contend(volume, tmp_path, contenders)
    check(turns, contenders, record)
    assert volume.leader("vm0").lver >= len([turn for turn in turns if turn.began < inf])


@CROWDS
@pytest.mark.parametrize("volume", ["file"], indirect=True)
def test_readers_and_writers_exclude_each_other(
    volume: OneVolume, tmp_path: Path, contenders: list[str], record: Recorder
) -> None:
    turns = contend(volume, tmp_path, contenders, share=0.6)
    check(turns, contenders, record)
    assert {turn.shared for turn in turns} == {True, False}
