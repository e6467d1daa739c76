"""The guardian kills who uses an expired lockspace, whatever became of its feeder, and never anybody else."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leases.keeper.watchdog import guardian_process as far
from leases.keeper.watchdog.base import boot_time
from leases.keeper.watchdog.guardian import Guardian, GuardianConnection
from paxos.errors import WatchdogUnavailable

FIRE = 4  # no SIGTERM of its own accord with so short a time
PATIENCE = 15.0  # of tests; far more than anything takes

STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    guardian = Guardian(FIRE)
    yield guardian
    end(guardian)


def end(guardian: Guardian) -> None:
    if guardian._process is not None:
        guardian._process.kill()
        guardian._process.wait()
    guardian.close()


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a holder; every one is gone after the test."""
    children: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **options: Any) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(command or ("sleep", "600"), **options))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def armed(guardian: Guardian, left: float, name: str = "LS:1") -> GuardianConnection:
    """A connection that expires in `left` seconds."""
    connection = guardian.open(name)
    now = boot_time()
    connection.arm(now + left - 8, now + left)
    return connection


def alive(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it is still there after that time."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_it_is_a_small_process_in_a_session_of_its_own(guardian: Guardian) -> None:
    guardian.open("LS:1")
    assert guardian.pid is not None
    assert os.getsid(guardian.pid) == guardian.pid
    status = Path(f"/proc/{guardian.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 25_000  # KiB, all of its memory when it is locked
    assert "numpy" not in Path(f"/proc/{guardian.pid}/maps").read_text()


def test_it_cannot_be_ended_by_signals_that_can_be_ignored(guardian: Guardian) -> None:
    connection = guardian.open("LS:1")
    assert guardian.pid is not None
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGALRM,
    ):
        os.kill(guardian.pid, number)
    connection.unhold(0)  # it answers


def test_it_ends_when_its_feeder_lets_go_with_nothing_armed() -> None:
    guardian = Guardian(FIRE)
    connection = armed(guardian, 60)
    connection.disarm()
    connection.close()
    guardian.close()
    assert guardian._process is not None and guardian._process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_holders_of_an_expired_lockspace_are_killed_and_no_others(guardian: Guardian, run: Any) -> None:
    expiring, living = armed(guardian, 1.0, "A:1"), armed(guardian, 600, "B:1")
    holder, other, stranger = run(), run(), run()
    expiring.hold(holder.pid)
    living.hold(other.pid)
    assert holder.wait(PATIENCE) == -signal.SIGKILL
    assert alive(other, 1.5) and alive(stranger, 0)


@pytest.mark.slow
def test_renewals_keep_holders_alive(guardian: Guardian, run: Any) -> None:
    connection = armed(guardian, 1.0)
    holder = run()
    connection.hold(holder.pid)
    for _ in range(15):
        time.sleep(0.2)
        connection.renew(boot_time() - 7, boot_time() + 1)
    assert alive(holder, 0)


@pytest.mark.slow
def test_a_holder_gets_sigterm_first_and_sigkill_if_that_does_not_help(run: Any) -> None:
    guardian = Guardian(FIRE, grace=1.5)
    try:
        gentle, stubborn = run(), run(sys.executable, "-c", STUBBORN, stdout=subprocess.PIPE)
        assert stubborn.stdout.readline() == b"up\n"
        connection = armed(guardian, 0.5)
        connection.hold(gentle.pid)
        connection.hold(stubborn.pid)
        expired = boot_time() + 0.5
        assert gentle.wait(PATIENCE) == -signal.SIGTERM
        assert stubborn.wait(PATIENCE) == -signal.SIGKILL
        assert expired + 1.4 < boot_time() < expired + FIRE
    finally:
        end(guardian)


@pytest.mark.slow
def test_a_holder_that_is_stopped_its_own_way_gets_no_sigterm(run: Any) -> None:
    guardian = Guardian(FIRE, grace=1.0)
    try:
        holder = run()
        armed(guardian, 0.2).hold(holder.pid, terminate=False)
        assert holder.wait(PATIENCE) == -signal.SIGKILL
    finally:
        end(guardian)


@pytest.mark.slow
def test_a_long_grace_is_cut_so_that_the_kill_comes_in_time(run: Any) -> None:
    guardian = Guardian(FIRE, grace=1000)
    try:
        holder = run(sys.executable, "-c", STUBBORN, stdout=subprocess.PIPE)
        assert holder.stdout.readline() == b"up\n"
        armed(guardian, 0.2).hold(holder.pid)
        expired = boot_time() + 0.2
        assert holder.wait(PATIENCE) == -signal.SIGKILL
        assert boot_time() < expired + FIRE
    finally:
        end(guardian)


@pytest.mark.slow
def test_nobody_is_killed_after_disarming_or_after_letting_go(guardian: Guardian, run: Any) -> None:
    holder, former = run(), run()
    connection, disarmed = armed(guardian, 1.0, "A:1"), armed(guardian, 1.0, "B:1")
    connection.hold(former.pid)
    disarmed.hold(holder.pid)
    connection.unhold(former.pid)
    connection.unhold(former.pid)
    disarmed.disarm()
    disarmed.renew(boot_time() - 8, boot_time())  # a late renewal does not arm it again
    assert alive(holder, 2.5) and alive(former, 0)


@pytest.mark.slow
def test_a_whole_process_group_is_killed(guardian: Guardian, run: Any) -> None:
    script = "sleep 600 & echo $!; wait"
    leader = run("sh", "-c", script, stdout=subprocess.PIPE, start_new_session=True)
    member = os.pidfd_open(int(leader.stdout.readline()))
    armed(guardian, 0.5).hold(leader.pid, group=True)
    assert leader.wait(PATIENCE) == -signal.SIGKILL
    assert far.ready(member, select.POLLIN, PATIENCE)
    os.close(member)


@pytest.mark.slow
def test_a_group_whose_leader_is_gone_is_still_killed(guardian: Guardian, run: Any) -> None:
    leader = run("sh", "-c", "sleep 600 & echo $!; read wait", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                 start_new_session=True)  # fmt: skip
    member = os.pidfd_open(int(leader.stdout.readline()))
    armed(guardian, 2.0).hold(leader.pid, group=True)
    leader.stdin.write(b"\n")
    leader.stdin.close()
    assert leader.wait(PATIENCE) == 0
    assert far.ready(member, select.POLLIN, PATIENCE)
    os.close(member)


def test_who_cannot_be_guarded_is_refused(guardian: Guardian, run: Any) -> None:
    connection = guardian.open("LS:1")
    gone = run("true")
    gone.wait()
    assert guardian.pid is not None
    for pid in (gone.pid, 1, guardian.pid):
        with pytest.raises(WatchdogUnavailable):
            connection.hold(pid)
    with pytest.raises(WatchdogUnavailable):
        connection.hold(run().pid, group=True)  # which leads no group


def test_a_process_is_known_by_its_age_not_by_its_number(run: Any) -> None:
    child = run()
    born = far.start_time(child.pid)
    far.Holder(child.pid, born, 0).forget()
    for flags in (0, far.GROUP):
        with pytest.raises(OSError, match=r"another process"):
            far.Holder(child.pid, born - 1, flags)


def test_a_number_that_went_round_is_not_signalled(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the kernel has no pidfd: the age is looked at before each signal."""

    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    first, reused = run(start_new_session=True), run(start_new_session=True)
    for flags in (0, far.GROUP):
        holder = far.Holder(first.pid, far.start_time(first.pid), flags)
        assert holder.alive()
        holder.pid = reused.pid  # as if the first had ended and this one had its number
        holder._start -= 1
        assert not holder.alive()
        with pytest.raises(OSError, match="it has ended"):
            holder.signal(signal.SIGKILL)
    assert alive(reused, 0.3)


def test_many_lockspaces_and_holders_from_many_threads(guardian: Guardian, run: Any) -> None:
    holders = [run() for _ in range(4)]
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            connection = armed(guardian, 600, f"LS{number}:1")
            for _ in range(50):
                for holder in holders:
                    connection.hold(holder.pid)
                    connection.renew(boot_time(), boot_time() + 8)
                    connection.unhold(holder.pid)
            connection.disarm()
            connection.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(alive(holder, 0) for holder in holders)


def lose(guardian: Guardian) -> int:
    """Kill the guardian itself, and tell its pid."""
    assert guardian._process is not None
    guardian._process.kill()
    return guardian._process.pid


@pytest.mark.slow
def test_a_guardian_that_died_is_noticed_by_the_next_renewal_and_replaced(guardian: Guardian, run: Any) -> None:
    holder, former = run(), run()
    connection = armed(guardian, 600)
    connection.hold(holder.pid)
    connection.hold(former.pid)
    connection.unhold(former.pid)
    lost = lose(guardian)
    deadline = time.monotonic() + PATIENCE
    failures = 0
    while guardian.pid == lost or not failures:
        assert time.monotonic() < deadline
        try:
            connection.renew(boot_time() - 6, boot_time() + 2)
        except WatchdogUnavailable:
            failures += 1
        time.sleep(0.01)
    assert holder.wait(PATIENCE) == -signal.SIGKILL
    assert alive(former, 1.0)


@pytest.mark.slow
def test_a_guardian_that_died_is_replaced_by_the_next_call_that_may_wait(guardian: Guardian, run: Any) -> None:
    first, second = run(), run()
    connection, disarmed = armed(guardian, 2.0, "A:1"), armed(guardian, 2.0, "B:1")
    connection.hold(first.pid)
    disarmed.hold(second.pid)
    lose(guardian)
    disarmed.disarm()
    assert first.wait(PATIENCE) == -signal.SIGKILL
    assert alive(second, 1.0)


def test_one_that_was_let_go_is_not_replaced(guardian: Guardian) -> None:
    connection = armed(guardian, 600)
    guardian.close()
    with pytest.raises(WatchdogUnavailable, match="let go"):
        connection.renew(1, 9)
    with pytest.raises(WatchdogUnavailable, match="let go"):
        connection.disarm()


@pytest.mark.slow
def test_a_guardian_that_is_stopped_blocks_no_renewal_and_answers_nobody(run: Any) -> None:
    guardian = Guardian(FIRE, answer_timeout=0.3)
    try:
        connection = armed(guardian, 600)
        assert guardian.pid is not None
        os.kill(guardian.pid, signal.SIGSTOP)
        with pytest.raises(WatchdogUnavailable, match="did not answer"):
            connection.hold(os.getpid())
        with pytest.raises(WatchdogUnavailable, match="does not read"):
            for _ in range(100_000):
                connection.renew(boot_time(), boot_time() + 8)
    finally:
        end(guardian)


@pytest.mark.slow
def test_what_was_told_in_time_counts_even_if_the_guardian_was_late(guardian: Guardian, run: Any) -> None:
    holder = run()
    connection = armed(guardian, 0.5)
    connection.hold(holder.pid)
    assert guardian.pid is not None
    os.kill(guardian.pid, signal.SIGSTOP)
    connection.renew(boot_time(), boot_time() + 600)
    time.sleep(1.0)
    os.kill(guardian.pid, signal.SIGCONT)
    assert alive(holder, 1.0)


# --- feeders that end badly: a process that guards `holder` and then does `ending` ---


def feeder(run: Any, holder: int, ending: str, left: float = 1.5, **options: Any) -> subprocess.Popen[bytes]:
    program = f"""
        import os, signal, sys, time
        from leases.keeper.watchdog.base import boot_time
        from leases.keeper.watchdog.guardian import Guardian
        guardian = Guardian({FIRE}, **{options!r})
        connection = guardian.open("LS:1")
        now = boot_time()
        connection.arm(now + {left} - 8, now + {left})
        connection.hold({holder})
        print("guarded", flush=True)
        {ending}
    """
    process: subprocess.Popen[bytes] = run(sys.executable, "-c", textwrap.dedent(program), stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"guarded\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "time.sleep(600)",
        "sys.exit()",
        "guardian.close(); time.sleep(600)",
        "connection.close(); time.sleep(600)",
    ],
    ids=["stopped", "killed", "stuck", "exits armed", "lets go armed", "closes armed"],
)
def test_a_feeder_that_does_not_renew_costs_its_holders_their_lives_in_time(run: Any, ending: str) -> None:
    holder = run()
    expires = boot_time() + 1.5
    feeder(run, holder.pid, ending)
    assert holder.wait(PATIENCE) == -signal.SIGKILL
    assert expires - 0.1 < boot_time()


@pytest.mark.slow
def test_after_its_feeders_death_holders_live_until_the_expiry(run: Any) -> None:
    holder = run()
    feeder(run, holder.pid, "os.kill(os.getpid(), signal.SIGKILL)", left=3.0)
    assert alive(holder, 1.5)
    assert holder.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.slow
def test_if_so_asked_they_die_with_the_feeder(run: Any) -> None:
    holder = run()
    feeder(run, holder.pid, "os.kill(os.getpid(), signal.SIGKILL)", left=600, on_feeder_death="kill")
    assert holder.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.slow
def test_disarming_and_exiting_harms_nobody(run: Any) -> None:
    holder = run()
    process = feeder(run, holder.pid, "connection.disarm(); sys.exit()", on_feeder_death="kill")
    assert process.wait(PATIENCE) == 0
    assert alive(holder, 3.0)


def test_what_is_in_force_can_be_read(guardian: Guardian) -> None:
    assert guardian.describe().startswith("guardian: kills this host's users")
    connection = guardian.open("LS:1")
    assert f"guardian process {guardian.pid}" in connection.describe() and "not armed" in connection.describe()
    connection.arm(boot_time(), boot_time() + 80)
    assert "LS:1 expires in 80 s" in connection.describe()
