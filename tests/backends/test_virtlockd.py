"""leasehold virtlockd and the real one side by side: guests' ends, mutual exclusion, and restarts without a gap."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.fcntl import FcntlManager, indirect_name
from leases.manager import Access, GuestLocks, Owner, Resource
from paxos.errors import HeldElsewhere
from tests.support.libvirt import OURS, REAL, Daemon, Machine, machine, until
from tests.support.lockclient import AUTOCREATE, GUEST, SHARED, Guest, LockClient, is_locked, posix_lock

__all__ = ["machine"]
pytestmark = pytest.mark.peers

DEMO = "/var/lib/libvirt/images/demo.img"
FILES = "/var/lib/libvirt/lockd/files"
#: a pid that is nobody's guest, for locks that no connection's end releases
NOBODY = 1 << 22


@pytest.fixture(params=[OURS, REAL])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(machine: Machine) -> Path:
    return machine.make_image(DEMO)


def acquire(daemon: Daemon, pid: int, name: str = DEMO, space: str = "", flags: int = 0) -> int:
    """As libvirtd does: on a connection of its own. The error's code, 0 for none."""
    with LockClient(daemon.socket) as client:
        assert client.register(pid) is None
        error = client.acquire(space, name, flags)
    return 0 if error is None else error.code


# ------------------------------------------------------------------------------------------- the ends of guests


def test_a_guest_that_ends_loses_its_locks(machine: Machine, which: str, image: Path) -> None:
    daemon = machine.start_virtlockd(which)
    with Guest(daemon.socket) as guest:
        assert acquire(daemon, guest.pid) == 0
        assert acquire(daemon, NOBODY) == 87
        guest.kill()
        until(lambda: not is_locked(image), "release after the guest's end")


def test_the_end_of_other_connections_means_nothing(machine: Machine, which: str, image: Path) -> None:
    daemon = machine.start_virtlockd(which)
    assert acquire(daemon, NOBODY) == 0
    with LockClient(daemon.socket) as again:
        assert again.register(NOBODY) is None
        assert is_locked(image)
        assert again.release("", DEMO) is None
    assert not is_locked(image)


@pytest.mark.parametrize(("stubborn", "end"), [(False, -signal.SIGTERM), (True, -signal.SIGKILL)])
def test_a_guest_that_lives_on_without_its_connection_is_stopped(
    machine: Machine, which: str, image: Path, stubborn: bool, end: int
) -> None:
    daemon = machine.start_virtlockd(which)
    with Guest(daemon.socket, stubborn=stubborn) as guest:
        assert acquire(daemon, guest.pid) == 0
        guest.close_connection()
        assert guest.process.wait(30) == end
        until(lambda: not is_locked(image), "release after the guest was stopped")


def test_a_guest_without_locks_may_close_its_connection(machine: Machine, which: str) -> None:
    daemon = machine.start_virtlockd(which)
    with Guest(daemon.socket) as guest, LockClient(daemon.socket) as client:
        guest.close_connection()
        client.register(NOBODY)
        assert guest.process.poll() is None


def test_our_locks_stay_until_the_guest_is_dead(machine: Machine, image: Path) -> None:
    """The real one unlocks first and stops the guest then."""
    daemon = machine.start_virtlockd(OURS)
    with Guest(daemon.socket, stubborn=True) as guest:
        assert acquire(daemon, guest.pid) == 0
        guest.close_connection()
        while guest.process.poll() is None:
            locked = is_locked(image)
            assert locked or guest.process.poll() is not None


def test_files_made_for_a_lock_go_with_it(machine: Machine, which: str) -> None:
    daemon = machine.start_virtlockd(which)
    file = machine.path(f"{FILES}/k")
    with LockClient(daemon.socket) as client:
        client.register(NOBODY)
        assert client.create_lockspace(FILES) is None
        for flags in (AUTOCREATE, AUTOCREATE | SHARED):
            assert client.acquire(FILES, "k", flags) is None
            assert file.exists()
            assert client.release(FILES, "k") is None
            assert not file.exists()
        assert client.acquire(FILES, "k", AUTOCREATE | SHARED) is None
        stranger = posix_shared(file)
        assert client.release(FILES, "k") is None
        assert file.exists()  # somebody else shares it
        os.close(stranger)


