"""What becomes of leases, their users and the lockspace when something fails. In real time, io_timeout 1.

A lockspace fails 8 s after its last renewal; other hosts count it as dead FIRE_TIMEOUT seconds later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from leases import events
from leases.keeper.decisions import Paused, RenewalsFailed
from leases.keeper.watchdog import boot_time
from leases.lease import Lease
from leases.volume import Volume
from paxos.errors import (
    BadRecord,
    CannotOpen,
    DiskError,
    HostLeaseLost,
    NotJoined,
    RenewOwner,
    VolumeGone,
    WriteUnsettled,
)
from paxos.liveness import HostState
from tests.support.storage import MIB, FaultyDisk
from tests.support.volumes import (
    FIRE_TIMEOUT,
    SOON,
    HostProcesses,
    Joiner,
    make_volume,
    own_delta,
    own_lease,
    scribble,
    wait_for,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process that uses leases."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def faulty(request: pytest.FixtureRequest) -> Iterator[tuple[FaultyDisk, Volume]]:
    """A disk that fails by command, with a volume on it; two paths lead to it."""
    with FaultyDisk(8 * MIB, paths=("a", "b")) as disk:
        volume = make_volume(disk.devices["a"])
        yield disk, volume


# ----------------------------------------------------------------------------------------- a host that ends or stops


def test_a_killed_holder_is_no_failure_of_its_lease(
    volume: Volume, join: Joiner, holder: subprocess.Popen[bytes]
) -> None:
    lockspace = join(volume, 1, watchdog="guardian")
    lease = lockspace.acquire("r0", holder=holder.pid)
    holder.kill()
    holder.wait()
    assert not lease.lost.is_set() and lease.remaining() > 0
    lease.release()
    assert volume.lease("r0").mode == "free"


def test_a_host_that_was_stopped_until_it_was_dead_finds_its_lease_lost(
    volume: Volume, join: Joiner, host_process: HostProcesses
) -> None:
    stopped, other = host_process(volume.path, 1), join(volume, 2)
    stopped.ask("acquire", "r0", 0)
    time.sleep(3)
    stopped.freeze()
    with other.acquire("r0", wait=SOON):
        stopped.thaw()
        told = stopped.ask("lost", "r0", SOON)
        assert told == {"lost": True, "reason": "RenewalsFailed", "remaining": 0.0}
    assert stopped.ask("acquire", "r1", 0)["error"] == "NotJoined"
    stopped.ask("release", "r0")
    wait_for(lambda: stopped.ask("state")["left"], "the end of recovery")
    assert other.hosts.get(1) is not None and volume.hosts()[0].state is not HostState.FREE


def test_the_guardian_kills_a_stopped_host_that_holds_a_lease_before_others_take_it(
    volume: Volume, join: Joiner, host_process: HostProcesses
) -> None:
    stopped, other = host_process(volume.path, 1, watchdog="guardian"), join(volume, 2)
    stopped.ask("acquire", "r0", 0)
    time.sleep(3)
    stopped.freeze()
    with other.acquire("r0", wait=SOON):
        assert stopped.process.wait(1) == -signal.SIGKILL


def test_the_guardian_kills_the_holder_of_a_host_that_was_killed(
    volume: Volume, join: Joiner, host_process: HostProcesses
) -> None:
    killed, other = host_process(volume.path, 1, watchdog="guardian"), join(volume, 2)
    killed.ask("acquire", "r0", 0)
    holder = os.pidfd_open(killed.ask("holder", "r0")["pid"])
    time.sleep(3)
    killed.kill()
    with other.acquire("r0", wait=SOON), pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(holder, 0)
    os.close(holder)


def test_a_host_that_stood_still_checks_its_leases_and_loses_those_that_were_taken(
    volume: Volume, join: Joiner, holder: subprocess.Popen[bytes]
) -> None:
    own_delta(volume, 2, b"other", timestamp=100)
    lockspace = join(volume, 1)
    told: list[events.Event] = []
    lockspace.on_event.append(told.append)
    taken, kept = lockspace.acquire("r0", holder=holder.pid), lockspace.acquire("r1")
    wait_for(lambda: any(isinstance(event, events.Renewed) for event in told), "a first look at the others")
    own_lease(volume, "r0", 2, generation=1)
    own_delta(volume, 2, b"other", timestamp=1100)  # its clock went on by 1000 s, ours by a few
    assert taken.lost.wait(SOON)
    assert isinstance(taken.lost.reason, Paused) and taken.remaining() == 0
    assert holder.wait() == -signal.SIGKILL
    assert not kept.lost.is_set() and kept.remaining() > 0 and lockspace.failure is None
    assert any(isinstance(event, events.Stalled) for event in told)
    assert any(isinstance(event, events.LeaseGone) and event.resource == "r0" for event in told)
    taken.release()
    (owner,) = volume.lease("r0").owners
    assert owner.host_id == 2  # nothing of it was touched


# ------------------------------------------------------------------------------------------------ a failing disk


def failed(lease: Lease, because: type[Exception]) -> None:
    """The lease is lost, since no renewal succeeded."""
    assert lease.lost.wait(SOON)
    assert isinstance(lease.lost.reason, RenewalsFailed) and isinstance(lease.lost.reason.cause, because)
    assert lease.remaining() == 0


@pytest.mark.storage
def test_a_hung_disk_fails_the_lockspace_and_its_holders_are_stopped(
    faulty: tuple[FaultyDisk, Volume], join: Joiner, holder: subprocess.Popen[bytes]
) -> None:
    disk, volume = faulty
    reasons: list[object] = []
    lockspace = join(volume, 1, watchdog="guardian", on_recovery=reasons.append)
    lease = lockspace.acquire("r0", holder=holder.pid)
    disk.hang()
    failed(lease, DiskError)
    assert holder.wait(SOON) in (-signal.SIGTERM, -signal.SIGKILL)
    assert lockspace.membership.left.wait(SOON)
    assert reasons == [lockspace.failure]
    disk.resume()
    with pytest.raises(NotJoined):
        lockspace.acquire("r1")


@pytest.mark.storage
def test_the_watchdog_stays_armed_until_this_process_let_go_of_its_own_lease(
    faulty: tuple[FaultyDisk, Volume], join: Joiner
) -> None:
    disk, volume = faulty
    lockspace = join(volume, 1, watchdog="guardian", fire_timeout=60)
    one, two = lockspace.acquire("r0"), lockspace.acquire("r1")
    disk.hang()
    failed(one, DiskError)
    assert not lockspace.membership.left.wait(1.5)
    one.lost.acknowledge()
    assert not lockspace.membership.left.wait(1.5)
    two.release()
    assert lockspace.membership.left.wait(SOON)
    disk.resume()


@pytest.mark.storage
@pytest.mark.parametrize("fault", ["reads", "writes"])
def test_a_disk_that_answers_errors_is_a_failure_only_if_it_goes_on(
    faulty: tuple[FaultyDisk, Volume], join: Joiner, fault: str
) -> None:
    disk, volume = faulty
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    told: list[events.Event] = []
    lockspace.on_event.append(told.append)
    start = disk.fail_reads if fault == "reads" else disk.fail_writes
    start()
    wait_for(lambda: any(isinstance(event, events.RenewalFailed) for event in told), "a failed renewal")
    disk.heal()
    told.clear()
    wait_for(lambda: any(isinstance(event, events.Renewed) for event in told), "a renewal after it")
    assert not lease.lost.is_set() and lockspace.failure is None
    start()
    failed(lease, DiskError)
    assert any(isinstance(event, events.RenewalLate) for event in told)
    disk.heal()


@pytest.mark.storage
def test_what_a_short_hang_left_open_is_settled_when_the_disk_is_back(
    faulty: tuple[FaultyDisk, Volume], join: Joiner
) -> None:
    disk, volume = faulty
    lockspace, other = join(volume, 1), join(Volume(disk.devices["b"]), 2)
    lease = lockspace.acquire("r0")
    told: list[events.Event] = []
    lockspace.on_event.append(told.append)
    disk.hang("a")
    with pytest.raises(DiskError):
        lease.release()
    with pytest.raises(WriteUnsettled):
        lockspace.acquire("r0")
    disk.resume("a")
    other.acquire("r0", wait=SOON).release()
    wait_for(lambda: any(isinstance(event, events.Settled) for event in told), "that it is settled")
    lockspace.acquire("r0", wait=SOON).release()
    assert lockspace.failure is None and volume.lease("r0").mode == "free"


@pytest.mark.storage
def test_leaving_waits_for_what_is_under_way(faulty: tuple[FaultyDisk, Volume], join: Joiner) -> None:
    disk, volume = faulty
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    disk.hang()
    threading.Timer(0.5, disk.resume).start()
    thread = threading.Thread(target=lease.release)
    thread.start()
    wait_for(lockspace.membership.holdings.in_motion, "the release to begin")
    lockspace.leave(force=True)
    thread.join()
    assert volume.lease("r0").mode == "free" and volume.hosts()[0].state is HostState.FREE


@pytest.mark.storage
def test_while_a_write_of_ours_may_still_land_the_host_id_is_not_given_back(
    faulty: tuple[FaultyDisk, Volume], join: Joiner
) -> None:
    disk, volume = faulty
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    disk.hang()
    with pytest.raises(DiskError):
        lease.release()
    lockspace.leave()
    disk.resume()
    assert lockspace.failure is None and volume.hosts()[0].state is not HostState.FREE


@pytest.mark.storage
def test_an_acquire_that_met_an_error_is_given_up_on_the_disk_too(
    faulty: tuple[FaultyDisk, Volume], join: Joiner
) -> None:
    disk, volume = faulty
    lockspace, other = join(volume, 1), join(Volume(disk.devices["b"]), 2)
    disk.fail_writes()
    with pytest.raises(DiskError):
        lockspace.acquire("r0")
    disk.heal()
    lockspace.acquire("r0", wait=SOON).release()
    other.acquire("r0", wait=SOON).release()
    assert volume.lease("r0").mode == "free"


@pytest.mark.storage
def test_a_conversion_that_met_an_error_leaves_at_least_a_shared_lease(
    faulty: tuple[FaultyDisk, Volume], join: Joiner
) -> None:
    disk, volume = faulty
    lockspace, other = join(volume, 1), join(Volume(disk.devices["b"]), 2)
    # a stranger that comes in the midst of it would be a reason to look whether we stood still
    wait_for(lambda: any(host.host_id == 2 for host in lockspace.hosts.used()), "that the other host is seen")
    lease = lockspace.acquire("r0")
    for shared in (True, False):
        disk.fail_writes()
        with pytest.raises(DiskError):
            lease.convert(shared=shared)
        disk.heal()
        assert lease.shared and not lease.lost.is_set()
        wait_for(lambda: not lockspace.membership.holdings.unsettled(), "that it is settled")
        assert volume.lease("r0").mode == "shared"
        with other.acquire("r0", shared=True, wait=SOON):
            pass
    lease.convert(shared=False)
    lease.release()
    assert volume.lease("r0").mode == "free"


@pytest.mark.storage
def test_a_disk_that_comes_back_after_30_s_finds_the_lockspace_given_up_and_can_be_joined_again(
    faulty: tuple[FaultyDisk, Volume], join: Joiner, holder: subprocess.Popen[bytes]
) -> None:
    disk, volume = faulty
    lockspace = join(volume, 1, owner_name="node", watchdog="guardian")
    lease = lockspace.acquire("r0", holder=holder.pid)
    disk.hang()
    hung_at = boot_time()
    failed(lease, DiskError)
    assert lockspace.membership.left.wait(SOON)
    time.sleep(max(0.0, hung_at + 30 - boot_time()))
    disk.resume()
    again = join(volume, 1, owner_name="node")
    assert again.generation == lockspace.generation + 1
    with again.acquire("r0", wait=SOON) as lease:
        assert lease.token.generation == again.generation


# --------------------------------------------------------------------------------------------- a volume that changes


def test_a_deleted_volume_is_a_failure(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    os.unlink(volume.path)
    assert lease.lost.wait(SOON) and isinstance(lease.lost.reason, VolumeGone)
    with pytest.raises(CannotOpen):
        Volume(volume.path).join(2, watchdog="none")
    lease.release()
    assert lockspace.membership.left.wait(SOON)


def test_a_replaced_volume_is_a_failure(volume: Volume, join: Joiner, directory: Path) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    os.rename(volume.path, directory / "aside")
    make_volume(volume.path)
    assert lease.lost.wait(SOON) and isinstance(lease.lost.reason, VolumeGone)


def test_a_renamed_volume_is_none(volume: Volume, join: Joiner, directory: Path) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    os.rename(volume.path, directory / "aside")
    time.sleep(5)
    assert lockspace.failure is None and lease.remaining() > 0


@pytest.mark.parametrize("what", [bytes(MIB), b"\xff" * MIB])
def test_a_volume_that_is_written_over_is_a_failure_at_once(
    volume: Volume, join: Joiner, holder: subprocess.Popen[bytes], what: bytes
) -> None:
    lockspace = join(volume, 1, watchdog="guardian")
    lease = lockspace.acquire("r0", holder=holder.pid)
    scribble(volume, 0, what)
    assert lease.lost.wait(SOON) and isinstance(lease.lost.reason, BadRecord)
    assert holder.wait(SOON) in (-signal.SIGTERM, -signal.SIGKILL)
    assert lockspace.membership.left.wait(SOON)
    assert Path(volume.path).read_bytes()[:MIB] == what  # nothing was written over it


def test_a_volume_that_is_laid_out_anew_is_a_failure_at_once(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    Volume.create(volume.path, "LS", leases=4, hosts=250, io_timeout=1, force=True)
    assert lease.lost.wait(SOON) and isinstance(lease.lost.reason, HostLeaseLost)


def test_of_two_hosts_with_one_id_and_name_the_first_gives_up(volume: Volume, join: Joiner) -> None:
    first = join(volume, 1, owner_name="node")
    lease = first.acquire("r0")
    second = join(volume, 1, owner_name="node")
    assert lease.lost.wait(SOON) and isinstance(lease.lost.reason, RenewOwner)
    with second.acquire("r0", wait=SOON) as taken:
        assert taken.token > lease.token
    assert second.failure is None


def test_a_failed_lockspace_is_left_when_its_block_ends(volume: Volume, join: Joiner) -> None:
    with join(volume, 1, fire_timeout=60) as lockspace:
        lease = lockspace.acquire("r0")
        scribble(volume, 0, bytes(512))
        assert lease.lost.wait(SOON)
    assert lockspace.membership.left.is_set()
    assert boot_time() < lockspace.vitals.last_success + 8 + 60 and FIRE_TIMEOUT < 60
