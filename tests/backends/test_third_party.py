"""A lock manager of somebody else's: found by its entry point, used by the command, and held to the suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_MODULE = """
from leases.lease import Lost
from leases.manager import GuestLocks, LockManager, Promises, Reach

class Locks(GuestLocks):
    lost = Lost(lambda: None)
    def take(self, resource, version):
        print("takes", resource, flush=True)
    def give_back(self, resource):
        print("gives back", resource, flush=True)

class Manager(LockManager):
    name = "prints"
    promises = Promises(Reach.NOBODY, states=False, stops_guests=False, failure_actions=frozenset())
    def locks_of(self, owner, resources, on_failure):
        return Locks(owner, resources, on_failure)
    def guest(self, owner, resources=(), on_failure=None):
        return self.locks_of(owner, resources, on_failure)
"""

_SUITE = """
from backends.conformance import LockManagerConformance
from prints import Manager

class TestPrints(LockManagerConformance):
    def manager(self, host):
        return Manager()
    def disk(self, name):
        return f"/{name}"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What installing their package would leave."""
    (tmp_path / "prints.py").write_text(_MODULE)
    (tmp_path / "test_prints.py").write_text(_SUITE)
    facts = tmp_path / "prints-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: prints\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[leasehold.backends]\nprints = prints:Manager\n")
    return tmp_path


def run(site: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[2])])}
    return subprocess.run(
        [sys.executable, "-m", *argv], env=environment, cwd=site, capture_output=True, text=True, timeout=120
    )


def test_the_command_finds_and_uses_it(site: Path) -> None:
    done = run(site, "leases.cli.main", "run", "--lock-manager", "prints", "--disk", "/d", "vm1", "--", "echo", "runs")
    assert (done.returncode, done.stdout) == (0, "takes disk /d\nruns\ngives back disk /d\n")


def test_the_suite_needs_nothing_but_a_subclass(site: Path) -> None:
    done = run(site, "pytest", "-q", "-p", "no:cacheprovider", "test_prints.py")
    assert "1 failed" in done.stdout, done.stdout  # it declares no failure action, and accepts every one
    assert "test_failure_actions_are_as_declared" in done.stdout


def test_the_suite_can_be_imported_without_pytest() -> None:
    code = "import sys, backends.conformance; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
