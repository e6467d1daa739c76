"""One volume, two engines: each takes over from the other once that is dead by its own rules, and not a second sooner.

In real time: io_timeout 1, watchdogs that would fire after 60 s, so a host is dead 68 s after its last renewal. All
times are of one clock: the timestamp of the last renewal lies on the disk, in seconds since boot, as the killed host
wrote it (rounded down, which makes the wait look longer, never shorter, by less than a second).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from leases.keeper.watchdog import boot_time
from paxos.geometry import MIB
from tests.support.storage import Disk, LoopDisk, PlainDisk
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

#: what a take-over may take on top: the taker's renewal that saw the last sign of life (2.5 s after it at most), its
#: ballot, and a machine that does other things too
_SLACK = 30.0


@pytest.fixture
def make() -> Iterator[Callable[[Disk], OneVolume]]:
    with ExitStack() as disks:
        yield lambda disk: one_volume(disks.enter_context(disk), ["vm0", "vm1"])


class LastRenewal:
    """When the host lease last changed on the disk, seen by a third party that only looks."""

    def __init__(self, volume: OneVolume, host: EngineHost) -> None:
        self._volume, self._host_id = volume, host.host_id
        self.timestamp = volume.delta(host.host_id).timestamp

    def check_unchanged(self) -> None:
        assert self._volume.delta(self._host_id).timestamp == self.timestamp


def take_over(taker: EngineHost, lease: str, *, shared: bool = False) -> float:
    """Attempt it until it succeeds: when (boot time), taken right after."""
    deadline = boot_time() + HOST_DEAD + _SLACK
    while True:
        assert boot_time() < deadline, "it was never taken over"
        try:
            taker.acquire(lease, shared=shared)
        except Refused as refused:
            # a live owner, a live shared holder: what it looks like as long as the last renewal is recent
            assert refused.number in (-243, -11)
            time.sleep(0.1)
        else:
            return boot_time()


VICTIMS = pytest.mark.parametrize(
    ("victim", "taker"), [("leasehold", "sanlock"), ("sanlock", "leasehold")], ids=["from-leasehold", "from-sanlock"]
)
MODES = pytest.mark.parametrize(
    ("held", "wanted"), [(False, False), (False, True), (True, False)], ids=["EX-EX", "EX-SH", "SH-EX"]
)


def killed_and_taken_over(volume: OneVolume, victim: str, taker: str, held_shared: bool, wanted_shared: bool) -> float:
    """How long (s) after the last renewal."""
    with ENGINES[victim](volume, 1) as dying, ENGINES[taker](volume, 2) as living:
        living.knows(dying)
        dying.acquire("vm0", shared=held_shared)
        dying.acquire("vm1", shared=True)
        assert not living.may_acquire("vm0", shared=wanted_shared)
        dying.crash()
        last = LastRenewal(volume, dying)
        held = volume.leader("vm0")
        taken_at = take_over(living, "vm0", shared=wanted_shared)
        assert HOST_DEAD <= taken_at - last.timestamp <= HOST_DEAD + _SLACK
        last.check_unchanged()
        assert living.state_of(1) == "DEAD"
        leader = volume.leader("vm0")
        assert leader.lver > held.lver and leader.owner_id == living.host_id
        take_over(living, "vm1")  # its shared mark is of no weight any more, at the latest from the next renewal on
        living.release("vm0")
        living.release("vm1")
    return taken_at - last.timestamp


Report = Callable[[str, object], None]


@MODES
@VICTIMS
def test_a_killed_host_is_taken_over_when_it_is_dead_and_not_before(
    make: Callable[[Disk], OneVolume], victim: str, taker: str, held: bool, wanted: bool, record_property: Report
) -> None:
    waited = killed_and_taken_over(make(PlainDisk(8 * MIB)), victim, taker, held, wanted)
    record_property("taken over after (s)", round(waited, 1))


@VICTIMS
@pytest.mark.parametrize(("sector_size", "size"), [(512, 8 * MIB), (4096, 64 * MIB)])
def test_a_killed_host_is_taken_over_on_a_block_device(
    make: Callable[[Disk], OneVolume], victim: str, taker: str, sector_size: int, size: int
) -> None:
    killed_and_taken_over(make(LoopDisk(sector_size, size)), victim, taker, False, False)


@VICTIMS
def test_a_host_that_joined_after_the_death_counts_from_its_own_first_look(
    make: Callable[[Disk], OneVolume], victim: str, taker: str
) -> None:
    volume = make(PlainDisk(8 * MIB))
    with ENGINES[victim](volume, 1) as dying:
        dying.acquire("vm0")
        dying.crash()
        began = boot_time()
        with ENGINES[taker](volume, 2) as living:
            assert take_over(living, "vm0") - began >= HOST_DEAD


@VICTIMS
def test_the_host_id_of_a_killed_host_goes_to_another_only_when_it_is_dead(
    make: Callable[[Disk], OneVolume], victim: str, taker: str
) -> None:
    volume = make(PlainDisk(8 * MIB))
    with ENGINES[victim](volume, 1) as dying, SanlockHost(volume, 2) as watching:
        dying.acquire("vm0")
        dying.crash()
        before = volume.delta(1)
        options = {} if taker == "leasehold" else {"name": "another"}
        with ENGINES[taker](volume, 1, **options) as heir:
            record = volume.delta(1)
            assert record.owner_generation == before.owner_generation + 1
            assert boot_time() - before.timestamp >= HOST_DEAD + 2
            watching.knows(heir)
            # whoever owns the host id now is not who held the lease: it is free to be taken at once, by both
            assert watching.may_acquire("vm0")
            watching.release("vm0")
            assert heir.may_acquire("vm0")
            heir.release("vm0")


@VICTIMS
def test_the_same_machine_comes_back_without_waiting_and_gets_its_lease(
    make: Callable[[Disk], OneVolume], victim: str, taker: str
) -> None:
    volume = make(PlainDisk(8 * MIB))
    names = {"leasehold": {"owner_name": "node"}, "sanlock": {"name": "node"}}
    with ENGINES[victim](volume, 1, **names[victim]) as dying:
        dying.acquire("vm0")
        dying.crash()
    crashed = boot_time()
    # even where the other engine runs there from now on: the name is the machine's
    with ENGINES[taker](volume, 1, **names[taker]) as back:
        assert back.may_acquire("vm0")
        assert boot_time() - crashed < HOST_DEAD and volume.delta(1).owner_generation == 2
        back.release("vm0")


def test_a_stopped_daemon_that_wakes_up_dead_has_lost_its_lease_to_us(make: Callable[[Disk], OneVolume]) -> None:
    volume = make(PlainDisk(8 * MIB))
    with SanlockHost(volume, 1) as stopped, LeaseholdHost(volume, 2) as taker:
        taker.knows(stopped)
        stopped.acquire("vm0")
        stopped.freeze()
        last = LastRenewal(volume, stopped)
        assert take_over(taker, "vm0") - last.timestamp >= HOST_DEAD
        mine = volume.leader("vm0")
        stopped.thaw()
        assert stopped.client.wait() < 0  # its own recovery kills its client
        assert volume.leader("vm0") == mine
        taker.release("vm0")


def test_a_stopped_host_of_ours_that_wakes_up_dead_has_lost_its_lease_to_the_daemon(
    make: Callable[[Disk], OneVolume],
) -> None:
    volume = make(PlainDisk(8 * MIB))
    with LeaseholdHost(volume, 1) as stopped, SanlockHost(volume, 2) as taker:
        taker.knows(stopped)
        stopped.acquire("vm0")
        stopped.freeze()
        last = LastRenewal(volume, stopped)
        assert take_over(taker, "vm0") - last.timestamp >= HOST_DEAD
        theirs = volume.leader("vm0")
        stopped.thaw()
        wait_for(lambda: stopped.ask("lost", "vm0") == "RenewalsFailed", "our host to notice")
        stopped.release("vm0")
        assert volume.leader("vm0") == theirs
        assert volume.delta(1).timestamp == last.timestamp  # nor did it renew once more
        taker.release("vm0")
