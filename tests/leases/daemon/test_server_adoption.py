"""A daemon that is killed and started again goes on where it was; and its keeper process, tied to it both ways."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.client import Client
from leases.daemon.numbers import ConfigCommand
from tests.support.leasehold_daemon import ROOT, LeaseholdDaemon, SanlockCommandDaemon

pytestmark = pytest.mark.slow

_HOLDER = """
import signal, sys
from leases.client import Client
path, persistent, *leases = sys.argv[1:]
registration = Client(path).register()
registration.acquire(*leases, persistent=persistent == "persistent", shared=persistent == "shared")
print("holds", flush=True)
for line in sys.stdin:
    registration = Client(path).register()
    print(len(registration.held()), flush=True)
"""


def until(true: Callable[[], bool], seconds: float = 25.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


class Holding:
    """A registered process that holds leases."""

    def __init__(self, daemon: LeaseholdDaemon, how: str, *leases: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(daemon.socket_path), how, *leases],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self.line() == "holds"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def register_again(self) -> int:
        """How many leases its new connection has."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        return int(self.line())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


Hold = Callable[..., Holding]


@pytest.fixture
def daemon() -> Iterator[LeaseholdDaemon]:
    with LeaseholdDaemon("hostA") as started:
        yield started


@pytest.fixture
def hold(daemon: LeaseholdDaemon) -> Iterator[Hold]:
    started: list[Holding] = []

    def start(*leases: str, how: str = "") -> Holding:
        started.append(Holding(daemon, how, *leases))
        return started[-1]

    yield start
    for one in started:
        one.end()


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


def client_of(daemon: LeaseholdDaemon) -> Client:
    return Client(str(daemon.socket_path))


def lease(path: str, number: int) -> str:
    return f"LS:R{number}:{path}:{number}M"


def killed_and_started(daemon: LeaseholdDaemon) -> Client:
    daemon.kill()
    daemon.start()
    return client_of(daemon)


def shown(client: Client) -> list[tuple[str, str]]:
    """Name and list of each lease."""
    return sorted((one.state.name.decode(), one.values["list"]) for one in client.status().resources)


def keeper_of(daemon: LeaseholdDaemon) -> int:
    done = subprocess.run(["pgrep", "-P", str(daemon.pid), "-f", "keeper.process"], capture_output=True, text=True)
    return int(done.stdout)


# ---------------------------------------------------------------------------------------------------- adoption


