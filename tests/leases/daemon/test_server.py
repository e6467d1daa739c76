"""The daemon as a process: how it starts and ends, and what no client can do to the others."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leases.client import Client
from leases.daemon.numbers import MAGIC, Command
from leases.daemon.wire import Header, Lockspace
from tests.support.leasehold_daemon import ROOT, LeaseholdDaemon

pytestmark = pytest.mark.slow

VERSION = Header(Command.VERSION).pack()


def connect(daemon: LeaseholdDaemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(daemon.socket_path))
    return connection


def answer(connection: socket.socket) -> Header:
    return Header.unpack(connection.recv(32, socket.MSG_WAITALL))


def is_well(daemon: LeaseholdDaemon) -> None:
    """It answers others, whatever somebody did."""
    with connect(daemon) as connection:
        connection.sendall(VERSION)
        assert answer(connection).command == Command.VERSION


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------- starting and ending


def test_numpy_is_not_what_a_client_waits_for(leasehold_daemon: LeaseholdDaemon) -> None:
    """The program listens before it has imported anything that is slow."""
    probe = "import sys, leases.daemon.daemon; print(sorted({'numpy', 'argparse', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_second_daemon_on_the_same_run_directory_gives_up(leasehold_daemon: LeaseholdDaemon) -> None:
    second = subprocess.run(
        [*LeaseholdDaemon.argv(), "--run-dir", str(leasehold_daemon.run_dir), "--watchdog", "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1
    assert "another daemon runs in" in second.stderr
    is_well(leasehold_daemon)


def test_the_pid_file_names_the_process_that_was_started(leasehold_daemon: LeaseholdDaemon) -> None:
    pid = int((leasehold_daemon.run_dir / "sanlock.pid").read_text())
    assert pid == leasehold_daemon.pid
    assert oct(leasehold_daemon.socket_path.stat().st_mode)[-3:] == "660"


def test_it_starts_again_at_once_after_it_was_killed(leasehold_daemon: LeaseholdDaemon) -> None:
    for _ in range(3):
        leasehold_daemon.kill()
        leasehold_daemon.start()
        is_well(leasehold_daemon)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_while_it_has_no_lockspace(leasehold_daemon: LeaseholdDaemon, number: signal.Signals) -> None:
    os.kill(leasehold_daemon.pid, number)
    assert leasehold_daemon.wait() == 0


def test_a_signal_is_ignored_while_it_has_a_lockspace_and_the_log_says_which(
    leasehold_daemon: LeaseholdDaemon, volume_of: Callable[[LeaseholdDaemon], Path]
) -> None:
    volume_of(leasehold_daemon)
    os.kill(leasehold_daemon.pid, signal.SIGTERM)
    until(lambda: "not ending: lockspaces are in use" in leasehold_daemon.log())
    assert 'lockspaces="LS (spaces)"' in leasehold_daemon.log()
    is_well(leasehold_daemon)


@pytest.fixture
def volume_of(images: Path) -> Callable[[LeaseholdDaemon], Path]:
    """A joined lockspace LS on an image of its own, with leases R1 to R7."""

    def make(daemon: LeaseholdDaemon) -> Path:
        path = images / f"{daemon.name}.img"
        path.write_bytes(bytes(8 << 20))
        client = Client(str(daemon.socket_path))
        client.write_lockspace(f"LS:0:{path}:0", io_timeout=1)
        for number in range(1, 8):
            client.write_resource(f"LS:R{number}:{path}:{number}M")
        client.add_lockspace(f"LS:1:{path}:0", 1)
        return path

    return make


# -------------------------------------------------------------------------------- clients that behave badly


def test_half_a_header_keeps_nobody_waiting(leasehold_daemon: LeaseholdDaemon) -> None:
    with connect(leasehold_daemon) as silent:
        silent.sendall(VERSION[:16])
        is_well(leasehold_daemon)
        silent.sendall(VERSION[16:])
        assert answer(silent).command == Command.VERSION


def test_half_sent_requests_keep_no_worker(leasehold_daemon: LeaseholdDaemon) -> None:
    half_sent = [connect(leasehold_daemon) for _ in range(200)]
    for connection in half_sent:
        connection.sendall(Header(Command.READ_LOCKSPACE, length=1136).pack() + bytes(100))
    with connect(leasehold_daemon) as whole:
        whole.sendall(Header(Command.READ_LOCKSPACE, length=1136).pack() + Lockspace().pack())
        assert answer(whole).result == -19
    for connection in half_sent:
        connection.close()


def test_a_client_that_stops_in_the_middle_is_told_so(leasehold_daemon: LeaseholdDaemon) -> None:
    with connect(leasehold_daemon) as connection:
        connection.sendall(Header(Command.READ_LOCKSPACE, length=1136).pack() + bytes(100))
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection).result == -107
        assert connection.recv(1) == b""


def test_what_is_no_message_ends_the_connection(leasehold_daemon: LeaseholdDaemon) -> None:
    with connect(leasehold_daemon) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    is_well(leasehold_daemon)


@pytest.mark.parametrize(
    "header",
    [Header(99, length=96), Header(0, length=96), Header(Command.INQ_LOCKSPACE, length=96, version=0x20001)],
    ids=["unknown command", "command 0", "newer protocol"],
)
def test_what_it_does_not_know_is_answered_and_skipped(leasehold_daemon: LeaseholdDaemon, header: Header) -> None:
    with connect(leasehold_daemon) as connection:
        connection.sendall(header.pack() + bytes(64) + VERSION)
        assert answer(connection).result == -95
        assert answer(connection).command == Command.VERSION


def test_more_connections_than_the_reference_has_slots(leasehold_daemon: LeaseholdDaemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    many: list[socket.socket] = []
    try:
        for number in range(4000):
            many.append(connect(leasehold_daemon))
            if number % 2:
                many[-1].sendall(VERSION[: number % 32])
        many[-1].close()
        is_well(leasehold_daemon)
        many[0].sendall(VERSION)
        assert answer(many[0]).command == Command.VERSION
    finally:
        for connection in many:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: open_files(leasehold_daemon) < 40)


def open_files(daemon: LeaseholdDaemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def test_a_client_that_does_not_read_keeps_nobody_waiting(leasehold_daemon: LeaseholdDaemon) -> None:
    lazy = [connect(leasehold_daemon) for _ in range(20)]
    for connection in lazy:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(Header(Command.LOG_DUMP).pack())
        connection.sendall(VERSION * 4)
    is_well(leasehold_daemon)
    for connection in lazy:
        connection.close()
    is_well(leasehold_daemon)


def test_leases_and_renewals_go_on_beside_bad_clients(
    leasehold_daemon: LeaseholdDaemon, volume_of: Callable[[LeaseholdDaemon], Path]
) -> None:
    path = volume_of(leasehold_daemon)
    client = Client(str(leasehold_daemon.socket_path))
    bad = [connect(leasehold_daemon) for _ in range(500)]
    for connection in bad:
        connection.sendall(Header(Command.ACQUIRE, length=5000, data=8, data2=0xFFFFFFFF).pack()[:20])
    with client.register() as registered:
        registered.acquire(f"LS:R1:{path}:1M")
        before = client.renewals("LS")[-1].state.data64
        until(lambda: client.renewals("LS")[-1].state.data64 > before)
        registered.release(f"LS:R1:{path}:1M")
    for connection in bad:
        connection.close()


# ------------------------------------------------------------------------------------------------------ fuzzing

#: commands that would end the daemon, or wait for ever by design
_LEFT_OUT = {Command.SHUTDOWN, Command.SHUTDOWN_WAIT, Command.INQ_LOCKSPACE}
commands = st.one_of(
    st.sampled_from([command for command in Command if command not in _LEFT_OUT]).map(int),
    st.integers(41, 0xFFFFFFFF),
)
numbers = st.one_of(st.sampled_from([0, 1, 8, 9, 0xFFFFFFFF, 0x7FFFFFFF]), st.integers(0, 0xFFFFFFFF))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A header that may be right in everything, and some payload."""
    payload = draw(st.one_of(st.binary(max_size=300), st.integers(0, 9000).map(bytes)))
    length = draw(st.one_of(st.just(32 + len(payload)), numbers))
    header = Header(
        draw(commands),
        draw(numbers),
        length,
        draw(numbers),
        draw(numbers),
        draw(numbers),
        draw(st.sampled_from([1, 0, 0x10001, 0xFFFFFFFF])),
        draw(st.sampled_from([MAGIC, MAGIC, MAGIC, 0])),
    )
    return header.pack() + payload


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[LeaseholdDaemon]:
    with LeaseholdDaemon("fuzzed") as daemon:
        yield daemon


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(messages(), st.binary(max_size=200)), min_size=1, max_size=4), st.booleans())
def test_no_bytes_hurt_it(fuzzed: LeaseholdDaemon, parts: list[bytes], registered: bool) -> None:
    with connect(fuzzed) as connection:
        if registered:
            connection.sendall(Header(Command.REGISTER).pack())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            connection.recv(65536)
    is_well(fuzzed)
    assert "fault" not in fuzzed.log()


