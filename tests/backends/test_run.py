"""`leasehold run --lock-manager`: the same command over nop, fcntl and paxos, as its users run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.libvirt import until
from tests.support.lockclient import is_locked
from tests.support.peers import images

__all__ = ["images"]
pytestmark = pytest.mark.slow

HELD, LOST, USAGE = 75, 76, 64
KINDS = ("nop", "fcntl", "paxos")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def disk(images: Path) -> Path:
    path = images / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def command(kind: str, disk: Path, *words: str, name: str = "vm1", options: tuple[str, ...] = ()) -> list[str]:
    more = {"paxos": ["--lock-dir", str(disk.parent / "leases")]}.get(kind, [])
    timing = [] if kind == "nop" else ["--io-timeout", "1"]
    run = [sys.executable, "-m", "leases.cli.main", "run", "--lock-manager", kind, "--disk", str(disk)]
    return [*run, *more, *timing, *options, name, "--", *words]


def run(*arguments: Any, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, **how), capture_output=True, text=True, timeout=120)


def start(*arguments: Any, **how: Any) -> subprocess.Popen[str]:
    """A run whose command has said that it runs."""
    process = subprocess.Popen(
        command(*arguments, **how), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "runs\n", process.communicate()
    return process


SLEEPS = ("sh", "-c", "echo runs; exec sleep 3600")
READS = ("sh", "-c", "echo runs; read line; exit 5")


def test_the_exit_code_is_the_command_s(kind: str, disk: Path) -> None:
    assert run(kind, disk, "sh", "-c", "exit 7").returncode == 7


def test_a_second_command_is_refused_as_far_as_was_promised(kind: str, disk: Path) -> None:
    first = start(kind, disk, *READS)
    second = run(kind, disk, "echo", "second", name="vm2")
    if kind == "nop":
        assert (second.returncode, second.stdout) == (0, "second\n")
    else:
        assert (second.returncode, second.stdout) == (HELD, "")
        assert str(disk) in second.stderr or "held" in second.stderr
    first.communicate("go\n", timeout=60)
    assert first.returncode == 5
    assert run(kind, disk, "echo", "second", name="vm2").returncode == 0


def test_waiting_gets_the_disk_once_it_is_free(kind: str, disk: Path) -> None:
    first = start(kind, disk, *READS)
    second = subprocess.Popen(
        command(kind, disk, "echo", "second", name="vm2", options=("--wait", "60")), stdout=subprocess.PIPE, text=True
    )
    first.communicate("go\n", timeout=60)
    output, _ = second.communicate(timeout=90)
    assert (second.returncode, output) == (0, "second\n")


def test_shared_disks_are_shared(kind: str, disk: Path) -> None:
    first = start(kind, disk, *READS, options=("--shared",))
    assert run(kind, disk, "true", name="vm2", options=("--shared",)).returncode == 0
    first.communicate("go\n", timeout=60)


@pytest.mark.parametrize("kind", ["fcntl"])
def test_the_command_is_stopped_when_its_lock_is_lost(kind: str, disk: Path) -> None:
    first = start(kind, disk, *SLEEPS)
    other = disk.with_suffix(".new")
    other.write_bytes(bytes(8192))
    other.rename(disk)
    _, errors = first.communicate(timeout=90)
    assert first.returncode == LOST
    assert "another file" in errors


@pytest.mark.parametrize("kind", ["fcntl", "paxos"])
def test_the_command_dies_with_a_run_that_is_killed(kind: str, disk: Path) -> None:
    first = start(kind, disk, *SLEEPS)
    first.kill()
    first.wait()
    assert first.stdout is not None
    assert first.stdout.read() == ""  # nobody has it open any more
    if kind == "fcntl":
        until(lambda: not is_locked(disk), "the lock's end")


@pytest.mark.parametrize("kind", ["fcntl", "paxos"])
def test_the_command_is_stopped_by_the_watchdog_when_the_run_is_frozen(kind: str, disk: Path) -> None:
    """Nobody proves or renews anything then, and nobody says so: the guardian acts on silence."""
    first = start(kind, disk, "sh", "-c", "echo runs; echo $$; exec sleep 3600")
    assert first.stdout is not None
    pid = int(first.stdout.readline())
    os.kill(first.pid, signal.SIGSTOP)
    try:
        until(lambda: _state(pid) in "XZ", "the command's end")
    finally:
        first.kill()
        first.wait()


def _state(pid: int) -> str:
    """Of a process, one letter; X if it is no more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


@pytest.mark.parametrize("kind", ["fcntl"])
def test_a_signal_ends_the_waiting(kind: str, disk: Path) -> None:
    first = start(kind, disk, *READS)
    second = subprocess.Popen(command(kind, disk, "true", name="vm2", options=("--wait", "600")))
    until(lambda: _has_threads(second.pid), "the second run's waiting")
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 128 + signal.SIGTERM
    first.communicate("go\n", timeout=60)


def _has_threads(pid: int) -> bool:
    return len(os.listdir(f"/proc/{pid}/task")) > 1


@pytest.mark.parametrize(
    "options",
    [
        ("--lock-manager", "nop"),
        ("--disk", "/d"),
        ("--lock-manager", "no-such", "--disk", "/d"),
        ("--lock-manager", "nop", "--disk", "/d", "--lock-dir", "/d"),
        ("--lock-manager", "fcntl", "--disk", "/d", "--volume", "/v"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: tuple[str, ...]) -> None:
    line = [sys.executable, "-m", "leases.cli.main", "run", *options, "vm1", "--", "true"]
    assert subprocess.run(line, capture_output=True, timeout=60).returncode == USAGE
