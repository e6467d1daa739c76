"""Joining a lockspace, being a member, leaving. In real time, io_timeout 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from leases import events
from leases.joining import default_owner_name
from leases.keeper.watchdog import boot_time
from leases.keeper.watchdog.none import NoConnection, NoWatchdog
from leases.volume import Volume
from paxos.disk.abort import AbortSignal
from paxos.errors import (
    Aborted,
    AlreadyHeld,
    HostIdBusy,
    IndexFull,
    InvalidUse,
    LeaseHeld,
    NameTaken,
    NoSuchLease,
    NotJoined,
    OwnerMayBeDead,
    StillHeld,
    WatchdogUnavailable,
)
from paxos.liveness import HostState
from paxos.request import Force
from tests.support.volumes import FIRE_TIMEOUT, Joiner, make_volume, own_delta, own_lease, wait_for

pytestmark = pytest.mark.slow


class Recorded(NoWatchdog):
    """Notes what it was told, and refuses what it is told to refuse."""

    def __init__(self, refuse: str = "") -> None:
        super().__init__(FIRE_TIMEOUT)
        self.calls: list[str] = []
        self.refuse = refuse

    def open(self, name: str) -> RecordedConnection:
        self.note("open")
        return RecordedConnection(name, self)

    def note(self, call: str) -> None:
        self.calls.append(call)
        if call == self.refuse:
            raise WatchdogUnavailable(reason=f"refuses {call}")


class RecordedConnection(NoConnection):
    def __init__(self, name: str, watchdog: Recorded) -> None:
        super().__init__(name)
        self._watchdog = watchdog

    def arm(self, renewal_time: float, expire_time: float) -> None:
        self._watchdog.note("arm")

    def renew(self, renewal_time: float, expire_time: float) -> None:
        self._watchdog.note("renew")

    def disarm(self) -> None:
        self._watchdog.note("disarm")

    def close(self) -> None:
        self._watchdog.note("close")

    def hold(self, pid: int, *, group: bool = False, terminate: bool = True) -> None:
        self._watchdog.note("hold")

    def unhold(self, pid: int) -> None:
        self._watchdog.note("unhold")


# ---------------------------------------------------------------------------------------------------- joining


def test_a_host_joins_renews_and_leaves(volume: Volume, join: Joiner) -> None:
    seen: list[tuple[str, float]] = []
    lockspace = join(volume, 7, owner_name="node7", progress=lambda *what: seen.append(what))
    assert (lockspace.host_id, lockspace.generation, lockspace.owner_name) == (7, 1, "node7")
    assert seen and seen[0][1] == 2.0
    (host,) = volume.hosts(watch_seconds=3.5)
    assert (host.host_id, host.name, host.state) == (7, "node7", HostState.LIVE)
    lockspace.leave()
    (host,) = volume.hosts()
    assert host.state is HostState.FREE and host.generation == 1


def test_hosts_that_name_no_id_get_different_ones(volume: Volume, join: Joiner) -> None:
    joined = []
    threads = [threading.Thread(target=lambda: joined.append(join(volume))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({lockspace.host_id for lockspace in joined}) == 3
    assert all(1 <= lockspace.host_id <= 250 for lockspace in joined)


def test_an_id_that_is_in_use_is_refused(volume: Volume, join: Joiner) -> None:
    join(volume, 3, owner_name="first")
    with pytest.raises(HostIdBusy, match="first"):
        join(volume, 3, owner_name="second")


def test_the_same_name_takes_its_id_again_at_once(volume: Volume, join: Joiner) -> None:
    first = join(volume, 3, owner_name="node")
    second = join(volume, 3, owner_name="node")
    assert second.generation == first.generation + 1


def test_default_names_are_unique_and_fit() -> None:
    names = {default_owner_name() for _ in range(100)}
    assert len(names) == 100
    assert all(len(name.encode()) <= 47 and f":{os.getpid()}:" in name for name in names)


@pytest.mark.parametrize(
    "options", [{"io_timeout": 0}, {"io_timeout": 256}, {"owner_name": ""}, {"owner_name": "n" * 48}]
)
def test_nonsense_is_refused_before_anything_is_written(
    volume: Volume, join: Joiner, options: dict[str, object]
) -> None:
    before = Path(volume.path).read_bytes()
    with pytest.raises(InvalidUse):
        join(volume, 1, **options)
    assert Path(volume.path).read_bytes() == before


def test_joining_takes_the_io_timeout_of_the_slot_unless_told_otherwise(volume: Volume, join: Joiner) -> None:
    assert join(volume, 1).io_timeout == 1
    assert join(volume, 2, io_timeout=2).io_timeout == 2


def test_the_watchdog_is_opened_before_and_armed_after_the_host_id_is_taken(volume: Volume, join: Joiner) -> None:
    watchdog = Recorded()
    lockspace = join(volume, 1, watchdog=watchdog)
    assert watchdog.calls[:2] == ["open", "arm"]
    wait_for(lambda: "renew" in watchdog.calls, "a renewal")
    lockspace.leave()
    assert list(dict.fromkeys(watchdog.calls)) == ["open", "arm", "renew", "disarm", "close"]


def test_without_its_watchdog_a_host_does_not_join(volume: Volume, join: Joiner) -> None:
    before = Path(volume.path).read_bytes()
    with pytest.raises(WatchdogUnavailable):
        join(volume, 1, watchdog=Recorded(refuse="open"))
    assert Path(volume.path).read_bytes() == before


def test_a_watchdog_that_can_not_be_armed_leaves_the_id_free(volume: Volume, join: Joiner) -> None:
    with pytest.raises(WatchdogUnavailable):
        join(volume, 1, watchdog=Recorded(refuse="arm"))
    assert volume.hosts()[0].state is HostState.FREE


def test_joining_can_be_given_up_and_leaves_nothing_behind(volume: Volume, join: Joiner) -> None:
    abort = AbortSignal()
    watchdog = Recorded()

    def give_up(what: str, _seconds: float) -> None:
        if "settling" in what:
            abort.set("changed my mind")

    with pytest.raises(Aborted, match="changed my mind"):
        join(volume, 1, watchdog=watchdog, progress=give_up, abort=abort)
    assert volume.hosts()[0].state is HostState.FREE
    assert watchdog.calls == ["open", "close"]
    assert join(volume, 1).generation == 2


def test_the_volume_object_gives_up_its_joins(volume: Volume) -> None:
    timer = threading.Timer(0.5, volume.abort)
    timer.start()
    with pytest.raises(Aborted):
        volume.join(1, watchdog="none")
    assert volume.hosts()[0].state is HostState.FREE


def test_control_c_gives_up_joining(volume: Volume) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        volume.join(1, watchdog="none")
    assert volume.hosts()[0].state is HostState.FREE


def test_a_program_that_just_ends_has_left(volume: Volume) -> None:
    program = f"from leases import Volume; Volume({volume.path!r}).join(1, watchdog='none').acquire('r0')"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert volume.hosts()[0].state is HostState.FREE
    assert volume.lease("r0").mode == "free"


# ---------------------------------------------------------------------------------------------------- leaving


def test_with_leases_held_it_is_not_left_unless_by_force(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lease = lockspace.acquire("r0")
    with pytest.raises(StillHeld, match="r0"):
        lockspace.leave()
    assert lease.remaining() > 0
    lockspace.leave(force=True)
    assert lease.lost.is_set() and lease.remaining() == 0
    assert volume.lease("r0").mode == "free" and volume.hosts()[0].state is HostState.FREE


def test_leaving_by_force_kills_the_processes_that_use_leases(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    with subprocess.Popen(["sleep", "1000"]) as holder:
        lockspace.acquire("r0", holder=holder.pid)
        lockspace.leave(force=True)
        assert holder.wait() == -signal.SIGKILL
    assert volume.lease("r0").mode == "free"


def test_after_leaving_nothing_can_be_acquired(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lockspace.leave()
    lockspace.leave()
    with pytest.raises(NotJoined):
        lockspace.acquire("r0")


def test_a_child_process_can_not_use_its_parents_lockspace(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    pid = os.fork()
    if pid == 0:
        try:
            lockspace.acquire("r0")
        except InvalidUse:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_child_process_that_ends_leaves_and_releases_nothing(volume: Volume, join: Joiner) -> None:
    program = f"""