def test_nothing_is_left_behind_by_bad_clients(fuzzed: LeaseholdDaemon) -> None:
    until(lambda: open_files(fuzzed) < 60)
    client = Client(str(fuzzed.socket_path))
    until(lambda: len(client.status().clients) == 3)


# ----------------------------------------------------------------------------------------------------- policy

_AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for request in sys.argv[2:]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.sendall(bytes.fromhex(request))
    print(int.from_bytes(connection.recv(32)[24:28], "little", signed=True))
"""


def test_a_stranger_may_look_but_not_act(
    leasehold_daemon: LeaseholdDaemon, volume_of: Callable[[LeaseholdDaemon], Path]
) -> None:
    path = volume_of(leasehold_daemon)
    os.chmod(leasehold_daemon.run_dir, 0o755)
    os.chmod(leasehold_daemon.socket_path, 0o666)
    client = Client(str(leasehold_daemon.socket_path))
    with client.register() as registered:
        registered.acquire(f"LS:R1:{path}:1M")
        lockspace = Lockspace(b"LS", 1).pack()
        asked = [
            Header(Command.VERSION).pack(),
            Header(Command.RELEASE, 1, data2=os.getpid()).pack(),
            Header(Command.WRITE_LOCKSPACE, length=1136).pack() + lockspace,
            Header(Command.REM_LOCKSPACE, length=1136).pack() + lockspace,
            Header(Command.SHUTDOWN_WAIT, data=1).pack(),
        ]
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, str(leasehold_daemon.socket_path), *(one.hex() for one in asked)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["0", "-13", "-13", "-13", "-13"]
        assert len(registered.held()) == 1


def test_the_socket_lets_no_stranger_in(leasehold_daemon: LeaseholdDaemon) -> None:
    os.chmod(leasehold_daemon.run_dir, 0o755)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(leasehold_daemon.socket_path), VERSION.hex()],
        capture_output=True,
        text=True,
    )
    assert "PermissionError" in done.stderr
