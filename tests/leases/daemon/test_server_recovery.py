"""What the daemon does to its clients when a lockspace fails, and what a client's end does to its leases."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.client import Client
from leases.daemon.numbers import ConfigCommand
from tests.support.leasehold_daemon import ROOT, LeaseholdDaemon

pytestmark = pytest.mark.slow

SECTOR = 512

#: registers, takes leases, says so, and notes the signals it gets; "stubborn": goes on after SIGTERM
_HOLDER = """
import os, signal, sys, time
from leases.client import Client
from leases.daemon.numbers import RestrictFlag
path, notes, style, uid, *leases = sys.argv[1:]
os.setgroups([])
os.setgid(int(uid))
os.setuid(int(uid))
def note(*words):
    with open(notes, "a") as file:
        print(*words, file=file, flush=True)
def got(number, frame):
    note(signal.Signals(number).name)
    if style != "stubborn":
        os._exit(0)
signal.signal(signal.SIGTERM, got)
registration = Client(path).register()
if style == "killpath":
    registration.killpath("/bin/sh", "-c", f"id -u >> {notes}; kill -9 $0", with_pid=True)
if style == "restricted":
    registration.restrict(RestrictFlag.SIGTERM)
registration.acquire(*leases)
note("holds")
if style == "parent":
    if os.fork():
        os.pause() if hasattr(os, "pause") else signal.pause()
    time.sleep(1000)
while True:
    signal.pause()
