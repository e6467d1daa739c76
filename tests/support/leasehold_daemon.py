"""Our own daemon in a process of its own, with the interface that tests know the reference's daemon by."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.peers import PATIENCE, PeerFailed, SanlockDaemon

ROOT = Path(__file__).resolve().parents[2]


_AS_ROOT = ["--user", "root", "--group", "root"]


class LeaseholdDaemon(SanlockDaemon):
    """`leasehold daemon`, without watchdog unless the options say otherwise."""

    def start(self) -> Self:
        return self._start([*self.argv(), *_AS_ROOT, "--watchdog", "none", "--host-name", self.name, "-D"])

    def _start(self, argv: list[str]) -> Self:
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                [*argv, *self._options],
                env={**self.environment, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise PeerFailed(f"leasehold daemon {self.name} did not come up\n{self.log()}")
            time.sleep(0.02)
        return self

    @staticmethod
    def argv() -> list[str]:
        return [sys.executable, "-m", "leases.cli.main", "daemon"]

    def crash(self) -> None:
        """As good as a host that lost its power: SIGKILL to everything of the daemon, the keeper first."""
        if self.running:
            found = subprocess.run(["pgrep", "-P", str(self.pid)], capture_output=True, text=True).stdout
            for child in found.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        self.kill()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Until it has ended: its exit status."""
        assert self._process is not None
        return self._process.wait(timeout)


class SanlockCommandDaemon(LeaseholdDaemon):
    """`leasehold sanlock daemon`, started with the very arguments that tests start the real one with."""

    def start(self) -> Self:
        options = ["-D", "-w", "0", "-h", "0", "-l", "0", "-U", "root", "-G", "root", "-e", self.name]
        return self._start([sys.executable, "-m", "leases.cli.main", "sanlock", "daemon", *options])


#: the two kinds of daemon by name, for tests that both must pass
DAEMONS: dict[str, type[SanlockDaemon]] = {"sanlock": SanlockDaemon, "leasehold": LeaseholdDaemon}


@pytest.fixture
def leasehold_daemons() -> Iterator[Callable[..., LeaseholdDaemon]]:
    """Start our daemons by name: `a = leasehold_daemons("hostA")`. All end with the test."""
    with contextlib.ExitStack() as running:

        def start(name: str = "hostA", *options: str) -> LeaseholdDaemon:
            return running.enter_context(LeaseholdDaemon(name, *options))

        yield start


@pytest.fixture
def leasehold_daemon(leasehold_daemons: Callable[..., LeaseholdDaemon]) -> LeaseholdDaemon:
    """One of our daemons, called hostA."""
    return leasehold_daemons("hostA")
