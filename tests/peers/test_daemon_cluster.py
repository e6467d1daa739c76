"""Three hosts on one volume: two of our daemons and a real one. Whatever happens, no lease has two holders."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.client import Client
from leases.daemon.numbers import RequestMode
from leases.daemon.wire import HostEvent
from paxos.errors import HeldElsewhere
from tests.support.leasehold_daemon import ROOT, LeaseholdDaemon
from tests.support.peers import SanlockDaemon, zeroed_image

pytestmark = [pytest.mark.peers, pytest.mark.slow]

MIB = 1 << 20

#: takes and releases one lease as often as it can; while it has it, nobody else may be in the critical section,
#: which is a file that can be made only once
_CONTENDER = """
import os, sys, time
from leases.client import Client
from paxos.errors import LeaseholdError
path, lease, critical, seconds = sys.argv[1:]
registration = Client(path).register()
until, taken = time.monotonic() + float(seconds), 0
while time.monotonic() < until:
    try:
        registration.acquire(lease, nowait=True)
    except LeaseholdError:
        time.sleep(0.02)
        continue
    os.close(os.open(critical, os.O_CREAT | os.O_EXCL))
    time.sleep(0.01)
    os.unlink(critical)
    registration.release(lease)
    taken += 1
    time.sleep(0.05)
print(taken)
"""


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


class Cluster:
    """Hosts 1 and 2 are ours, host 3 is the real one."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.daemons: list[SanlockDaemon] = [LeaseholdDaemon("host1"), LeaseholdDaemon("host2"), SanlockDaemon("host3")]
        for daemon in self.daemons:
            daemon.start()
        client = self.client(0)
        client.write_lockspace(f"LS:0:{image}:0", io_timeout=1)
        for number in range(1, 8):
            client.write_resource(self.lease(number))
        for host_id, daemon in enumerate(self.daemons, 1):
            daemon.add_lockspace("LS", host_id, image)
        for daemon in self.daemons:
            until(lambda daemon=daemon: daemon.gets().count("LIVE") == 3)  # type: ignore[misc]

    def client(self, number: int) -> Client:
        return Client(str(self.daemons[number].socket_path))

    def lease(self, number: int) -> str:
        return f"LS:R{number}:{self.image}:{number}M"

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()


@pytest.fixture
def cluster(images: Path) -> Iterator[Cluster]:
    made = Cluster(zeroed_image(images / "disk.img", 8))
    yield made
    made.close()


def contend(cluster: Cluster, critical: Path, seconds: float) -> list[int]:
    """How often each host had the lease."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _CONTENDER, str(daemon.socket_path), cluster.lease(1), str(critical), str(seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for daemon in cluster.daemons
    ]
    counts = [int(process.communicate(timeout=seconds + 120)[0] or -1) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    return counts


def test_contention_has_one_winner_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    counts = contend(cluster, tmp_path / "critical", 20)
    assert all(count >= 0 for count in counts)
    assert sum(count > 0 for count in counts) >= 2


def test_a_lease_is_handed_from_host_to_host(cluster: Cluster) -> None:
    versions = []
    for _ in range(2):
        for number in range(3):
            with cluster.client(number).register() as holder:
                holder.acquire(cluster.lease(2))
                versions.append(holder.held()[0].lver)
                for other in {0, 1, 2} - {number}:
                    with cluster.client(other).register() as rival, pytest.raises(HeldElsewhere):
                        rival.acquire(cluster.lease(2))
                holder.release(cluster.lease(2))
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("sender", [0, 1, 2])
def test_events_reach_every_other_host(cluster: Cluster, sender: int) -> None:
    receiver = (sender + 1) % 3
    with cluster.client(receiver).events("LS") as events:
        cluster.client(sender).set_event("LS", HostEvent(receiver + 1, 1, 40 + sender, 7))
        got = events.next(timeout=30)
    assert (got.from_host_id, got.event.event, got.event.data) == (sender + 1, 40 + sender, 7)


@pytest.mark.parametrize("owner", [0, 1, 2])
def test_a_request_by_force_ends_the_holder(cluster: Cluster, owner: int) -> None:
    holder = cluster.daemons[owner].acquire_with(f"LS:R3:{cluster.image}:{3 * MIB}")
    asking = (owner + 1) % 3
    cluster.client(asking).request(cluster.lease(3), RequestMode.FORCE)
    assert holder.wait(60) == -9
    with cluster.client(asking).register() as heir:

        def taken() -> bool:
            try:
                heir.acquire(cluster.lease(3))
            except HeldElsewhere:
                return False
            return True

        until(taken)


def test_a_killed_daemon_goes_on_and_nobody_else_gets_its_leases(cluster: Cluster) -> None:
    holder = cluster.daemons[0].acquire_with(f"LS:R4:{cluster.image}:{4 * MIB}")
    cluster.daemons[0].kill()
    for number in (1, 2):
        with cluster.client(number).register() as rival, pytest.raises(HeldElsewhere):
            rival.acquire(cluster.lease(4))
    cluster.daemons[0].start()
    process = cluster.client(0).process(holder.pid)
    assert [held.name for held in process.held()] == [b"R4"]
    process.release(cluster.lease(4))
    with cluster.client(2).register() as heir:
        heir.acquire(cluster.lease(4))
        assert heir.held()[0].lver == 2


def test_an_orphan_stays_its_host_s_until_it_is_taken_over_there(cluster: Cluster) -> None:
    client = cluster.client(1)
    with client.register() as first:
        first.acquire(cluster.lease(5), persistent=True)
    until(lambda: [one.values["list"] for one in client.status().resources] == ["orphan"])
    for number in (0, 2):
        with cluster.client(number).register() as rival, pytest.raises(HeldElsewhere):
            rival.acquire(cluster.lease(5))
    with client.register() as heir:
        heir.acquire(cluster.lease(5), orphan=True)
        heir.release(cluster.lease(5))
    with cluster.client(2).register() as other:
        other.acquire(cluster.lease(5))


def test_a_host_whose_lease_was_overwritten_stops_its_holders(cluster: Cluster) -> None:
    holder = cluster.daemons[1].acquire_with(f"LS:R6:{cluster.image}:{6 * MIB}")
    with open(cluster.image, "r+b") as file:
        file.seek(512)
        file.write(bytes(512))
        os.fsync(file.fileno())
    assert holder.wait(30) == -15
    until(lambda: cluster.client(1).lockspaces() == [])
    assert len(cluster.client(0).lockspaces()) == len(cluster.client(2).lockspaces()) == 1
