"""What README.md tells people to type works, and CI runs the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from leases.volume import Volume

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^python3 -m venv .*$", README, re.M)
NOT_SHIPPED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "results")


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of this project, with a home of its own beside it."""
    directory = Path(tempfile.mkdtemp(prefix="leasehold-readme-", dir="/var/tmp"))
    shutil.copytree(ROOT, directory / "project", ignore=NOT_SHIPPED)
    (directory / "home").mkdir()
    yield directory / "project"
    shutil.rmtree(directory)


def run(command: str, checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTEST", "VIRTUAL_"))}
    environment = {**kept, "HOME": str(checkout.parent / "home"), **variables}
    return subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
    )


def test_there_is_one_command_for_the_main_job_and_one_for_the_tests() -> None:
    main_job, tests = COMMANDS
    assert "leasehold run" in main_job
    assert "pytest" in tests


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    extraction = re.search(r"^test_command=\$\((sed .*README\.md)\)$", script, re.M)
    assert extraction
    extracted = subprocess.run(["bash", "-c", extraction[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert extracted.stdout.strip() == COMMANDS[1]
    assert 'bash -c "$test_command"' in script
    assert "bin/pytest" not in script


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_runs_from_nothing(checkout: Path) -> None:
    done = run(COMMANDS[0], checkout)
    assert done.returncode == 0, done.stderr
    assert re.search(r"I hold the lease: local:hello:1:\d+:1\n", done.stdout)
    assert "Traceback" not in done.stderr
    again = run(".venv/bin/leasehold explain hello", checkout)
    assert (again.returncode, again.stderr.count("\n")) == (0, again.stderr.count("leasehold: "))
    assert "hello is free" in again.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_test_command_finds_the_tests(checkout: Path) -> None:
    done = run(COMMANDS[1], checkout, PYTEST_ADDOPTS="--collect-only -q")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ tests collected", done.stdout, re.M)


@pytest.mark.slow
def test_the_program_runs(checkout: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    path = str(checkout.parent / "volume")
    made = Volume.create(path, "prod", leases=1, io_timeout=1)
    made.create_lease("db-primary")
    prepared = "def work(lost): assert not lost.is_set()\n" + textwrap.dedent(program).replace("/dev/vg/leases", path)
    done = subprocess.run(
        [sys.executable, "-c", prepared],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"prod:db-primary:1:\d+:\d+\n", done.stdout)