def posix_shared(path: Path) -> int:
    return posix_lock(path, fcntl.LOCK_SH)


def test_we_survive_a_lockspace_that_cant_be_made(machine: Machine) -> None:
    daemon = machine.start_virtlockd(OURS)
    with Guest(daemon.socket), LockClient(daemon.socket) as client:
        client.register()
        for _ in range(2):
            error = client.new("/proc/nope/x")
            assert error is not None
            assert (error.code, error.domain, error.int1) == (38, 51, 2)
    with LockClient(daemon.socket) as client:
        assert client.register() is None
        assert client.create_lockspace(FILES) is None


def test_names_cant_lead_out_of_the_lockspace(machine: Machine) -> None:
    daemon = machine.start_virtlockd(OURS)
    with LockClient(daemon.socket) as client:
        client.register()
        client.create_lockspace(FILES)
        for name in ("../k", "a/../../k", ".."):
            error = client.acquire(FILES, name, AUTOCREATE)
            assert error is not None
            assert error.code == 8
    assert not machine.path(f"{FILES}/../k").exists()


def test_checks_come_in_the_same_order(machine: Machine, which: str) -> None:
    """Where a call is wrong in several ways, both daemons name the same one."""
    daemon = machine.start_virtlockd(which)
    with LockClient(daemon.socket) as client:
        codes = [client.acquire("/nowhere", "k", 8), client.create_lockspace(FILES), client.register(id=0)]
        client.register()
        client.restrict()
        codes += [
            client.acquire("/nowhere", "k", 8),
            client.create_lockspace(FILES),
            client.register(),
            client.restrict(),
            client.new(""),
        ]
        assert [error and error.code for error in codes] == [8, None, 55, 8, 29, 29, 29, 29]


# --------------------------------------------------------------------------------------------- mutual exclusion


@contextmanager
def our_locks(
    disk: Path | str, directory: Path | None = None, access: Access = Access.EXCLUSIVE
) -> Iterator[GuestLocks]:
    """The fcntl lock manager, for a disk as the machine has it."""
    with FcntlManager(None if directory is None else str(directory), io_timeout=5, watchdog="none") as manager:
        yield manager.guest(Owner(GUEST, "vm1"), [Resource.disk(str(disk), access)])


def test_a_virtlockd_keeps_our_lock_manager_out(machine: Machine, which: str, image: Path) -> None:
    daemon = machine.start_virtlockd(which)
    with our_locks(image) as ours:
        assert acquire(daemon, NOBODY) == 0
        with pytest.raises(HeldElsewhere):
            ours.acquire()
        with LockClient(daemon.socket) as client:
            client.register(NOBODY)
            client.release("", DEMO)
        ours.acquire()
        ours.release()


def test_our_lock_manager_keeps_a_virtlockd_out(machine: Machine, which: str, image: Path) -> None:
    daemon = machine.start_virtlockd(which)
    with our_locks(image) as ours:
        ours.acquire()
        assert acquire(daemon, NOBODY) == 87
        assert acquire(daemon, NOBODY, flags=SHARED) == 87
        ours.release()
    assert acquire(daemon, NOBODY) == 0


def test_sharing_works_across(machine: Machine, which: str, image: Path) -> None:
    daemon = machine.start_virtlockd(which)
    with our_locks(image, access=Access.SHARED) as ours:
        ours.acquire()
        assert acquire(daemon, NOBODY) == 87
        assert acquire(daemon, NOBODY, flags=SHARED) == 0
        ours.release()


