"""`leasehold run`: the command runs while the lease is held, and never otherwise."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leases.cli.signals import FORWARDED


@pytest.fixture
def run(volume: Any) -> list[str]:
    """The start of a command line."""
    return ["run", "--volume", volume.path]


def start_holder(cli: Any, run: list[str], name: str, script: str = "sleep 600", **how: Any) -> Any:
    """A run whose command is running: a shell that says its pid and then does `script`."""
    process = cli.start(*run, name, "--", "sh", "-c", f"echo $$; {script}", **how)
    line = process.stdout.readline()
    assert line, process.stderr.read()
    process.command_pid = int(line)
    return process


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------------ the plain life


def test_it_ends_with_the_exit_code_of_its_command(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    assert cli(*run, name, "--", "sh", "-c", "exit 7").returncode == 7
    assert cli(*run, name, "--", "true").returncode == 0
    assert cli(*run, name, "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_the_command_gets_the_fencing_token(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    versions = []
    for _ in range(2):
        done = cli(*run, "--host-id", "31", name, "--", "sh", "-c", "env | grep ^LEASEHOLD_")
        found = dict(line.split("=", 1) for line in done.stdout.splitlines())
        assert (found["LEASEHOLD_LOCKSPACE"], found["LEASEHOLD_RESOURCE"]) == ("LS", name)
        assert found["LEASEHOLD_HOST_ID"] == "31"
        lver, generation = int(found["LEASEHOLD_LVER"]), int(found["LEASEHOLD_GENERATION"])
        assert found["LEASEHOLD_TOKEN"] == f"LS:{name}:{lver}:31:{generation}"
        versions.append(lver)
    assert versions[0] < versions[1]


def test_standard_streams_are_the_commands(cli: Any, run: list[str], volume: Any) -> None:
    process = cli.start(*run, volume.lease(), "--", "cat", stdin=subprocess.PIPE)
    out, err = process.communicate("through\n", timeout=60)
    assert out == "through\n"
    assert [line for line in err.splitlines() if not line.startswith("leasehold: ")] == []


def test_why_it_waits_is_said_unless_quiet(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    assert re.search(r"^leasehold: .*\(about 2 s\)$", cli(*run, name, "--", "true").stderr, re.M)
    assert cli(*run, "--quiet", name, "--", "true").stderr == ""


def test_what_is_in_force_is_shown(cli: Any, run: list[str], volume: Any) -> None:
    done = cli(*run, volume.lease(), "--", "sh", "-c", "echo $LEASEHOLD_TOKEN")
    assert f"leasehold: holding {done.stdout.strip()}; in force: guardian process" in done.stderr


def test_it_starts_without_what_draws_tables(cli: Any, run: list[str], volume: Any) -> None:
    program = (
        "import sys; from leases.cli.main import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('rich' in sys.modules and 99))"
    )
    command = [sys.executable, "-c", program, *run, volume.lease(), "--", "true"]
    assert subprocess.run(command, env=cli.environment, timeout=60).returncode == 0


def test_a_watchdog_that_is_not_there_is_refused(cli: Any, run: list[str], volume: Any) -> None:
    done = cli(*run, "-q", "--watchdog", "systemd", volume.lease(), "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (69, "")
    assert "watchdog" in done.stderr


def test_options_after_the_dashes_are_the_commands(cli: Any, run: list[str], volume: Any) -> None:
    done = cli(*run, volume.lease(), "--", "echo", "--wait", "--", "-q")
    assert done.stdout == "--wait -- -q\n"


def test_the_lease_is_free_afterwards(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    cli(*run, name, "--", "true")
    assert cli.json("lease", "show", "--volume", volume.path, name)["mode"] == "free"


def test_an_unknown_lease_is_not_made_on_a_named_volume(cli: Any, run: list[str]) -> None:
    done = cli(*run, "unknown", "--", "true")
    assert done.returncode == 64
    assert "leasehold lease create" in done.stderr


@pytest.mark.parametrize(
    ("content", "mode", "code"), [(None, 0, 127), ("", 0o644, 126), ("#!/no/such/shell\n", 0o755, 127)],
    ids=["missing", "not executable", "its interpreter is missing"],
)  # fmt: skip
def test_a_command_that_can_not_run_ends_as_with_env(
    cli: Any, run: list[str], volume: Any, content: str | None, mode: int, code: int
) -> None:
    program = cli.home / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    name = volume.lease()
    done = cli(*run, "-q", name, "--", str(program))
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert cli.json("lease", "show", "--volume", volume.path, name)["mode"] == "free"


# ------------------------------------------------------------------------------------------- excluding each other


def test_the_loser_is_told_who_holds_it(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    start_holder(cli, [*run, "--host-id", "41"], name)
    loser = cli(*run, "-q", name, "--", "echo", "ran")
    assert (loser.returncode, loser.stdout) == (75, "")
    assert loser.stderr.count("\n") == 1
    host = os.uname().nodename[:20]
    assert re.match(
        rf"leasehold: {name} is held by {re.escape(host)}\S* \(host id 41\), which renewed \d+\.\d s ago; .*--wait",
        loser.stderr,
    )


def test_whoever_waits_gets_it_when_it_is_released(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    holder = start_holder(cli, run, name, "read line", stdin=subprocess.PIPE)
    waiter = cli.start(*run, "--wait", "60", name, "--", "echo", "mine")
    while "waiting up to 60 s" not in waiter.stderr.readline():
        pass
    assert holder.poll() is None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert waiter.communicate(timeout=60)[0] == "mine\n"
    assert waiter.returncode == 0


def test_waiting_ends_in_time(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    start_holder(cli, run, name)
    assert cli(*run, "--wait", "1", name, "--", "true").returncode == 75


def test_shared_holders_exclude_only_exclusive_ones(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    start_holder(cli, [*run, "--shared"], name)
    assert cli(*run, "--shared", name, "--", "true").returncode == 0
    refused = cli(*run, "-q", name, "--", "true")
    assert refused.returncode == 75
    assert "is held by" in refused.stderr


@pytest.mark.slow
def test_a_host_id_in_use_is_refused_by_name(cli: Any, run: list[str], volume: Any) -> None:
    start_holder(cli, [*run, "--host-id", "51"], volume.lease())
    refused = cli.start(*run, "-q", "--host-id", "51", volume.lease(), "--", "true")
    _, err = refused.communicate(timeout=200)
    assert refused.returncode == 75
    assert "host id 51" in err
    assert "choose another host id" in err


# ----------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", FORWARDED, ids=lambda number: number.name)
def test_signals_reach_the_command(cli: Any, run: list[str], volume: Any, number: signal.Signals) -> None:
    word = number.name.removeprefix("SIG")
    script = f"trap 'echo got {word}; exit 3' {word}; while :; do sleep 0.1; done"
    holder = start_holder(cli, run, volume.lease(), f"{{ {script}; }}")
    time.sleep(0.3)  # the shell sets its trap after it said its pid
    holder.send_signal(number)
    assert holder.communicate(timeout=60)[0] == f"got {word}\n"
    assert holder.returncode == 3


def test_a_command_ended_by_a_signal_shows_in_the_exit_code(cli: Any, run: list[str], volume: Any) -> None:
    holder = start_holder(cli, run, volume.lease())
    holder.send_signal(signal.SIGTERM)
    assert holder.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_while_joining_leaves_cleanly(cli: Any, run: list[str], volume: Any, number: signal.Signals) -> None:
    name = volume.lease()
    joining = cli.start(*run, "--host-id", "61", name, "--", "echo", "ran")
    assert "about 2 s" in joining.stderr.readline()
    joining.send_signal(number)
    out, err = joining.communicate(timeout=60)
    assert (joining.returncode, out, err) == (128 + number, "", "")
    states = {host["host_id"]: host["state"] for host in cli.json("host", "list", "--volume", volume.path)}
    assert states.get(61, "free") == "free"


def test_a_signal_while_waiting_for_the_lease_leaves_cleanly(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    start_holder(cli, run, name)
    waiter = cli.start(*run, "--host-id", "62", "--wait", "600", name, "--", "echo", "ran")
    while "waiting up to 600 s" not in waiter.stderr.readline():
        pass
    waiter.send_signal(signal.SIGINT)
    out, _ = waiter.communicate(timeout=60)
    assert (waiter.returncode, out) == (130, "")
    states = {host["host_id"]: host["state"] for host in cli.json("host", "list", "--volume", volume.path)}
    assert states[62] == "free"


def test_what_was_ignored_stays_ignored(cli: Any, run: list[str], volume: Any) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    holder = start_holder(cli, run, volume.lease(), "read line; exit 4", stdin=subprocess.PIPE, preexec_fn=ignore)
    holder.send_signal(signal.SIGHUP)
    os.kill(holder.command_pid, signal.SIGHUP)
    holder.communicate("\n", timeout=60)
    assert holder.returncode == 4


def test_the_lease_is_kept_while_anything_runs_that_the_command_started(cli: Any, run: list[str], volume: Any) -> None:
    name = volume.lease()
    holder = start_holder(cli, run, name, "sleep 600 >/dev/null 2>&1 & echo $!")
    left_behind = int(holder.stdout.readline())
    while f"({left_behind})" not in (line := holder.stderr.readline()):
        assert line
    assert cli(*run, name, "--", "true").returncode == 75
    os.kill(left_behind, signal.SIGTERM)
    assert holder.wait(60) == 0


# --------------------------------------------------------------------------------------- when it goes wrong


def test_killing_the_run_kills_the_command_and_what_it_started(
    cli: Any, run: list[str], volume: Any, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    name = volume.lease()
    holder = start_holder(cli, run, name, "trap '' TERM; sleep 600 & echo $!; wait; sleep 600")
    grandchild = int(holder.stdout.readline())
    holder.kill()
    eventually(lambda: not alive(holder.command_pid) and not alive(grandchild))
    after = cli(*run, "-q", name, "--", "echo", "ran")
    assert (after.returncode, after.stdout) == (75, "")
    assert "not seen to renew" in after.stderr
    assert re.search(r"can be taken in \d+ s", after.stderr)


@pytest.mark.slow
def test_a_stopped_run_loses_its_command_before_others_get_the_lease(
    cli: Any, run: list[str], volume: Any, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    name = volume.lease()
    holder = start_holder(cli, run, name, "trap '' TERM; while :; do sleep 1; done")
    time.sleep(2.5)  # for a moment the guardian still takes the run itself for a user, and would kill it as well
    holder.send_signal(signal.SIGSTOP)
    waiter = cli.start(*run, "--wait", "200", name, "--", "echo", "mine")
    eventually(lambda: not alive(holder.command_pid) or waiter.poll() is not None)
    assert waiter.poll() is None, "the lease was given away while its holder's command lived"
    assert waiter.communicate(timeout=200)[0] == "mine\n"
    holder.send_signal(signal.SIGCONT)
    _, err = holder.communicate(timeout=60)
    assert holder.returncode == 76
    assert f"lost the lease {name}" in err


@pytest.mark.slow
def test_a_run_that_loses_its_volume_stops_its_command_gently_first(cli: Any, volume: Any) -> None:
    path = cli.home / "doomed"
    cli("volume", "create", str(path), "--lockspace", "LS", "--leases", "1", "--io-timeout", "1")
    cli("lease", "create", "--volume", str(path), "vm1")
    script = "trap 'echo asked; exit 0' TERM; while :; do sleep 0.1; done"
    holder = start_holder(cli, ["run", "--volume", str(path)], "vm1", f"{{ {script}; }}")
    with open(path, "r+b") as file:
        file.write(bytes(1 << 20))
    out, err = holder.communicate(timeout=60)
    assert out == "asked\n"
    assert holder.returncode == 76
    assert "lost the lease vm1" in err


# ------------------------------------------------------------------------------------------------ without a volume


def test_the_first_run_makes_a_volume_and_says_so(cli: Any) -> None:
    began = time.monotonic()
    done = cli("run", "hello", "--", "sh", "-c", "echo $LEASEHOLD_TOKEN")
    print("first run took", time.monotonic() - began, "s")
    assert done.returncode == 0
    assert re.fullmatch(r"local:hello:1:\d+:1\n", done.stdout)
    assert "first use" in done.stderr
    assert (cli.home / ".local/state/leasehold/volume").exists()
    assert cli.json("explain", "hello")["free_in"] == 0.0
    (lease,) = cli.json("lease", "list")
    assert lease["name"] == "hello"
    holder = start_holder(cli, ["run"], "hello")
    refused = cli("run", "-q", "hello", "--", "true")
    assert refused.returncode == 75
    assert refused.stderr.count("\n") == 1
    assert cli("run", "other", "--", "true").returncode == 0
    assert holder.poll() is None


def test_first_runs_at_the_same_time_agree_on_one_volume(cli: Any) -> None:
    script = "echo in; sleep 0.5; echo out"
    runs = [cli.start("run", "-q", "--wait", "60", "hello", "--", "sh", "-c", f"({script}) >> {cli.home}/log")
            for _ in range(3)]  # fmt: skip
    for process in runs:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    assert (cli.home / "log").read_text() == "in\nout\n" * 3
