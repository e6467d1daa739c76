"""Uncontended acquire and release of an exclusive lease, beside the real daemon and the bare I/O.

    pytest bench/test_lease_acquire.py --benchmark-columns=median,iqr,rounds

Each has a volume of its own, written full, laid out for 2000 hosts, then for 16: on block devices in memory, on loop
devices over files, and on files. The last two share a journal with whatever else writes on that file system: on a busy
machine only the first compares. Aims: acquire within 1.3 of the I/O alone, and at most 0.6 of sanlock's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from bench.conftest import Contest
from bench.contestants import Floor, Sanlock, recorded
from bench.memory_disk import memory_disk
from leases.lease import Lease
from leases.lockspace import Lockspace
from leases.volume import Volume
from paxos import resource
from paxos.geometry import MIB
from paxos.steps import Read, Write
from tests.support.storage import LoopDisk, PlainDisk

_NAME = "vm1"


@dataclass
class Contestants:
    """Joined, with one lease each that nobody holds."""

    ours: Lockspace
    sanlock: Sanlock
    place: tuple[bytes, bytes, list[tuple[str, int]]]
    acquiring: Floor
    releasing: Floor


def lay_out(path: str, hosts: int) -> int:
    """A volume with one lease for so many hosts (0: all): where the lease is."""
    volume = Volume.create(path, "LS", leases=2, hosts=hosts, io_timeout=1, force=True)
    return volume.create_lease(_NAME, num_hosts=hosts).offset


def transfers_of(lockspace: Lockspace) -> tuple[list[Read | Write], list[Read | Write]]:
    """What an acquire and a release read and write, in order."""
    acquiring: list[Read | Write] = []
    releasing: list[Read | Write] = []
    member, engines = lockspace.membership.member, lockspace.membership.engines
    held = engines.run(recorded(resource.acquire(member, lockspace.area_of(_NAME)), acquiring))
    engines.run(recorded(resource.release(member, held), releasing))
    return acquiring, releasing


@pytest.fixture(scope="module", params=["memory", "loop", "file"])
def paths(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Three disks of one kind: ours, the daemon's, and the one for the bare I/O."""
    size = 8 * MIB
    with ExitStack() as stack:
        if request.param == "memory":
            yield [stack.enter_context(memory_disk(size)) for _ in range(3)]
        else:
            kind = {"loop": LoopDisk, "file": PlainDisk}[request.param]
            yield [stack.enter_context(kind(size=size)).path for _ in range(3)]


@pytest.fixture(scope="module", params=[2000, 16], ids=lambda hosts: f"{hosts} hosts")
def contestants(request: pytest.FixtureRequest, paths: list[str]) -> Iterator[Contestants]:
    ours, theirs, bare = paths
    hosts = {2000: 0}.get(request.param, request.param)
    for path in (ours, theirs):
        offset = lay_out(path, hosts)
    with ExitStack() as stack:
        sanlock = stack.enter_context(Sanlock())
        sanlock.daemon.add_lockspace("LS", 1, theirs)
        lockspace = stack.enter_context(Volume(ours).join(1, watchdog="none"))
        acquiring, releasing = (Floor(bare, transfers) for transfers in transfers_of(lockspace))
        stack.callback(acquiring.close)
        stack.callback(releasing.close)
        yield Contestants(lockspace, sanlock, (b"LS", _NAME.encode(), [(theirs, offset)]), acquiring, releasing)


class Ours:
    """Our lease, held or not."""

    def __init__(self, lockspace: Lockspace) -> None:
        self._lockspace = lockspace
        self._lease: Lease | None = None

    def acquire(self) -> None:
        self._lease = self._lockspace.acquire(_NAME)

    def release(self) -> None:
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def both(self) -> None:
        self.acquire()
        self.release()


@pytest.fixture
def ours(contestants: Contestants) -> Iterator[Ours]:
    lease = Ours(contestants.ours)
    yield lease
    lease.release()


def test_acquire(contest: Contest, contestants: Contestants, ours: Ours) -> None:
    def theirs() -> float:
        taken = contestants.sanlock.call("acquire", *contestants.place)
        contestants.sanlock.call("release", *contestants.place)
        return taken

    contest(ours.acquire, {"sanlock": theirs, "bare I/O": contestants.acquiring}, prepare=ours.release)


def test_release(contest: Contest, contestants: Contestants, ours: Ours) -> None:
    def theirs() -> float:
        contestants.sanlock.call("acquire", *contestants.place)
        return contestants.sanlock.call("release", *contestants.place)

    contest(ours.release, {"sanlock": theirs, "bare I/O": contestants.releasing}, prepare=ours.acquire)


def test_acquire_and_release(contest: Contest, contestants: Contestants, ours: Ours) -> None:
    def theirs() -> float:
        return contestants.sanlock.call("acquire", *contestants.place) + contestants.sanlock.call(
            "release", *contestants.place
        )

    def bare() -> float:
        return contestants.acquiring() + contestants.releasing()

    contest(ours.both, {"sanlock": theirs, "bare I/O": bare})
