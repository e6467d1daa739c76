"""One renewal of a host lease (2000 hosts' leases read, one written), beside the bare I/O and the real daemon's own.

Ours includes looking at all hosts. The daemon can't be asked to renew: its times are those that it keeps of its
renewals, in whole milliseconds, one every 2.5 s of the same run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.conftest import Contest
from bench.contestants import Floor, Sanlock, recorded
from leases.volume import Volume
from paxos import host_lease
from paxos.disk.engine import Engine
from paxos.geometry import MAX_HOSTS, MIB, Geometry
from paxos.host_lease import Beacon, HostLease
from paxos.liveness import HostTable
from paxos.lockspace_area import LockspaceArea
from paxos.records import Leader, pack_name
from paxos.steps import Read, Steps, Write
from paxos.timing import Timing
from tests.support.storage import LoopDisk

_SIZES = list(MAX_HOSTS)
_TIMING = Timing(1)
_LIVE_HOSTS = 200
#: renewals of the daemon that make a median
_ENOUGH = 5


def lay_out(path: str, sizes: tuple[int, int]) -> Volume:
    """A lockspace of which some hosts were used."""
    sector_size, align_size = sizes
    volume = Volume.create(
        path, "LS", leases=1, io_timeout=1, sector_size=sector_size, align_size=align_size, force=True
    )
    with open(path, "r+b", buffering=0) as disk:
        fresh = Leader.unpack(disk.read(sector_size))
        for host_id in range(3, _LIVE_HOSTS + 3):
            name = pack_name(b"host%d" % host_id)
            used = fresh.changed(owner_id=host_id, owner_generation=1, timestamp=1000 + host_id, resource_name=name)
            disk.seek((host_id - 1) * sector_size)
            disk.write(used.sector(sector_size))
    return volume


class Renewing:
    """A host lease of ours, renewed by hand."""

    def __init__(self, engine: Engine, area: LockspaceArea, lease: HostLease) -> None:
        self._engine, self._lease = engine, lease
        self._hosts = HostTable(area, lease.host_id, _TIMING)

    def steps(self) -> Steps[host_lease.Renewal]:
        def examine(view: memoryview, now: float) -> None:
            self._hosts.observe(view, now)

        return host_lease.renew(self._lease, _TIMING, Beacon(), examine)

    def __call__(self) -> None:
        self._engine.run(self.steps())


@pytest.fixture(params=_SIZES, ids=[f"{sector}-{align // MIB}M" for sector, align in _SIZES])
def paths(request: pytest.FixtureRequest) -> Iterator[tuple[LockspaceArea, str, str]]:
    """Our lockspace, the daemon's path, and the path for the bare I/O."""
    with ExitStack() as stack:
        ours, theirs, bare = (
            stack.enter_context(LoopDisk(request.param[0], 4 * request.param[1])).path for _ in range(3)
        )
        area = lay_out(ours, request.param).area
        lay_out(theirs, request.param)
        assert area.geometry == Geometry(*request.param)
        yield area, theirs, bare


def test_renewal(contest: Contest, paths: tuple[LockspaceArea, str, str]) -> None:
    area, theirs, bare = paths
    transfers: list[Read | Write] = []
    with Sanlock() as sanlock, Engine() as engine:
        sanlock.daemon.add_lockspace("LS", 2, theirs)
        engine.devices.open(area.place.disk, 10.0)
        lease = engine.run(host_lease.acquire(area, 1, b"bench", _TIMING))
        renewing = Renewing(engine, area, lease)
        engine.run(recorded(renewing.steps(), transfers))
        floor = Floor(bare, transfers)

        def own_renewals() -> dict[str, list[float]]:
            while len(history := sanlock.renewals("LS")) < _ENOUGH:
                time.sleep(0.5)
            return {"sanlock": history}

        contest(renewing, {"bare I/O": floor}, afterwards=own_renewals)
        floor.close()
