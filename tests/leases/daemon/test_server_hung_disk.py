"""The daemon while one of its disks does not answer: the others' clients and renewals notice nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leases.client import Client
from paxos.errors import LeaseholdError
from tests.support.leasehold_daemon import ROOT, LeaseholdDaemon
from tests.support.storage import FaultyDisk

pytestmark = [pytest.mark.slow, pytest.mark.storage]

_BUSY = """
import sys
from leases.client import Client
path, lease = sys.argv[1:]
client = Client(path)
registration = client.register()
while True:
    registration.acquire(lease)
    client.status()
    client.log()
    registration.release(lease)
"""


def until(true: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def client_of(daemon: LeaseholdDaemon) -> Client:
    return Client(str(daemon.socket_path))


def join(daemon: LeaseholdDaemon, name: str, path: str, leases: int) -> None:
    client = client_of(daemon)
    client.write_lockspace(f"{name}:0:{path}:0", io_timeout=1)
    for number in range(1, leases + 1):
        client.write_resource(f"{name}:R{number}:{path}:{number}M")
    client.add_lockspace(f"{name}:1:{path}:0", 1)


def joined(daemon: LeaseholdDaemon) -> list[bytes]:
    return [lockspace.name for lockspace in client_of(daemon).lockspaces()]


def late_renewals(daemon: LeaseholdDaemon) -> dict[str, int]:
    """Renewals by the upper bound of their lateness in ms."""
    found: dict[str, int] = {}
    for record in client_of(daemon).status().lockspaces:
        for part in record.values.get("renewal_late_ms", "").split(","):
            bound, _, count = part.partition(":")
            if count:
                found[bound] = found.get(bound, 0) + int(count)
    return found


def test_a_hung_disk_stops_its_own_users_and_nobody_else(
    leasehold_daemons: Callable[..., LeaseholdDaemon], images: Path, faulty_disk: FaultyDisk
) -> None:
    daemon = leasehold_daemons("hostA", "--kill-grace", "2")
    hung = faulty_disk.path
    well = images / "well.img"
    well.write_bytes(bytes(10 << 20))
    join(daemon, "HUNG", hung, 1)
    join(daemon, "WELL", str(well), 8)
    lost = daemon.acquire_with(f"HUNG:R1:{hung}:{1 << 20}")
    busy = [
        subprocess.Popen(
            [sys.executable, "-c", _BUSY, str(daemon.socket_path), f"WELL:R{number}:{well}:{number}M"], cwd=ROOT
        )
        for number in range(1, 9)
    ]
    try:
        before = late_renewals(daemon)
        faulty_disk.hang()
        client = client_of(daemon)
        with client.register() as patient, pytest.raises(LeaseholdError):
            patient.acquire(f"HUNG:R1:{hung}:1M")
        assert lost.wait(40) == -15
        until(lambda: joined(daemon) == [b"WELL"])
        assert all(process.poll() is None for process in busy)
        after = late_renewals(daemon)
        assert sum(after.values()) > sum(before.values())
        print("renewals beside it, by the ms they were late at most:", after)
    finally:
        faulty_disk.resume()
        for process in busy:
            process.kill()
            process.wait()
    assert os.path.exists(f"/proc/{daemon.pid}")


def test_a_disk_that_fails_stops_its_users_and_can_be_joined_again_when_it_is_well(
    leasehold_daemon: LeaseholdDaemon, faulty_disk: FaultyDisk
) -> None:
    path = faulty_disk.path
    join(leasehold_daemon, "LS", path, 1)
    holder = leasehold_daemon.acquire_with(f"LS:R1:{path}:{1 << 20}")
    faulty_disk.fail_writes()
    faulty_disk.fail_reads()
    assert holder.wait(40) == -15
    until(lambda: joined(leasehold_daemon) == [])
    faulty_disk.heal()
    client = client_of(leasehold_daemon)
    client.add_lockspace(f"LS:1:{path}:0", 1)
    with client.register() as heir:
        heir.acquire(f"LS:R1:{path}:1M")
