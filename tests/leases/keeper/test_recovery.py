"""Users of leases as processes, and the driver of the guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leases.keeper.decisions import Stop
from leases.keeper.recovery import Users, run_on_clock
from leases.keeper.watchdog import boot_time
from paxos.errors import InvalidUse
from paxos.steps import Steps, now, read, sleep


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_some_numbers_are_never_signalled(pid: int) -> None:
    with pytest.raises(InvalidUse):
        Users().add(pid)


def test_a_process_that_is_gone_is_no_user(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    with pytest.raises(InvalidUse):
        Users().add(process.pid)


@pytest.mark.parametrize(("how", "number"), [(Stop.TERMINATE, signal.SIGTERM), (Stop.KILL, signal.SIGKILL)])
def test_a_user_is_stopped_and_then_gone(process: subprocess.Popen[bytes], how: Stop, number: signal.Signals) -> None:
    users = Users()
    users.add(process.pid)
    assert [user.pid for user in users.alive()] == [process.pid]
    users.stop(process.pid, how)
    assert process.wait() == -number
    assert users.alive() == []


def test_a_zombie_is_gone(process: subprocess.Popen[bytes]) -> None:
    users = Users()
    users.add(process.pid)
    users.stop(process.pid, Stop.KILL)
    deadline = time.monotonic() + 30
    while users.alive():
        assert time.monotonic() < deadline
    process.wait()


def test_a_user_of_two_leases_ends_with_the_second(process: subprocess.Popen[bytes]) -> None:
    users = Users()
    users.add(process.pid)
    users.add(process.pid)
    assert not users.remove(process.pid)
    assert users.alive()
    assert users.remove(process.pid)
    assert not users.alive() and not users.remove(process.pid)


def test_a_number_that_belongs_to_somebody_else_by_now_is_not_signalled(process: subprocess.Popen[bytes]) -> None:
    users = Users()
    users.add(process.pid)
    process.kill()
    process.wait()
    users.stop(process.pid, Stop.KILL)  # nothing happens, whoever has that pid now
    assert users.alive() == []


def test_a_kill_path_is_run(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    users = Users()
    users.add(process.pid, kill_path=["/bin/kill", "-INT", str(process.pid)])
    (user,) = users.alive()
    assert user.holder.has_kill_path
    users.stop(process.pid, Stop.KILL_PATH)
    assert process.wait() == -signal.SIGINT


def test_where_a_kill_path_can_not_be_run_sigterm_is_sent(process: subprocess.Popen[bytes]) -> None:
    users = Users()
    users.add(process.pid, kill_path=["/no/such/program"])
    users.stop(process.pid, Stop.KILL_PATH)
    assert process.wait() == -signal.SIGTERM


def test_a_group_lives_as_long_as_one_of_it_does() -> None:
    program = "import os, subprocess; p = subprocess.Popen(['sleep', '1000']); print(p.pid, flush=True); os._exit(0)"
    leader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    with leader:
        users = Users()
        users.add(leader.pid, group=True)
        assert leader.stdout is not None
        child = os.pidfd_open(int(leader.stdout.readline()))
        leader.wait()
        assert users.alive()
        users.stop(leader.pid, Stop.KILL)
        deadline = time.monotonic() + 30
        while users.alive():
            assert time.monotonic() < deadline
    with pytest.raises(ProcessLookupError):
        while True:
            signal.pidfd_send_signal(child, 0)
    os.close(child)


def test_the_guards_driver_tells_the_time_and_sleeps() -> None:
    def steps() -> Steps[float]:
        start = yield from now()
        yield from sleep(0.05)
        return (yield from now()) - start

    before = boot_time()
    assert 0.05 <= run_on_clock(steps(), threading.Event()) <= boot_time() - before


def test_the_guard_can_be_woken() -> None:
    def steps() -> Steps[str]:
        yield from sleep(1000)
        return "awake"

    wake = threading.Event()
    threading.Timer(0.05, wake.set).start()
    assert run_on_clock(steps(), wake) == "awake"
    assert not wake.is_set()


def test_the_guard_does_no_io() -> None:
    with pytest.raises(InvalidUse):
        run_on_clock(read("d", 0, 512, 1.0), threading.Event())
