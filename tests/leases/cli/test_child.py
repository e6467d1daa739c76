"""The command's process before, while and after it runs."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leases.cli.child import CannotExecute, Child, missing


@pytest.fixture
def made() -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    for child in children:
        if child.ended is None:
            child.signal(signal.SIGKILL)
            os.waitpid(child.pid, 0)


def wait_for_end(child: Child) -> None:
    deadline = time.monotonic() + 20
    while child.ended is None:
        assert time.monotonic() < deadline, "the command does not end"
        child.poll()
        time.sleep(0.01)


def test_nothing_runs_before_it_is_set_off(made: list[Child], tmp_path: Path) -> None:
    child = Child(["touch", str(tmp_path / "ran")])
    made.append(child)
    time.sleep(0.2)
    assert child.poll() is None
    assert not (tmp_path / "ran").exists()
    child.start({})
    wait_for_end(child)
    assert (tmp_path / "ran").exists()
    assert child.exit_code() == 0


def test_what_is_called_off_never_runs(tmp_path: Path) -> None:
    child = Child(["touch", str(tmp_path / "ran")])
    child.call_off()
    assert child.ended == 0
    assert not (tmp_path / "ran").exists()


def test_what_is_killed_while_it_waits_never_runs(made: list[Child], tmp_path: Path) -> None:
    child = Child(["touch", str(tmp_path / "ran")])
    made.append(child)
    child.signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.start({})
    wait_for_end(child)
    assert child.exit_code() == 128 + signal.SIGKILL
    assert not (tmp_path / "ran").exists()


def test_variables_are_added_to_the_environment(made: list[Child], tmp_path: Path) -> None:
    os.environ["LEASEHOLD_TEST_KEPT"] = "kept"
    try:
        child = Child(["sh", "-c", f'echo "$LEASEHOLD_TEST_KEPT $NAME" > {tmp_path}/out'])
    finally:
        del os.environ["LEASEHOLD_TEST_KEPT"]
    made.append(child)
    child.start({"NAME": "a=b ü"})
    wait_for_end(child)
    assert (tmp_path / "out").read_text() == "kept a=b ü\n"


def test_it_leads_a_group_in_our_session(made: list[Child]) -> None:
    child = Child(["sleep", "60"])
    made.append(child)
    child.start({})
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(child.pid) == os.getsid(0)


def test_a_signal_reaches_what_the_command_started(made: list[Child], tmp_path: Path) -> None:
    child = Child(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"])
    made.append(child)
    child.start({})
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        time.sleep(0.01)
    assert len(child.leftovers()) == 2
    child.signal(signal.SIGTERM)
    wait_for_end(child)
    assert child.exit_code() == 128 + signal.SIGTERM
    deadline = time.monotonic() + 10
    while child.leftovers():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_it_left_behind_is_known(made: list[Child], tmp_path: Path) -> None:
    child = Child(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid"])
    made.append(child)
    child.start({})
    wait_for_end(child)
    assert child.leftovers() == [int((tmp_path / "pid").read_text())]
    child.signal(signal.SIGKILL)


def test_a_stop_is_told_and_is_no_end(made: list[Child]) -> None:
    child = Child(["sleep", "60"])
    made.append(child)
    child.start({})
    child.signal(signal.SIGSTOP)
    while (status := child.poll()) is None:
        time.sleep(0.01)
    assert os.WIFSTOPPED(status)
    assert child.ended is None


@pytest.mark.parametrize("content", ["exit 7", "#!/bin/sh\nexit 7"], ids=["no first line", "first line"])
def test_a_script_runs_as_from_a_shell(made: list[Child], tmp_path: Path, content: str) -> None:
    script = tmp_path / "script"
    script.write_text(content)
    script.chmod(0o755)
    child = Child([str(script)])
    made.append(child)
    child.start({})
    wait_for_end(child)
    assert child.exit_code() == 7


def test_a_failed_exec_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    child = Child([str(script)])
    with pytest.raises(CannotExecute) as told:
        child.start({})
    assert told.value.errno == errno.ENOENT
    assert child.ended is not None


def test_missing_commands_are_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert missing("sh") is None
    assert missing("/bin/sh") is None
    assert missing("no-such-command-anywhere") == errno.ENOENT
    assert missing(str(tmp_path / "plain")) == errno.EACCES
    assert missing(str(tmp_path)) == errno.EACCES


@pytest.mark.parametrize("set_off", [True, False], ids=["running", "waiting"])
def test_the_kernel_kills_it_when_its_parent_is_killed(set_off: bool) -> None:
    program = (
        "import sys, time\n"
        "from leases.cli.child import Child\n"
        "child = Child(['sleep', '600'])\n"
        f"child.start({{}}) if {set_off} else None\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
    assert select.select([watch], [], [], 20)[0], "it outlived its parent"
    os.close(watch)
