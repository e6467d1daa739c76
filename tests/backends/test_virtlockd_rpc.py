"""leasehold virtlockd on its own: hostile clients, slow ones, and how it is started. No other program is needed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.virtlockd import rpc
from backends.virtlockd.lockspaces import Lockspaces
from backends.virtlockd.procedures import Caller, answer
from tests.support.libvirt import until
from tests.support.lockclient import LockClient, is_locked
from tests.support.peers import images

__all__ = ["images"]

NOBODY = 1 << 22


_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    for process in _started:
        process.kill()
        process.wait()
    _started.clear()


class Daemon:
    """Ends with the test, whatever happens."""

    def __init__(self, directory: Path, *options: str, start: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> None:
        self.socket = directory / "sock"
        argv = [*start, sys.executable, "-m", "leases.cli.main", "virtlockd", "--socket", str(self.socket), *options]
        self.process = subprocess.Popen(argv, pass_fds=pass_fds)
        _started.append(self.process)
        until(self.answers, "the daemon's answer")

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def alive(self) -> bool:
        with LockClient(self.socket) as client:
            return client.register(NOBODY) is None

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path)
    yield running
    running.stop()


# ----------------------------------------------------------------------------------------------- hostile clients


@given(st.binary(max_size=200), st.integers(1, 8))
def test_no_arguments_break_a_procedure(payload: bytes, procedure: int) -> None:
    """Every call gets an answer, an error if it can't be understood. Nothing that names a file is called."""
    caller, spaces = Caller(), Lockspaces()
    message = rpc.call(rpc.Procedure(procedure), 1, payload)
    if procedure == rpc.Procedure.CREATE_LOCKSPACE:
        caller.restricted = True
    reply = answer(message, caller, spaces)
    assert reply is not None
    assert reply.serial == 1
    if reply.status == rpc.Status.ERROR:
        assert rpc.Error.unpack(reply.payload).code in (1, 8, 29, 39, 55)


@given(st.binary(max_size=300))
def test_frames_are_cut_the_same_however_they_come(data: bytes) -> None:
    whole, pieces = rpc.Frames(data), rpc.Frames()
    for byte in data:
        pieces.feed(bytes([byte]))
    while True:
        try:
            one = whole.next()
        except rpc.BadFrame:
            with pytest.raises(rpc.BadFrame):
                pieces.next()
            return
        assert pieces.next() == one
        if one is None:
            assert whole.rest == pieces.rest
            return


@given(
    st.builds(
        rpc.Error,
        st.integers(0, 200),
        st.integers(0, 60),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
        st.integers(-1, 200),
        st.integers(-1, 0),
    )
)
def test_errors_survive_the_wire(error: rpc.Error) -> None:
    assert rpc.Error.unpack(error.pack()) == error


def test_garbage_closes_a_connection_and_harms_nobody_else(daemon: Daemon) -> None:
    dice = random.Random(4)
    with LockClient(daemon.socket) as witness:
        assert witness.register(NOBODY) is None
        for length in (1, 3, 4, 27, 28, 100, 5000):
            for _ in range(5):
                with LockClient(daemon.socket) as client:
                    client.socket.sendall(dice.randbytes(length))
        assert witness.register(NOBODY) is None


def test_a_client_that_does_not_take_its_answers_holds_nobody_up(daemon: Daemon) -> None:
    """Its calls wait in its socket, not in the daemon."""
    greedy = socket.socket(socket.AF_UNIX)
    greedy.connect(str(daemon.socket))
    greedy.setblocking(False)
    call = rpc.call(rpc.Procedure.NEW, 1, rpc.pack_text("/x") + rpc.pack_number(0)).pack()
    with pytest.raises(BlockingIOError):
        while True:
            greedy.send(call * 100)
    assert daemon.alive()
    greedy.close()
    assert daemon.alive()


def test_a_client_that_goes_away_in_the_middle_of_a_call(daemon: Daemon) -> None:
    with LockClient(daemon.socket) as client:
        client.socket.sendall(b"\0\0\1\0" + bytes(20))
    assert daemon.alive()


def test_many_clients_are_served_and_more_wait(tmp_path: Path, daemon: Daemon) -> None:
    clients = [LockClient(daemon.socket) for _ in range(200)]
    for client in clients:
        assert client.register(NOBODY) is None
    for client in clients:
        client.socket.close()
    assert daemon.alive()


def test_names_that_are_no_text_are_kept_as_they_are(daemon: Daemon, tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"\xff\xfe.img")
    image.touch()
    with LockClient(daemon.socket) as client:
        client.register(NOBODY)
        assert client.acquire("", str(image)) is None
        assert is_locked(image)
        assert client.release("", str(image)) is None


# ----------------------------------------------------------------------------------------------- how it is started


_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_it_serves_a_socket_that_it_was_passed(tmp_path: Path) -> None:
    """As systemd does it: descriptors from 3 on, LISTEN_FDS and LISTEN_PID."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        start = [sys.executable, "-c", _AS_SYSTEMD, str(listener.fileno())]
        running = Daemon(tmp_path, start=start, pass_fds=[listener.fileno()])
        inode = path.stat().st_ino
        assert running.alive()
        assert path.stat().st_ino == inode  # it bound no other
        running.stop()


def test_its_sockets_are_nobody_else_s(daemon: Daemon) -> None:
    for path in (daemon.socket, daemon.socket.with_name("sock.next")):
        assert path.stat().st_mode & 0o777 == 0o700


def test_its_process_id_is_written_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    running = Daemon(tmp_path, "--pid-file", str(file))
    until(lambda: file.exists() and file.read_text() == f"{running.process.pid}\n", "the process id")
    running.stop()
    assert not file.exists()
    assert not running.socket.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_that_end_it(tmp_path: Path, number: signal.Signals) -> None:
    running = Daemon(tmp_path)
    running.process.send_signal(number)
    assert running.process.wait(30) == 0


def test_sockets_left_by_a_daemon_that_was_killed_are_in_nobody_s_way(tmp_path: Path) -> None:
    first = Daemon(tmp_path)
    first.process.kill()
    first.process.wait()
    second = Daemon(tmp_path)
    assert second.alive()
    second.stop()


def test_other_users_are_shut_out(images: Path) -> None:
    """Even where the socket's mode would let them in."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    running = Daemon(images)
    images.chmod(0o755)
    running.socket.chmod(0o777)
    code = (
        "import os, socket, sys; os.setuid(65534); client = socket.socket(socket.AF_UNIX); "
        "client.connect(sys.argv[1]); sys.exit(len(client.recv(1)))"
    )
    assert subprocess.run(["/usr/bin/python3", "-c", code, str(running.socket)], timeout=30).returncode == 0
    running.stop()
