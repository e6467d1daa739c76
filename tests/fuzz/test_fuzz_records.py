"""The fuzzer of records finds nothing in a short run, and would stop at a wrong exception or at a write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FUZZER = Path(__file__).with_name("fuzz_records.py")

pytestmark = pytest.mark.slow


def _run(tmp_path, *command):
    """Run Python; its crash files go to `tmp_path`."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _with_a_planted_bug(tmp_path, reader):
    program = f"from tests.fuzz import fuzz_records as fuzz\n{reader}\nfuzz.READERS[:] = [planted]\nfuzz.main()"
    return _run(tmp_path, "-c", program, "-max_total_time=20")


def test_a_short_run_finds_nothing(tmp_path):
    run = _run(tmp_path, str(_FUZZER), "-max_total_time=8", "-seed=1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Done" in run.stderr
    assert not list(tmp_path.iterdir())


def test_an_exception_that_is_none_of_ours_stops_it(tmp_path):
    run = _with_a_planted_bug(tmp_path, "def planted(choice, data): fuzz.struct.unpack('<Q', data[:8])")
    assert run.returncode != 0 and "unpack requires a buffer of 8 bytes" in run.stdout + run.stderr
    assert list(tmp_path.glob("crash-*"))


def test_a_write_stops_it(tmp_path):
    acquires = (
        "from random import Random\n"
        "from paxos import resource\n"
        "from paxos.liveness import Member\n"
        "def acquired(request_lease, timeout):\n"
        "    area = fuzz.LockspaceArea(b'LS', request_lease.place, request_lease.geometry)\n"
        "    hosts = fuzz.HostTable(area, 2, fuzz.Timing(10))\n"
        "    yield from resource.acquire(Member(area, 2, 1, fuzz.Timing(10), hosts, Random(1)), request_lease)\n"
        "fuzz.request.read_request = acquired\n"
        "planted = fuzz.protocols"
    )
    run = _with_a_planted_bug(tmp_path, acquires)
    assert run.returncode != 0 and "Wrote" in run.stdout + run.stderr
