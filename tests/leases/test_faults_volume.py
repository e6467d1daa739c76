"""A volume that is cut, written over in part, or hangs when it is opened, under a running host. In real time."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leases.keeper.decisions import RenewalsFailed
from leases.volume import Volume
from paxos.errors import BadRecord, DiskError, LeaseholdError, ShortIO
from paxos.geometry import MIB
from tests.support.storage import FaultyDisk
from tests.support.volumes import SOON, Joiner, make_volume, scribble

pytestmark = pytest.mark.slow


def test_a_volume_that_is_cut_to_nothing_is_a_failure_and_is_not_grown_again(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    os.truncate(volume.path, 0)
    assert lease.lost.wait(SOON)
    assert isinstance(lease.lost.reason, RenewalsFailed) and isinstance(lease.lost.reason.cause, ShortIO)
    lease.release()
    assert lockspace.membership.left.wait(SOON)
    assert Path(volume.path).stat().st_size == 0


def test_a_volume_that_lost_its_leases_keeps_its_hosts(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    os.truncate(volume.path, 3 * MIB)
    with pytest.raises(DiskError):
        lockspace.acquire("r1")
    time.sleep(5)
    assert lockspace.failure is None and lease.remaining() > 0
    assert Path(volume.path).stat().st_size == 3 * MIB


@pytest.mark.parametrize("what", [bytes(MIB), b"\xff" * MIB], ids=["zeros", "ones"])
def test_a_lease_that_is_written_over_while_held_is_left_as_it_is(volume: Volume, join: Joiner, what: bytes) -> None:
    lockspace, other = join(volume, 1), join(volume, 2)
    lease, offset = lockspace.acquire("r0"), volume.lease("r0").offset
    scribble(volume, offset, what)
    with pytest.raises(LeaseholdError):
        other.acquire("r0")
    with pytest.raises(BadRecord):
        lease.release()
    written = Path(volume.path).read_bytes()[offset : offset + 512]
    assert written == what[:512]  # no leader where none was
    with lockspace.acquire("r1"):
        assert lockspace.failure is None and other.failure is None


def test_an_index_that_is_written_over_keeps_who_knows_the_place_of_a_lease(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    with lockspace.acquire("r0"):
        scribble(volume, MIB, b"\xff" * MIB)
        assert lockspace.failure is None
    lockspace.acquire("r0").release()
    with pytest.raises(BadRecord):
        volume.lease("r1")


@pytest.mark.storage
class TestWhenOpeningHangs:
    """On a file of a network file system, open(2) itself hangs with the server."""

    @pytest.fixture
    def disk(self) -> Iterator[FaultyDisk]:
        with FaultyDisk(8 * MIB) as made:
            yield made

    def test_a_host_fails_in_time_and_its_holder_is_stopped(self, disk: FaultyDisk, join: Joiner) -> None:
        lockspace = join(make_volume(disk.files["a"]), 1, watchdog="guardian")
        with subprocess.Popen(["sleep", "1000"]) as holder:
            lease = lockspace.acquire("r0", holder=holder.pid)
            disk.hang()
            assert lease.lost.wait(SOON) and holder.wait(SOON) < 0
            assert lockspace.membership.left.wait(SOON)
            disk.resume()

    def test_joining_ends_with_an_error(self, disk: FaultyDisk) -> None:
        volume = make_volume(disk.files["a"])
        disk.hang()
        threading.Timer(15, disk.resume).start()
        with pytest.raises(DiskError):
            volume.join(1, watchdog="none")
        disk.resume()
