"""Disks and hosts that fail where both engines share a volume; each ends as ondisk.md section 8 says, for both.

In real time, io_timeout 1, watchdogs that would fire after 60 s. Seconds since the last renewal of the host that
fails: 8 recovery begins, 48 SIGKILL replaces SIGTERM, 68 the other takes over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from leases.keeper.watchdog import boot_time
from paxos.geometry import MIB
from tests.support.peers import PeerFailed
from tests.support.storage import FaultyDisk
from tests.support.two_engines import (
    ENGINES,
    HOST_DEAD,
    EngineHost,
    LeaseholdHost,
    OneVolume,
    Refused,
    SanlockHost,
    one_volume,
)
from tests.support.volumes import wait_for

pytestmark = [pytest.mark.peers, pytest.mark.storage, pytest.mark.slow]

_SIGKILL_AFTER = 48

Report = Callable[[str, object], None]
PAIRS = pytest.mark.parametrize(
    ("failing", "other"), [("leasehold", "sanlock"), ("sanlock", "leasehold")], ids=["ours-fails", "theirs-fails"]
)


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    """Path a to one host, path b to the other."""
    # the tests themselves look at the disk over the first path, which never hangs
    with FaultyDisk(8 * MIB, paths=("b", "a")) as made:
        yield made


@pytest.fixture
def volume(disk: FaultyDisk) -> OneVolume:
    return one_volume(disk, ["vm0", "vm1"])


@pytest.fixture
def hosts(disk: FaultyDisk, volume: OneVolume, failing: str, other: str) -> Iterator[tuple[EngineHost, EngineHost]]:
    """The one on path a, which will fail, and the one on path b; they have seen each other."""
    with ExitStack() as stack:
        stack.callback(disk.heal)
        b = stack.enter_context(ENGINES[other](volume.by_path(disk.devices["b"]), 2))
        a = stack.enter_context(ENGINES[failing](volume.by_path(disk.devices["a"]), 1))
        stack.callback(disk.resume)  # first of all at the end: who has an I/O in flight can't even be killed
        a.knows(b)
        b.knows(a)
        yield a, b


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def taken(host: EngineHost, lease: str) -> float:
    """When (boot time) `host` got it, asking until then."""
    deadline = boot_time() + HOST_DEAD + 30
    while not host.may_acquire(lease):
        assert boot_time() < deadline, "it was never taken over"
        time.sleep(0.1)
    return boot_time()


@PAIRS
def test_a_path_that_hangs_costs_the_lease_its_holder_first_and_then_its_host(
    disk: FaultyDisk, volume: OneVolume, hosts: tuple[EngineHost, EngineHost], record_property: Report
) -> None:
    a, b = hosts
    holder = a.run("vm0", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    disk.hang("a")
    renewed = volume.delta(1).timestamp
    wait_for(lambda: not is_running(holder), "SIGKILL")
    killed_at = boot_time() - renewed
    assert _SIGKILL_AFTER <= killed_at < HOST_DEAD
    taken_at = taken(b, "vm0") - renewed
    assert taken_at >= HOST_DEAD
    theirs = volume.leader("vm0")
    disk.resume("a")  # what A had sent lands now
    time.sleep(1)
    assert volume.leader("vm0") == theirs and theirs.owner_id == 2
    b.release("vm0")
    assert b.may_acquire("vm0")
    record_property("SIGKILL, taken over after (s)", (round(killed_at, 1), round(taken_at, 1)))


@PAIRS
def test_a_path_that_hangs_shorter_than_that_costs_nothing(
    disk: FaultyDisk, volume: OneVolume, hosts: tuple[EngineHost, EngineHost]
) -> None:
    a, b = hosts
    a.acquire("vm0")
    for _ in range(3):
        disk.hang("a")
        time.sleep(3.5)
        disk.resume("a")
        volume.wait_renewed(1)
    assert not b.may_acquire("vm0")
    a.release("vm0")
    assert b.may_acquire("vm0")


@PAIRS
def test_a_disk_that_is_gone_for_good_fails_both_in_time(
    disk: FaultyDisk, volume: OneVolume, hosts: tuple[EngineHost, EngineHost]
) -> None:
    a, b = hosts
    a.acquire("vm0")
    b.acquire("vm1")
    disk.die()
    gone_at = boot_time()
    a.wait_lost("vm0")
    b.wait_lost("vm1")
    assert boot_time() - gone_at < HOST_DEAD


@PAIRS
def test_a_lockspace_that_is_written_over_stops_both_at_once(
    disk: FaultyDisk, volume: OneVolume, hosts: tuple[EngineHost, EngineHost]
) -> None:
    a, b = hosts
    a.acquire("vm0")
    b.acquire("vm1")
    disk.write(0, os.urandom(MIB))
    a.wait_lost("vm0")
    b.wait_lost("vm1")
    scene = disk.read(0, MIB)
    time.sleep(5)
    assert disk.read(0, MIB) == scene  # nobody writes over it


@PAIRS
def test_of_two_hosts_with_one_id_the_second_is_refused_and_the_first_goes_on(
    hosts: tuple[EngineHost, EngineHost], disk: FaultyDisk, volume: OneVolume, other: str
) -> None:
    a, b = hosts
    a.acquire("vm0")
    before = volume.delta(1)
    with pytest.raises((Refused, PeerFailed), match="-262"):
        ENGINES[other](volume.by_path(disk.devices["b"]), 1, **_name(other, "somebody-else"))
    after = volume.delta(1)
    assert (after.owner_generation, after.resource_name) == (before.owner_generation, before.resource_name)
    assert b.state_of(1) == "LIVE" and not b.may_acquire("vm0")
    a.release("vm0")


def test_of_two_hosts_with_one_id_and_one_name_our_first_gives_up_when_it_sees_theirs(
    disk: FaultyDisk, volume: OneVolume
) -> None:
    with LeaseholdHost(volume.by_path(disk.devices["a"]), 1, owner_name="node") as first:
        first.acquire("vm0")
        with SanlockHost(volume.by_path(disk.devices["b"]), 1, name="node") as second:
            wait_for(lambda: first.ask("lost", "vm0") == "RenewOwner", "our host to see the other")
            assert second.may_acquire("vm0")
            with pytest.raises(Refused):
                first.acquire("vm1")
            second.release("vm0")
            assert volume.delta(1).owner_generation == 2


def test_of_two_hosts_with_one_id_and_one_name_their_first_gives_up_when_it_sees_ours(
    disk: FaultyDisk, volume: OneVolume
) -> None:
    with SanlockHost(volume.by_path(disk.devices["a"]), 1, name="node") as first:
        first.acquire("vm0")
        with LeaseholdHost(volume.by_path(disk.devices["b"]), 1, owner_name="node") as second:
            first.wait_lost("vm0")
            assert second.may_acquire("vm0")
            second.release("vm0")
            assert volume.delta(1).owner_generation == 2 and not second.ask("failure")


def _name(engine: str, name: str) -> dict[str, str]:
    return {"owner_name" if engine == "leasehold" else "name": name}