import os, subprocess, sys
from leases import Volume
holder = subprocess.Popen(["sleep", "1000"])
with Volume({volume.path!r}).join(1, watchdog="none") as lockspace, lockspace.acquire("r0", holder=holder.pid) as lease:
    pid = os.fork()
    if pid == 0:
        sys.exit()
    os.waitpid(pid, 0)
    assert holder.poll() is None and not lease.lost.is_set()
    assert Volume({volume.path!r}).lease("r0").mode == "exclusive"
holder.kill()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    assert volume.lease("r0").mode == "free" and volume.hosts()[0].state is HostState.FREE


# ------------------------------------------------------------------------------------------------- while joined


def test_events_tell_of_renewals_and_of_leaving(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    told: list[events.Event] = []
    lockspace.on_event.append(lambda _event: 1 / 0)  # a hook that fails disturbs nobody
    lockspace.on_event.append(told.append)
    wait_for(lambda: any(isinstance(event, events.Renewed) for event in told), "a renewal")
    lockspace.leave()
    assert isinstance(told[-1], events.Left)
    assert all(event.lockspace == "LS" and event.at <= boot_time() for event in told)


def test_hosts_see_each_other_alive(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    wait_for(lambda: first.hosts.state(2, boot_time()) is HostState.LIVE, "the second host")
    wait_for(lambda: second.hosts.state(1, boot_time()) is HostState.LIVE, "the first host")


def test_leases_are_made_and_removed_by_members(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lockspace.create_lease("vm1")
    assert volume.lease("vm1").num_hosts == 250
    with pytest.raises(NameTaken):
        lockspace.create_lease("vm1")
    with lockspace.acquire("vm1"), pytest.raises(AlreadyHeld):
        lockspace.delete_lease("vm1")
    lockspace.delete_lease("vm1")
    with pytest.raises(NoSuchLease):
        lockspace.acquire("vm1")
    assert volume.check() == []


def test_a_held_lease_is_not_deleted_but_one_whose_host_is_gone_is(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    with first.acquire("r0"), pytest.raises((LeaseHeld, OwnerMayBeDead)):
        second.delete_lease("r0")
    own_delta(volume, 9, b"gone", timestamp=0)
    own_lease(volume, "r0", 9, generation=1)
    second.delete_lease("r0")
    assert [lease.name for lease in volume.leases()] == ["r1"]


def test_the_index_may_be_full(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    lockspace.create_lease("r2")
    lockspace.create_lease("r3")
    with pytest.raises(IndexFull):
        lockspace.create_lease("r4")
    assert volume.check() == []


def test_a_bare_volume_joins_for_a_change_of_the_index(volume: Volume) -> None:
    info = volume.create_lease("vm1")
    assert info.name == "vm1" and info.mode == "free"
    volume.delete_lease("vm1")
    assert [lease.name for lease in volume.leases()] == ["r0", "r1"]
    assert all(host.state is HostState.FREE for host in volume.hosts())


def test_a_lease_that_was_made_again_elsewhere_is_found(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    first.acquire("r0").release()
    second.delete_lease("r0")
    second.create_lease("other")
    second.create_lease("r0")
    with first.acquire("r0") as lease:
        assert lease.held.lease.place.offset == volume.lease("r0").offset


def test_an_index_is_rebuilt_from_the_leases(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    with open(volume.path, "r+b") as disk:
        disk.seek(volume.index.place.at(512))
        disk.write(bytes(512))
    assert volume.leases() == []
    lockspace.rebuild_index()
    assert [lease.name for lease in volume.leases()] == ["r0", "r1"]


def test_another_host_can_ask_for_a_lease(volume: Volume, join: Joiner) -> None:
    owner, other = join(volume, 1), join(volume, 2)
    told: list[events.Event] = []
    owner.on_event.append(told.append)
    with subprocess.Popen(["sleep", "1000"]) as holder:
        owner.acquire("r0", holder=holder.pid)
        assert other.request("r0", Force.GRACEFUL) == 1
        assert holder.wait(30) == -signal.SIGTERM
    assert any(isinstance(event, events.LeaseRequested) and event.resource == "r0" for event in told)


def test_a_forced_request_kills_the_holder(volume: Volume, join: Joiner) -> None:
    owner, other = join(volume, 1), join(volume, 2)
    with subprocess.Popen(["sleep", "1000"]) as holder:
        owner.acquire("r0", holder=holder.pid)
        other.request("r0", Force.FORCE)
        assert holder.wait(30) == -signal.SIGKILL


def test_hosts_send_each_other_events(volume: Volume, join: Joiner) -> None:
    receiver, sender = join(volume, 1), join(volume, 2)
    told: list[events.Event] = []
    receiver.on_event.append(told.append)
    sender.send_event(1, receiver.generation, 42, 4711)
    wait_for(lambda: any(isinstance(event, events.HostEvent) for event in told), "the event")
    event = next(event for event in told if isinstance(event, events.HostEvent))
    assert (event.from_host, event.from_generation, event.to_generation) == (2, 1, 1)
    assert (event.event, event.data) == (42, 4711)


def test_a_volume_of_other_sizes_works_alike(directory: Path, join: Joiner) -> None:
    volume = Volume.create(str(directory / "v"), "LS", leases=2, sector_size=4096, align_size=1 << 20, io_timeout=1)
    lockspace = join(volume, 250)
    lockspace.create_lease("vm1")
    with lockspace.acquire("vm1") as lease, pytest.raises(AlreadyHeld):
        lockspace.acquire("vm1", shared=lease.shared)
    assert make_volume(str(directory / "w")).check() == volume.check() == []