def test_a_lockspace_directory_is_used_in_the_same_way(machine: Machine, which: str) -> None:
    """Same names, same files, made and removed the same: in both directions."""
    daemon = machine.start_virtlockd(which)
    directory = machine.path(FILES)
    with LockClient(daemon.socket) as client, our_locks(DEMO, directory) as ours:
        client.register(NOBODY)
        client.create_lockspace(FILES)
        ours.acquire()
        assert [file.name for file in directory.iterdir()] == [indirect_name(DEMO)]
        assert acquire(daemon, NOBODY, indirect_name(DEMO), FILES, AUTOCREATE) == 87
        ours.release()
        assert list(directory.iterdir()) == []
        assert client.acquire(FILES, indirect_name(DEMO), AUTOCREATE) is None
        with pytest.raises(HeldElsewhere):
            ours.acquire()
        assert client.release(FILES, indirect_name(DEMO)) is None
        ours.acquire()
        ours.release()


def test_two_daemons_exclude_each_other(machine: Machine, image: Path) -> None:
    """The real one and ours, each in its own /run but on the same files."""
    real, ours = machine.start_virtlockd(REAL), machine.start_virtlockd(OURS, socket_path="/srv/ours-sock")
    for first, second in ((real, ours), (ours, real)):
        assert acquire(first, NOBODY) == 0
        assert acquire(second, NOBODY) == 87
        with LockClient(first.socket) as client:
            client.register(NOBODY)
            assert client.release("", DEMO) is None
        assert acquire(second, NOBODY) == 0
        with LockClient(second.socket) as client:
            client.register(NOBODY)
            assert client.release("", DEMO) is None


# ------------------------------------------------------------------------------------------- restarts and stops

_CONTENDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.set_blocking(0, False)
print("trying", flush=True)
while True:
    for _ in range(200):
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0, os.SEEK_SET)
            sys.exit("got in")
        except BlockingIOError:
            pass
    try:
        if not os.read(0, 1):
            sys.exit("never got in")
    except BlockingIOError:
        pass
"""


class Contender:
    """A process that tries to get the lock in a tight loop."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CONTENDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "trying\n"

    def verdict(self) -> str:
        """Stop it; how it fared."""
        _, verdict = self._process.communicate(timeout=30)
        return verdict.strip()


@pytest.fixture
def held(machine: Machine, image: Path) -> Iterator[tuple[Daemon, Guest]]:
    """Our daemon with a guest that holds the image and a file of a lockspace."""
    daemon = machine.start_virtlockd(OURS)
    with Guest(daemon.socket) as guest:
        with LockClient(daemon.socket) as client:
            client.create_lockspace(FILES)
        assert acquire(daemon, guest.pid) == 0
        assert acquire(daemon, guest.pid, "k", FILES, AUTOCREATE) == 0
        yield daemon, guest


def expect_everything_kept(daemon: Daemon, guest: Guest, image: Path) -> None:
    """The daemon knows the locks, the owner and the guest's connection, and the file system the locks."""
    file = image.parents[1] / "lockd" / "files" / "k"
    assert guest.process.poll() is None
    assert is_locked(image)
    assert is_locked(file)
    assert acquire(daemon, NOBODY) == 87
    with LockClient(daemon.socket) as client:
        client.register(guest.pid)
        assert client.release(FILES, "k") is None
        assert not file.exists()
        assert client.acquire(FILES, "k", AUTOCREATE) is None
    guest.kill()
    until(lambda: not is_locked(image) and not file.exists(), "release after the guest's end")


def test_a_stop_in_order_kills_no_guest_and_unlocks_nothing(held: tuple[Daemon, Guest], image: Path) -> None:
    daemon, guest = held
    assert daemon.terminate() == 0
    assert not daemon.socket.exists()
    assert guest.process.poll() is None
    assert is_locked(image)
    guest.kill()
    until(lambda: not is_locked(image), "release after the guest's end")


def test_the_real_one_kills_the_guest_when_it_is_stopped(machine: Machine, image: Path) -> None:
    daemon = machine.start_virtlockd(REAL)
    with Guest(daemon.socket) as guest:
        assert acquire(daemon, guest.pid) == 0
        daemon.terminate()
        assert guest.process.wait(30) == -signal.SIGTERM


