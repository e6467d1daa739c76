"""What an onlooker can say of hosts and leases, without being a member: by reading, waiting and reading again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from leases.keeper.watchdog.base import boot_time
from paxos.area import belonging, decode_lockspace
from paxos.lease_area import LeaseArea, Scene, survey
from paxos.liveness import HostState
from paxos.lockspace_area import LockspaceArea
from paxos.owners import owners
from paxos.records import name_of
from paxos.steps import Steps, now, read, sleep
from paxos.timing import DEFAULT_IO_TIMEOUT, Timing, judging_io_timeout

_TIMEOUT = DEFAULT_IO_TIMEOUT


@dataclass(frozen=True, slots=True)
class HostInfo:
    """One host id that was taken. Times in seconds; `timestamp` is of the host's own clock, 0: it left.

    `state` as far as it was watched: FREE, LIVE (seen to renew), DEAD (watched for its host_dead seconds), else
    UNKNOWN. `quiet_for`: since when no renewal was seen, None if it was not watched.
    """

    host_id: int
    name: str
    generation: int
    timestamp: int
    io_timeout: float
    state: HostState = HostState.UNKNOWN
    quiet_for: float | None = None


@dataclass(frozen=True, slots=True)
class OwnerInfo:
    """A holder of a lease. `ended`: its host has left, or is a later instance, so it holds nothing any more."""

    host_id: int
    generation: int
    timestamp: int
    shared: bool
    host_name: str
    state: HostState
    ended: bool


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease of the index. `mode`: "free", "exclusive" or "shared"; `problem` says why the rest is not known."""

    name: str
    offset: int
    lver: int
    mode: str
    num_hosts: int
    owners: tuple[OwnerInfo, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Who holds a lease and what that means. Times in seconds.

    `watched`: for how long the hosts were watched. `renewed_ago`: when the holder was last seen to renew, None if
    it was not. `free_in`: when the lease could be taken if the holder is dead: 0 now; None if it is alive.
    """

    lease: LeaseInfo
    holders: tuple[HostInfo, ...]
    watched: float
    renewed_ago: float | None
    free_in: float | None
    summary: str


@dataclass(slots=True)
class _Seen:
    info: HostInfo
    #: when it was last seen to change, or first seen
    since: float
    changed: bool = False


class Onlooker:
    """Watches the hosts of a lockspace. `fire_timeout`: what the cluster's watchdogs use, in seconds."""

    def __init__(self, area: LockspaceArea, fire_timeout: float) -> None:
        self._area = area
        self._fire_timeout = fire_timeout
        self._seen: dict[int, _Seen] = {}
        self.watched = 0.0

    def look(self) -> Steps[None]:
        """Read all host leases once. Raises DiskError."""
        place, geometry = self._area.place, self._area.geometry
        view = yield from read(place.disk, place.offset, geometry.align_size, _TIMEOUT)
        rows = decode_lockspace(view, geometry)
        used = (belonging(rows, self._area.name) & rows["used"]).nonzero()[0].tolist()
        at = yield from now()
        for row in used:
            info = HostInfo(
                host_id=row + 1,
                name=name_of(bytes(rows[row]["resource_name"])).decode(errors="backslashreplace"),
                generation=int(rows[row]["owner_generation"]),
                timestamp=int(rows[row]["timestamp"]),
                io_timeout=judging_io_timeout(int(rows[row]["io_timeout"]), DEFAULT_IO_TIMEOUT),
            )
            before = self._seen.get(row + 1)
            if before is None:
                self._seen[row + 1] = _Seen(info, at)
            elif before.info != info:
                self._seen[row + 1] = _Seen(info, at, changed=True)

    def watch(self, seconds: float, until_seen: Iterable[int] = ()) -> Steps[None]:
        """Look again and again for so long; not longer than until all hosts of `until_seen` were seen to renew."""
        wanted = set(until_seen)
        start = yield from now()
        yield from self.look()
        while (left := start + seconds - (yield from now())) > 0:
            if wanted and all(host_id in self._seen and self._seen[host_id].changed for host_id in wanted):
                break
            yield from sleep(min(0.5, left))
            yield from self.look()
        self.watched += (yield from now()) - start

    def hosts(self) -> list[HostInfo]:
        return [info for host_id in sorted(self._seen) if (info := self.host(host_id)) is not None]

    def host(self, host_id: int) -> HostInfo | None:
        """None if the host id was never taken."""
        seen = self._seen.get(host_id)
        if seen is None:
            return None
        quiet = boot_time() - seen.since
        info = seen.info
        if info.timestamp == 0:
            state = HostState.FREE
        elif seen.changed:
            state = HostState.LIVE if quiet <= Timing(info.io_timeout).renewal_fail else HostState.FAIL
        else:
            state = HostState.DEAD if quiet > self.host_dead(info) else HostState.UNKNOWN
        return HostInfo(
            info.host_id,
            info.name,
            info.generation,
            info.timestamp,
            info.io_timeout,
            state,
            quiet if self.watched else None,
        )

    def host_dead(self, info: HostInfo) -> float:
        """Seconds without a renewal after which that host is surely dead."""
        return Timing(info.io_timeout, self._fire_timeout).host_dead


def look_at_lease(lease: LeaseArea) -> Steps[Scene]:
    """Raises BadRecord, DiskError."""
    return (yield from survey(lease, 1, _TIMEOUT))


def describe_lease(lease: LeaseArea, scene: Scene, onlooker: Onlooker) -> LeaseInfo:
    found = []
    for owner in owners(scene):
        host = onlooker.host(owner.host_id)
        ended = host is not None and (host.timestamp == 0 or host.generation != owner.generation)
        found.append(
            OwnerInfo(
                owner.host_id,
                owner.generation,
                owner.timestamp,
                owner.shared,
                host.name if host is not None and host.generation == owner.generation else "",
                host.state if host is not None else HostState.UNKNOWN,
                ended,
            )
        )
    mode = "free" if not found else "shared" if any(owner.shared for owner in found) else "exclusive"
    name = lease.name.decode(errors="backslashreplace")
    return LeaseInfo(name, lease.place.offset, scene.leader.lver, mode, scene.leader.num_hosts, tuple(found))


def explain(lease: LeaseInfo, onlooker: Onlooker) -> Explanation:
    """What a lease's holders mean for whoever wants it."""
    holding = [owner for owner in lease.owners if not owner.ended]
    hosts = tuple(host for owner in holding if (host := onlooker.host(owner.host_id)) is not None)
    alive = [host for host in hosts if host.state is HostState.LIVE]
    watched = onlooker.watched
    if not lease.owners:
        return Explanation(lease, (), watched, None, 0.0, f"{lease.name} is free (version {lease.lver})")
    if not holding:
        last = lease.owners[0]
        text = f"{lease.name} can be taken: host {last.host_id} (generation {last.generation}), its last holder, left"
        return Explanation(lease, (), watched, None, 0.0, text)
    who = " and ".join(_who(owner, lease) for owner in holding)
    if alive:
        ago = min(host.quiet_for or 0.0 for host in alive)
        return Explanation(lease, hosts, watched, ago, None, f"{who}, which is alive: it renewed {ago:.0f} s ago")
    waits = [onlooker.host_dead(host) - (host.quiet_for or 0.0) for host in hosts]
    wait = max(0.0, *waits) if waits else 0.0
    if wait == 0.0:
        text = f"{who}, which is dead: it can be taken"
    else:
        text = f"{who}, not seen to renew in {watched:.0f} s; if it is dead, it can be taken in {wait:.0f} s"
    return Explanation(lease, hosts, watched, None, wait, text)


def _who(owner: OwnerInfo, lease: LeaseInfo) -> str:
    name = f" ({owner.host_name})" if owner.host_name else ""
    shared = "shared " if owner.shared else ""
    return f"{lease.name} is held {shared}by host {owner.host_id}{name}, generation {owner.generation}"