def test_leases_and_lockspaces_outlive_the_daemon(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold(lease(image, 1), lease(image, 2))
    generation = client_of(daemon).status().lockspaces[0].values["host_generation"]
    client = killed_and_started(daemon)
    assert shown(client) == [("R1", "held"), ("R2", "held")]
    assert client.status().lockspaces[0].values["host_generation"] == generation
    assert [held.name for held in client.process(holder.process.pid).held()] == [b"R1", b"R2"]
    with client.register() as other, pytest.raises(Exception, match="already held"):
        other.acquire(lease(image, 1))
    before = client.renewals("LS")
    until(lambda: len(client.renewals("LS")) > len(before))


def test_a_client_that_died_meanwhile_holds_nothing(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold(lease(image, 1))
    daemon.kill()
    holder.end()
    daemon.start()
    client = client_of(daemon)
    assert shown(client) == []
    assert client.resource_owners(lease(image, 1)).hosts == []
    with client.register() as other:
        other.acquire(lease(image, 1))


def test_a_client_that_dies_later_is_seen_to(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold(lease(image, 1))
    client = killed_and_started(daemon)
    assert shown(client) == [("R1", "held")]
    holder.end()
    until(lambda: shown(client) == [])
    assert client.resource_owners(lease(image, 1)).hosts == []


def test_a_client_that_registers_again_has_its_leases(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold(lease(image, 1), lease(image, 2))
    client = killed_and_started(daemon)
    assert holder.register_again() == 2
    client.process(holder.process.pid).release(lease(image, 1))
    assert client.resource_owners(lease(image, 1)).hosts == []


def test_a_client_without_leases_can_still_be_given_some(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    """As a guest that was paused when the daemon was killed, and goes on now."""
    holder = hold(lease(image, 1))
    client_of(daemon).process(holder.process.pid).release(lease(image, 1))
    process = killed_and_started(daemon).process(holder.process.pid)
    assert process.held() == []
    process.acquire(lease(image, 1))
    assert [held.lver for held in process.held()] == [2]


def test_orphans_and_settings_are_kept(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    client_of(daemon).configure("LS", ConfigCommand.USED_BY_ORPHANS)
    hold(lease(image, 1), how="persistent").end()
    until(lambda: shown(client_of(daemon)) == [("R1", "orphan")])
    hold(lease(image, 2), how="persistent").end()
    client = killed_and_started(daemon)
    assert shown(client) == [("R1", "orphan"), ("R2", "orphan")]
    assert client.status().lockspaces[0].values["used_by_orphans"] == "1"
    with client.register() as heir:
        heir.acquire(lease(image, 1), orphan=True)
        assert [held.lver for held in heir.held()] == [1]


def test_a_shared_lease_stays_with_whoever_lives(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    dead, _living = hold(lease(image, 3), how="shared"), hold(lease(image, 3), how="shared")
    daemon.kill()
    dead.end()
    daemon.start()
    client = client_of(daemon)
    assert shown(client) == [("R3", "held")]
    assert [host.host_id for host in client.resource_owners(lease(image, 3)).hosts] == [1]


def test_a_lease_that_somebody_else_took_meanwhile_is_not_taken_up(
    daemon: LeaseholdDaemon, image: str, hold: Hold
) -> None:
    holder = hold(lease(image, 1))
    daemon.kill()
    with open(image, "r+b") as file:  # as good as formatted by somebody
        file.seek(1 << 20)
        file.write(bytes(1 << 20))
    daemon.start()
    client = client_of(daemon)
    assert shown(client) == []
    until(lambda: "lease not taken up" in daemon.log())
    assert holder.process.poll() is None


def test_again_and_again(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold(lease(image, 1))
    for _ in range(4):
        client = killed_and_started(daemon)
        assert shown(client) == [("R1", "held")]
    holder.end()
    until(lambda: shown(client) == [])


def test_the_sanlock_command_s_daemon_begins_with_nothing(images: Path) -> None:
    """Killed and started again five times, as the reference's own tests do."""
    with SanlockCommandDaemon("hostB") as other:
        path = images / "other.img"
        path.write_bytes(bytes(2 << 20))
        client = client_of(other)
        client.write_lockspace(f"LS:0:{path}:0", io_timeout=1)
        assert client.status().daemon["our_host_name"] == "hostB"
        for _ in range(5):
            client.add_lockspace(f"LS:1:{path}:0", 1)
            keeper = keeper_of(other)
            other.kill()
            until(lambda keeper=keeper: not alive(keeper))  # type: ignore[misc]
            other.start()
            assert client.lockspaces() == []


# --------------------------------------------------------------------------------------------- the keeper process


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_the_keeper_has_no_numpy() -> None:
    probe = "import sys, leases.keeper.process; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_its_keeper_every_lockspace_has_failed(daemon: LeaseholdDaemon, image: str, hold: Hold) -> None:
    holder = hold(lease(image, 1))
    os.kill(keeper_of(daemon), signal.SIGKILL)
    assert holder.process.wait(25) == -signal.SIGTERM
    client = client_of(daemon)
    until(lambda: client.lockspaces() == [])
    assert "the keeper process has ended" in daemon.log()


def test_the_next_lockspace_gets_another_keeper(daemon: LeaseholdDaemon, image: str) -> None:
    os.kill(keeper_of(daemon), signal.SIGKILL)
    client = client_of(daemon)
    until(lambda: client.lockspaces() == [])
    client.add_lockspace(f"LS:1:{image}:0", 1)
    with client.register() as registered:
        registered.acquire(lease(image, 1))


def test_renewals_go_on_while_the_daemon_stands_still(daemon: LeaseholdDaemon, image: str) -> None:
    client = client_of(daemon)
    before = client.read_lockspace(f"LS:1:{image}:0")
    assert before.io_timeout == 1
    stamp = timestamp(image)
    daemon.freeze()
    try:
        until(lambda: timestamp(image) > stamp)
    finally:
        daemon.thaw()
    assert client.lockspaces()[0].flags == 0


def timestamp(path: str) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(file.read(512)[152:160], "little")


def test_the_keeper_ends_with_a_daemon_that_ends_well(daemon: LeaseholdDaemon) -> None:
    until(lambda: "keeper process started" in daemon.log())
    keeper = keeper_of(daemon)
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait() == 0
    until(lambda: not alive(keeper))