def test_stop_and_start_leave_no_gap(held: tuple[Daemon, Guest], image: Path) -> None:
    daemon, guest = held
    contender = Contender(image)
    for _ in range(3):
        daemon.terminate()
        daemon.restart()
    assert contender.verdict() == "never got in"
    expect_everything_kept(daemon, guest, image)


def test_a_restart_by_signal_leaves_no_gap_and_refuses_no_client(held: tuple[Daemon, Guest], image: Path) -> None:
    daemon, guest = held
    contender = Contender(image)
    with LockClient(daemon.socket) as open_connection:
        open_connection.register(NOBODY)
        for _ in range(3):
            os.kill(daemon.pid, signal.SIGUSR1)
            assert acquire(daemon, NOBODY) == 87  # waits for the next one rather than being refused
        error = open_connection.acquire("", DEMO)
        assert error is not None
        assert error.code == 87
    assert contender.verdict() == "never got in"
    assert daemon.process.poll() is None
    expect_everything_kept(daemon, guest, image)


def test_the_real_one_restarts_by_the_same_signal(machine: Machine, image: Path) -> None:
    """What the test above asks of us, it does as well, if nobody is connected who did not register (else it ends)."""
    daemon = machine.start_virtlockd(REAL)
    with Guest(daemon.socket) as guest, LockClient(daemon.socket) as client:
        client.register(NOBODY)
        assert acquire(daemon, guest.pid) == 0
        contender = Contender(image)
        os.kill(daemon.pid, signal.SIGUSR1)
        error = client.acquire("", DEMO)
        assert error is not None
        assert error.code == 87
        assert contender.verdict() == "never got in"
        assert guest.process.poll() is None


def test_a_replacement_takes_over_from_a_daemon_that_serves(
    machine: Machine, held: tuple[Daemon, Guest], image: Path
) -> None:
    daemon, guest = held
    contender = Contender(image)
    next_one = machine.start_virtlockd(OURS, "--replace")
    assert daemon.process.wait(30) == 0
    assert contender.verdict() == "never got in"
    expect_everything_kept(next_one, guest, image)


def test_a_second_daemon_does_not_start(machine: Machine, held: tuple[Daemon, Guest]) -> None:
    second = machine.popen(
        [sys.executable, "-m", "leases.cli.main", "virtlockd"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 64
    assert b"serves at /run/libvirt/virtlockd-sock already" in output


def test_a_guest_that_ended_while_no_daemon_served_is_noticed(held: tuple[Daemon, Guest], image: Path) -> None:
    daemon, guest = held
    daemon.terminate()
    guest.kill()
    until(lambda: not is_locked(image), "release by the holder")
    daemon.restart()
    assert acquire(daemon, NOBODY) == 0


def test_half_a_message_survives_a_restart(held: tuple[Daemon, Guest]) -> None:
    daemon, _guest = held
    with LockClient(daemon.socket) as client:
        payload = GUEST.bytes + b"\0\0\0\1x\0\0\0" + (7).to_bytes(4, "big") + (9).to_bytes(4, "big") + bytes(4)
        message = bytes.fromhex("0ea7beef00000001000000010000000000000005 00000000".replace(" ", "")) + payload
        message = (len(message) + 4).to_bytes(4, "big") + message
        client.socket.sendall(message[:30])
        until(lambda: acquire(daemon, NOBODY) == 87, "the daemon having read it")
        os.kill(daemon.pid, signal.SIGUSR1)
        assert acquire(daemon, NOBODY) == 87
        client.socket.sendall(message[30:])
        reply = client.receive()
        assert reply is not None
        assert (reply.serial, reply.status) == (5, 0)


def test_a_daemon_without_locks_leaves_nobody_behind(machine: Machine) -> None:
    daemon = machine.start_virtlockd(OURS)
    assert daemon.terminate() == 0
    assert not list(machine.left_over())
    daemon.restart()


def test_an_idle_daemon_ends_by_itself(machine: Machine, image: Path) -> None:
    daemon = machine.start_virtlockd(OURS, "--timeout", "4")
    with Guest(daemon.socket) as guest:
        assert acquire(daemon, guest.pid) == 0
        guest.kill()
        assert daemon.process.wait(30) == 0
