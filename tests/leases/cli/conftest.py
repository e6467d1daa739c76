"""The command as users run it: a process of its own, a home of its own, a volume with leases nobody used yet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from leases.volume import Volume

#: seconds that anything may take before a test gives up
PATIENCE = 60
LEASES = 90


@dataclass
class Cli:
    """Runs `leasehold`. What it started and did not end is ended with it."""

    home: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        return {**kept, "HOME": str(self.home), "TERM": "dumb"}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "leases.cli.main", *words]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(self.argv(*words), env=self.environment, capture_output=True, text=True, timeout=PATIENCE)

    def json(self, *words: str, code: int = 0) -> Any:
        """Run it with --json; what it wrote, all of which must be JSON."""
        done = self(*words, "--json")
        assert done.returncode == code, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def start(self, *words: str, **how: Any) -> subprocess.Popen[str]:
        """Start it and do not wait for its end."""
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
        process = subprocess.Popen(self.argv(*words), env=self.environment, text=True, **how)
        self.started.append(process)
        return process


@dataclass
class LeaseVolume:
    """A volume with io_timeout 1, and names of leases on it that no test has used."""

    path: str
    names: list[str]

    def lease(self) -> str:
        return self.names.pop()


@pytest.fixture(scope="session")
def room() -> Iterator[Path]:
    """A directory where O_DIRECT works."""
    directory = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="leasehold-cli-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def volume(room: Path) -> LeaseVolume:
    made = Volume.create(str(room / "volume"), "LS", leases=LEASES, io_timeout=1)
    names = [f"lease{number}" for number in range(LEASES - 1)]
    with made.join(watchdog="none") as lockspace:
        for name in names:
            lockspace.create_lease(name)
    return LeaseVolume(str(room / "volume"), names)


@pytest.fixture
def cli(room: Path) -> Iterator[Cli]:
    cli = Cli(Path(tempfile.mkdtemp(dir=room)))
    yield cli
    for process in cli.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Wait until something is true."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, "it does not come true"
            time.sleep(0.02)
        return value

    return wait
