"""A lease volume: a disk or file with a lockspace, an index and leases. Looking at it, changing it, joining it.

with Volume("/dev/vg/leases").join() as lockspace, lockspace.acquire("vm1") as lease:
    ...
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from leases.engines import Engines
from leases.findings import Finding, check_volume
from leases.joining import Wish, join
from leases.keeper.watchdog import Watchdog
from leases.layout import Plan, index_place, lay_out
from leases.lockspace import Lockspace
from leases.sightings import (
    Explanation,
    HostInfo,
    LeaseInfo,
    Onlooker,
    describe_lease,
    explain,
    look_at_lease,
)
from paxos.disk.abort import AbortSignal
from paxos.disk.device import Devices
from paxos.errors import BadRecord, DiskError, LeaseholdError, NoSuchLease, ShortIO
from paxos.geometry import Geometry, Place
from paxos.host_lease import Progress, probe
from paxos.index import Entries, Index, open_index, read_entries
from paxos.lease_area import LeaseArea, read_leader
from paxos.lockspace_area import LockspaceArea
from paxos.steps import Steps
from paxos.timing import DEFAULT_FIRE_TIMEOUT, DEFAULT_IO_TIMEOUT

T = TypeVar("T")


def no_progress(_what: str, _seconds: float) -> None:
    """Tell nobody."""


class Volume:
    """The volume at `path`. Nothing is read before it is needed; what is read is not remembered, but for its sizes."""

    def __init__(self, path: str) -> None:
        self.path = str(path)
        self._engines = Engines(Devices(read_only=True))
        self._joining: list[AbortSignal] = []

    def __repr__(self) -> str:
        return f"Volume({self.path!r})"

    @classmethod
    def create(
        cls,
        path: str,
        lockspace: str,
        *,
        leases: int | None = None,
        hosts: int = 0,
        io_timeout: int = DEFAULT_IO_TIMEOUT,
        sector_size: int | None = None,
        align_size: int | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Volume:
        """Lay out a volume: lockspace, index and room for `leases` leases of `hosts` hosts (0: as many as fit).

        A file is made, or grows, as needed; without `leases` it has room for 64, and a disk for as many as fit
        (4096 at most). Sizes in bytes, both or none. Raises VolumeInUse, InvalidUse, SizesInvalid, DiskError.
        """
        plan = Plan(lockspace.encode(), leases, hosts, io_timeout, sector_size, align_size, force)
        lay_out(str(path), plan, progress or no_progress)
        return cls(path)

    # ----------------------------------------------------------------------------------------------- looking

    def probe(self) -> tuple[str, Geometry]:
        """Read the lockspace's name and sizes. Raises BadRecord, DiskError."""
        name, geometry = self._run(probe(Place(self.path), DEFAULT_IO_TIMEOUT))
        return name.decode("utf-8", "backslashreplace"), geometry

    @cached_property
    def area(self) -> LockspaceArea:
        """The lockspace as the protocols know it. Raises BadRecord, DiskError."""
        name, geometry = self._run(probe(Place(self.path), DEFAULT_IO_TIMEOUT))
        return LockspaceArea(name, Place(self.path), geometry)

    @property
    def lockspace(self) -> str:
        """Its name. Raises BadRecord, DiskError."""
        return self.area.name.decode("utf-8", "backslashreplace")

    @property
    def geometry(self) -> Geometry:
        return self.area.geometry

    @property
    def index(self) -> Index:
        """Raises BadRecord where there is none, DiskError."""
        return self._run(open_index(self.area.name, index_place(self.path, self.geometry), DEFAULT_IO_TIMEOUT))

    def hosts(self, watch_seconds: float = 0.0, *, fire_timeout: float = DEFAULT_FIRE_TIMEOUT) -> list[HostInfo]:
        """Every host id that was ever taken; watched for so long to tell who is alive. Raises DiskError."""
        onlooker = Onlooker(self.area, fire_timeout)
        self._run(onlooker.watch(watch_seconds))
        return onlooker.hosts()

    def leases(self) -> list[LeaseInfo]:
        """The leases of the index, by offset; a damaged one with its `problem`. Raises BadRecord, DiskError."""
        index = self.index
        entries = self._run(read_entries(index, DEFAULT_IO_TIMEOUT))
        onlooker = Onlooker(self.area, DEFAULT_FIRE_TIMEOUT)
        self._run(onlooker.look())
        return [self._lease_info(index.lease(name, number), onlooker) for number, name in sorted(entries.names.items())]

    def _lease_info(self, lease: LeaseArea, onlooker: Onlooker) -> LeaseInfo:
        try:
            return describe_lease(lease, self._run(look_at_lease(lease)), onlooker)
        except (BadRecord, ShortIO) as problem:
            name = lease.name.decode("utf-8", "backslashreplace")
            return LeaseInfo(name, lease.place.offset, 0, "unknown", 0, (), str(problem))

    def lease(self, name: str) -> LeaseInfo:
        """One lease. Raises NoSuchLease, BadRecord, DiskError."""
        onlooker = Onlooker(self.area, DEFAULT_FIRE_TIMEOUT)
        self._run(onlooker.look())
        return self._lease_info(self.lease_area(name), onlooker)

    def lease_area(self, name: str) -> LeaseArea:
        """Where a lease is. Raises NoSuchLease, BadRecord, DiskError."""
        index = self.index
        entries: Entries = self._run(read_entries(index, DEFAULT_IO_TIMEOUT))
        number = entries.find(name.encode())
        if number is None:
            raise NoSuchLease(resource=name, place=index.place)
        return index.lease(name.encode(), number)

    def explain(
        self, name: str, watch_seconds: float | None = None, *, fire_timeout: float = DEFAULT_FIRE_TIMEOUT
    ) -> Explanation:
        """Who holds a lease, and when it could be taken. Watches its holders until they renew, or for
        `watch_seconds` (None: one renewal interval of theirs and a little more). Raises as `lease`.
        """
        area = self.lease_area(name)
        onlooker = Onlooker(self.area, fire_timeout)
        self._run(onlooker.look())
        info = describe_lease(area, self._run(look_at_lease(area)), onlooker)
        holding = [owner.host_id for owner in info.owners if not owner.ended]
        if holding:
            if watch_seconds is None:
                slowest = max((host.io_timeout for i in holding if (host := onlooker.host(i))), default=0.0)
                watch_seconds = 2 * slowest + 2.0
            self._run(onlooker.watch(watch_seconds, holding))
            info = describe_lease(area, self._run(look_at_lease(area)), onlooker)
        return explain(info, onlooker)

    def check(self) -> list[Finding]:
        """Look the whole volume over; changes nothing. Raises BadRecord if it is no volume at all, DiskError."""
        return self._run(check_volume(self.area, index_place(self.path, self.geometry)))

    # ---------------------------------------------------------------------------------------- changing, joining

    def create_lease(
        self,
        name: str,
        lockspace_membership: Lockspace | None = None,
        *,
        num_hosts: int = 0,
        progress: Progress | None = None,
    ) -> LeaseInfo:
        """Make a lease; joins for the moment that it takes, unless a joined lockspace of this volume is given.

        Raises NameTaken, IndexFull, HeldElsewhere, TryAgain, DiskError.
        """
        self._as_member(lockspace_membership, progress, lambda member: member.create_lease(name, num_hosts))
        return self.lease(name)

    def delete_lease(
        self, name: str, lockspace_membership: Lockspace | None = None, *, progress: Progress | None = None
    ) -> None:
        """Remove a lease that nobody holds. Raises NoSuchLease, LeaseHeld, HeldElsewhere, TryAgain, DiskError."""
        self.lease_area(name)
        self._as_member(lockspace_membership, progress, lambda member: member.delete_lease(name))

    def _as_member(self, given: Lockspace | None, progress: Progress | None, action: Callable[[Lockspace], T]) -> T:
        if given is not None:
            return action(given)
        with self.join(watchdog="none", progress=progress) as lockspace:
            return action(lockspace)

    def join(
        self,
        host_id: int | None = None,
        owner_name: str | None = None,
        io_timeout: int | None = None,
        fire_timeout: int = DEFAULT_FIRE_TIMEOUT,
        watchdog: str | Watchdog = "auto",
        progress: Progress | None = None,
        on_recovery: Callable[[LeaseholdError], object] | None = None,
        abort: AbortSignal | None = None,
    ) -> Lockspace:
        """Become a member of the lockspace; takes at least two io_timeouts.

        host_id       None: any free one
        owner_name    None: a unique one. Whoever comes with the name of a host id's last owner is taken for its
                      restart on the same machine, and need not wait until that owner is surely dead
        io_timeout    seconds; None: as the host id's slot on the disk says
        fire_timeout  seconds; the same on all hosts of the lockspace
        watchdog      which kind of force stops this host (leases.keeper.watchdog), or one that is shared
        progress      is told what is being waited for, and about how many seconds
        on_recovery   is told, with the reason, when the lockspace has failed
        abort         setting it gives up joining (Aborted), as Ctrl-C and `Volume.abort` do

        Raises HostIdBusy, HostIdInvalid, NoFreeHostId, WatchdogUnavailable, Aborted, BadRecord, DiskError.
        """
        abort = abort or AbortSignal()
        wish = Wish(
            host_id,
            owner_name,
            io_timeout,
            fire_timeout,
            watchdog,
            self._usable_hosts() if host_id is None else None,
            index_place(self.path, self.geometry),
            on_recovery,
        )
        self._joining.append(abort)
        try:
            return join(self.area, wish, self._run, progress or no_progress, abort)
        finally:
            self._joining.remove(abort)

    def abort(self) -> None:
        """Give up every join of this object that is under way; they raise Aborted. From any thread."""
        for signal in list(self._joining):
            signal.set("joining was given up")

    def _usable_hosts(self) -> int | None:
        """How many hosts the volume's leases are for, as the index's own lease says; None where there is none."""
        try:
            leader, _ = self._run(read_leader(self.index.guard, DEFAULT_IO_TIMEOUT))
        except (BadRecord, ShortIO):
            return None
        return leader.num_hosts

    def _run(self, steps: Steps[T]) -> T:
        """Drive a protocol that only reads."""
        try:
            return self._engines.run(steps)
        except DiskError:
            self._engines.devices.forget(self.path)  # it may be another file by the next time
            raise