"""


class Holding:
    """A process that holds leases of LS; `notes` is what it wrote down."""

    def __init__(self, daemon: LeaseholdDaemon, notes: Path, style: str, *leases: str, uid: int = 0) -> None:
        self.notes_path = notes
        notes.touch()
        notes.chmod(0o666)
        argv = [sys.executable, "-c", _HOLDER, str(daemon.socket_path), str(notes), style, str(uid), *leases]
        self.process = subprocess.Popen(argv, cwd=ROOT, start_new_session=True)
        until(lambda: self.notes[:1] == ["holds"])

    @property
    def notes(self) -> list[str]:
        return self.notes_path.read_text().split()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def end_children(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float = 25.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@pytest.fixture
def daemon() -> Iterator[LeaseholdDaemon]:
    with LeaseholdDaemon("hostA", "--kill-grace", "3") as started:
        yield started


@pytest.fixture
def image(daemon: LeaseholdDaemon, images: Path) -> str:
    """Joined, with leases R1 to R7."""
    path = images / "disk.img"
    path.write_bytes(bytes(8 << 20))
    client = client_of(daemon)
    client.write_lockspace(f"LS:0:{path}:0", io_timeout=1)
    for number in range(1, 8):
        client.write_resource(lease(str(path), number))
    client.add_lockspace(f"LS:1:{path}:0", 1)
    return str(path)


Hold = Callable[..., Holding]


@pytest.fixture
def hold(daemon: LeaseholdDaemon) -> Iterator[Hold]:
    started: list[Holding] = []
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # where anybody may write, unlike pytest's own
    place.chmod(0o777)

    def start(style: str, *leases: str, uid: int = 0) -> Holding:
        started.append(Holding(daemon, place / f"notes{len(started)}", style, *leases, uid=uid))
        return started[-1]

    yield start
    for one in started:
        one.end()
        one.end_children()
    shutil.rmtree(place)


def client_of(daemon: LeaseholdDaemon) -> Client:
    return Client(str(daemon.socket_path))


def lease(path: str, number: int) -> str:
    return f"LS:R{number}:{path}:{number}M"


def write_over_the_host_lease(path: str) -> None:
    """Somebody damages the sector of host 1."""
    with open(path, "r+b") as file:
        file.write(bytes(SECTOR))
        os.fsync(file.fileno())


def names(daemon: LeaseholdDaemon) -> list[bytes]:
    return [lockspace.name for lockspace in client_of(daemon).lockspaces()]


# ------------------------------------------------------------------------------------------------ the ladder


def test_a_client_is_asked_first_and_the_lockspace_ends_when_it_is_gone(
    daemon: LeaseholdDaemon, image: str, hold: Hold
) -> None:
    holder = hold("polite", lease(image, 1))
    write_over_the_host_lease(image)
    assert holder.process.wait(25) == 0
    assert holder.notes == ["holds", "SIGTERM"]
    until(lambda: names(daemon) == [])


def test_who_does_not_listen_is_killed_after_the_grace(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold("stubborn", lease(image, 1))
    write_over_the_host_lease(image)
    assert holder.process.wait(40) == -signal.SIGKILL
    assert holder.notes.count("SIGTERM") > 2
    until(lambda: names(daemon) == [])


def test_a_kill_path_runs_once_with_its_clients_rights(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    os.chmod(daemon.run_dir, 0o755)
    os.chmod(daemon.socket_path, 0o666)
    holder = hold("killpath", lease(image, 1), uid=65534)
    write_over_the_host_lease(image)
    assert holder.process.wait(25) == -signal.SIGKILL
    assert holder.notes == ["holds", "65534"]


def test_who_must_not_be_asked_is_killed(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold("restricted", lease(image, 1))
    write_over_the_host_lease(image)
    assert holder.process.wait(25) == -signal.SIGKILL
    assert holder.notes == ["holds"]


def test_a_failing_lockspace_does_not_look_healthy(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    hold("stubborn", lease(image, 1))
    write_over_the_host_lease(image)
    client = client_of(daemon)
    until(lambda: client.inquire_lockspace(f"LS:1:{image}:0") is None)
    assert [lockspace.flags for lockspace in client.lockspaces()] == [2]
    values = client.status().lockspaces[0].values
    assert (values["renew_fail"], values["killing_pids"]) == ("1", "1")
    assert int(values["corrupt_result"]) < 0


def test_a_lockspace_that_is_used_outside_waits_for_that(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    client = client_of(daemon)
    client.configure("LS", ConfigCommand.USED)
    holder = hold("polite", lease(image, 1))
    write_over_the_host_lease(image)
    assert holder.process.wait(25) == 0
    time.sleep(2)
    assert names(daemon) == [b"LS"]
    client.configure("LS", ConfigCommand.UNUSED)
    until(lambda: names(daemon) == [])


def test_others_are_not_touched(daemon: LeaseholdDaemon, image: str, hold: Hold, images: Path) -> None:
    other = images / "other.img"
    other.write_bytes(bytes(2 << 20))
    client = client_of(daemon)
    client.write_lockspace(f"L2:0:{other}:0", io_timeout=1)
    client.write_resource(f"L2:R1:{other}:1M")
    client.add_lockspace(f"L2:1:{other}:0", 1)
    safe = hold("polite", f"L2:R1:{other}:1M")
    lost = hold("polite", lease(image, 1))
    write_over_the_host_lease(image)
    assert lost.process.wait(25) == 0
    until(lambda: names(daemon) == [b"L2"])
    assert safe.process.poll() is None
    assert safe.notes == ["holds"]


def test_removing_a_lockspace_kills_its_users_at_once(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold("polite", lease(image, 1))
    client_of(daemon).remove_lockspace(f"LS:1:{image}:0")
    assert holder.process.wait(25) == -signal.SIGKILL
    assert holder.notes == ["holds"]
    assert names(daemon) == []


def test_kill_paths_work_although_their_process_was_killed(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    client = client_of(daemon)
    helper = int(client.status().daemon["helper_pid"])
    os.kill(helper, signal.SIGKILL)
    until(lambda: int(client.status().daemon["helper_pid"]) != helper)
    holder = hold("killpath", lease(image, 1))
    write_over_the_host_lease(image)
    assert holder.process.wait(25) == -signal.SIGKILL
    assert holder.notes == ["holds", "0"]


# ------------------------------------------------------------------------------------------- a client's end


def test_a_process_that_ends_gives_back_its_leases_though_a_child_has_its_connection(
    daemon: LeaseholdDaemon, image: str, hold: Hold
) -> None:
    holder = hold("parent", lease(image, 1))
    holder.end()
    client = client_of(daemon)
    until(lambda: client.status().resources == [])
    with client.register() as registration:
        registration.acquire(lease(image, 1))


def test_closing_a_short_connection_releases_nothing(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold("polite", lease(image, 1))
    client = client_of(daemon)
    process = client.process(holder.process.pid)
    process.acquire(lease(image, 2))
    assert [held.name for held in process.held()] == [b"R1", b"R2"]
    process.release(lease(image, 1))
    owners = client.resource_owners(lease(image, 1))
    assert owners.hosts == []
    assert [held.name for held in process.held()] == [b"R2"]


def test_a_persistent_lease_outlives_its_client_and_is_taken_over(
    daemon: LeaseholdDaemon, image: str, hold: Hold
) -> None:
    client = client_of(daemon)
    with client.register() as first:
        first.acquire(lease(image, 1), persistent=True)
    until(lambda: [one.values["list"] for one in client.status().resources] == ["orphan"])
    with client.register() as second:
        second.acquire(lease(image, 1), orphan=True)
        assert [held.lver for held in second.held()] == [1]


def test_a_failed_lockspace_forgets_its_orphans(daemon: LeaseholdDaemon, image: str) -> None:
    client = client_of(daemon)
    with client.register() as first:
        first.acquire(lease(image, 1), persistent=True)
    until(lambda: [one.values["list"] for one in client.status().resources] == ["orphan"])
    write_over_the_host_lease(image)
    until(lambda: names(daemon) == [])
    assert client.status().resources == []


def test_orphans_that_use_a_lockspace_keep_it(daemon: LeaseholdDaemon, image: str) -> None:
    client = client_of(daemon)
    client.configure("LS", ConfigCommand.USED_BY_ORPHANS)
    with client.register() as first:
        first.acquire(lease(image, 1), persistent=True)
    until(lambda: [one.values["list"] for one in client.status().resources] == ["orphan"])
    write_over_the_host_lease(image)
    until(lambda: client.status().lockspaces[0].values["killing_pids"] == "1")
    time.sleep(2)
    assert names(daemon) == [b"LS"]
    client.configure("LS", ConfigCommand.UNUSED_BY_ORPHANS)
    until(lambda: names(daemon) == [])
