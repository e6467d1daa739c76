"""Small configurations for the explorer: hosts that acquire one lease, hold it, release it, and try again.

They run the protocols as they ship, and do about errors what the daemon does: settle, then go on.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from leases.sim.explorer import NOON, Environment, Explorer, Granted, LetGo, Program
from leases.sim.layout import Layout
from paxos import resource
from paxos.errors import DiskError, LeaseholdError
from paxos.leader import Leader
from paxos.lease_area import LeaseArea
from paxos.liveness import HostHistory, Member
from paxos.lockspace_area import LockspaceArea
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Steps
from paxos.timing import Timing

_TIMING = Timing(10)


class KnownHosts:
    """Stands in for a HostTable: who has crashed is dead beyond doubt, everybody else alive."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def get(self, host_id: int) -> HostHistory | None:
        last = NOON - 10 * _TIMING.host_dead if self._environment.is_crashed(host_id - 1) else NOON
        return HostHistory(
            host_id=host_id,
            owner_id=host_id,
            generation=1,
            name=b"host",
            timestamp=1,
            io_timeout=_TIMING.io_timeout,
            first_check=0.0,
            last_check=NOON,
            last_live=last,
        )

    def shared_holder_alive(self, host_id: int, generation: int) -> bool:
        return not self._environment.is_crashed(host_id - 1)


class _Dice:
    def uniform(self, low: float, high: float, /) -> float:
        return (low + high) / 2


def layout(hosts: int) -> Layout:
    return Layout(leases=1, num_hosts=hosts, io_timeout=int(_TIMING.io_timeout))


def image(hosts: int) -> bytes:
    """A lockspace with all hosts joined as generation 1, and one lease that nobody has held."""
    from leases.sim.world import World

    small = layout(hosts)
    disk = small.make(World(0))
    sector_size = small.geometry.sector_size
    for host_id in range(1, hosts + 1):
        offset = small.geometry.delta_offset(host_id)
        fresh = Leader.unpack(disk.view[offset : offset + sector_size])
        joined = fresh.changed(
            owner_id=host_id, owner_generation=1, timestamp=1, resource_name=b"host".ljust(48, b"\0")
        )
        disk.put(offset, joined.sector(sector_size))
    return bytes(disk.view)


def member(environment: Environment, host_id: int, hosts: int) -> Member:
    small = layout(hosts)
    area = LockspaceArea(small.lockspace, small.lockspace_place, small.geometry)
    return Member(area, host_id, 1, _TIMING, KnownHosts(environment), _Dice())  # type: ignore[arg-type]


def lease(hosts: int) -> LeaseArea:
    small = layout(hosts)
    return LeaseArea(small.lockspace, small.name(1), small.place(1), small.geometry)


def user(host_id: int, hosts: int, *, turns: int = 1, shared: bool = False) -> Program:
    """A host that uses the lease `turns` times, or is refused as often."""

    def program(environment: Environment) -> Generator[Any, Any, str]:
        me, area = member(environment, host_id, hosts), lease(hosts)
        want = resource.Want(shared=shared, nowait=True)
        for _ in range(turns):
            try:
                held = yield from resource.acquire(me, area, want)
            except DiskError as failed:
                yield from _settled(me, area, failed)
                continue
            except LeaseholdError:
                continue
            yield Granted(held.lver, not held.shared)
            yield LetGo()
            try:
                yield from resource.release(me, held)
            except DiskError as failed:
                yield from _settled(me, area, failed)
            except LeaseholdError:
                continue
        return "done"

    return program


def _settled(me: Member, area: LeaseArea, failed: DiskError) -> Steps[None]:
    in_flight: list[Pending] = []
    trouble: DiskError | None = failed
    while trouble is not None:
        pending = pending_of(trouble)
        if pending is not None and pending not in in_flight:
            in_flight.append(pending)
        trouble = None
        try:
            yield from settle(me, area, in_flight)
        except DiskError as again:
            trouble = again


def explorer(hosts: int, programs: list[Program]) -> Explorer:
    """An explorer of these programs, one a host."""
    small = layout(hosts)
    first = small.geometry.align_size // small.geometry.sector_size
    watched = [first, *range(first + 2, first + 2 + hosts)]
    return Explorer(image(hosts), small.geometry.sector_size, programs, watched)
