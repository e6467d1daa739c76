"""A joined lockspace, as its user sees it: leases are acquired here, by name or by place.

    with Volume(path).join() as lockspace:
        with lockspace.acquire("vm1", wait=30) as lease:
            ...

When the lockspace fails, all leases are lost, the processes that use them are stopped, and only when every one of
them is gone is the watchdog told that nobody uses the lockspace any more. This process counts as a user as long as
it has a lease without other holders that it neither released nor acknowledged as lost (leases/lease.py), and as long
as one of its threads is at work on a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from leases.events import Hook
from leases.keeper.decisions import RemovedByCommand, Vitals
from leases.lease import Lease
from leases.membership import Membership
from leases.operations import Attempt, Operations
from paxos import index as indexes
from paxos import request as requests
from paxos import resource
from paxos.disk.abort import AbortSignal
from paxos.errors import BadRecord, InvalidUse, LeaseHeld, LeaseholdError, NoSuchLease, StillHeld
from paxos.geometry import Place
from paxos.lease_area import LeaseArea, read_leader
from paxos.liveness import HostTable
from paxos.request import Force
from paxos.resource import Want
from paxos.steps import Steps


class Lockspace:
    """Made by `Volume.join`, which returns it joined. A context manager: at its end the lockspace is left."""

    def __init__(self, membership: Membership, index_place: Place | None) -> None:
        self.membership = membership
        self.name = membership.name
        #: events of leases.events go to each callable in this list, one after the other, in a thread of its own
        self.on_event: list[Hook] = membership.announcer.hooks
        self._operations = Operations(self, membership)
        membership.give_up = self._give_up
        self._index_place = index_place
        self._index: indexes.Index | None = None
        #: where the index has which lease; a lease's own record says if that is not so any more
        self._areas: dict[bytes, LeaseArea] = {}

    def __repr__(self) -> str:
        state = "left" if self.membership.left.is_set() else f"failed: {self.failure}" if self.failure else "joined"
        return f"<Lockspace {self.name} host {self.host_id} generation {self.generation} {state}>"

    # ------------------------------------------------------------------------------------------ how it stands

    @property
    def host_id(self) -> int:
        return self.membership.host_id

    @property
    def generation(self) -> int:
        return self.membership.generation

    @property
    def owner_name(self) -> str:
        """The name under which this host joined."""
        return self.membership.owner_name.decode("utf-8", "backslashreplace")

    @property
    def io_timeout(self) -> float:
        return self.membership.timing.io_timeout

    @property
    def vitals(self) -> Vitals:
        """When it was last renewed, and until when that is good for."""
        return self.membership.vitals

    @property
    def failure(self) -> LeaseholdError | None:
        """Why the lockspace failed, None while it is well."""
        return self.membership.vitals.failure

    @property
    def hosts(self) -> HostTable:
        """All hosts of the lockspace, as this one sees them."""
        return self.membership.hosts

    @property
    def watchdog(self) -> str:
        """What stops this host's users of leases if renewals stop."""
        return self.membership.connection.describe()

    @property
    def leases(self) -> list[Lease]:
        """What is held now, lost leases that nobody released included."""
        return self.membership.holdings.leases()

    # ---------------------------------------------------------------------------------------------- acquiring

    def acquire(
        self,
        name: str,
        *,
        shared: bool = False,
        wait: float | None = None,
        lver: int | None = None,
        num_hosts: int | None = None,
        lvb: bool = False,
        nowait: bool = False,
        holder: int | None = None,
        abort: AbortSignal | None = None,
        on_refusal: Callable[[LeaseholdError], object] | None = None,
    ) -> Lease:
        """Take the lease called `name` in the volume's index.

        wait       None: one attempt. An owner that is alive is a refusal; one that may be dead is waited for, as
                   long as it takes to be sure (with `nowait`: OwnerMayBeDead at once). Seconds, or inf: attempts
                   until then, 0 for a single one; the refusal after the last says whether the owner is alive, which
                   may take one of its renewal intervals more
        lver       refuse unless the lease is at this version
        num_hosts  lay it out for so many hosts from now on
        lvb        refuse if the lease has no room for a value block
        holder     a process that will use it, instead of this one; see Lease.add_holder
        abort      setting it ends the waiting, with Aborted
        on_refusal is told each refusal after which another attempt is made

        Raises NoSuchLease, AlreadyHeld, LeaseHeld and its kin (HeldElsewhere), TryAgain, NotJoined, BadRecord,
        DiskError (then nobody on this host can have it until it is settled: WriteUnsettled), WatchdogUnavailable.
        """
        self.membership.require_usable()
        attempt = Attempt(Want(shared, lver, num_hosts, nowait), wait, lvb, holder, abort, on_refusal)
        known = self._areas.get(name.encode())
        if known is not None:
            try:
                return self._operations.acquire(known, attempt)
            except BadRecord:  # deleted since, and perhaps made again elsewhere
                self._areas.pop(known.name, None)
        return self._operations.acquire(self.area_of(name), attempt)

    def acquire_area(
        self,
        area: LeaseArea,
        *,
        shared: bool = False,
        wait: float | None = None,
        lver: int | None = None,
        num_hosts: int | None = None,
        lvb: bool = False,
        nowait: bool = False,
        holder: int | None = None,
        abort: AbortSignal | None = None,
        on_refusal: Callable[[LeaseholdError], object] | None = None,
    ) -> Lease:
        """As `acquire`, for a lease that no index names."""
        attempt = Attempt(Want(shared, lver, num_hosts, nowait), wait, lvb, holder, abort, on_refusal)
        return self._operations.acquire(area, attempt)

    # ----------------------------------------------------------------------------------- what a Lease asks for

    def release(self, lease: Lease, lvb: bytes | None = None, new_name: bytes | None = None) -> None:
        """See Lease.release."""
        self._operations.release(lease, lvb, new_name)

    def convert(self, lease: Lease, shared: bool) -> None:
        """See Lease.convert."""
        self._operations.convert(lease, shared)

    def read_lvb(self, lease: Lease) -> bytes:
        """See Lease.lvb."""
        return self.membership.engines.run(resource.read_lvb(lease.held.lease, self.io_timeout))

    def write_lvb(self, lease: Lease, data: bytes) -> None:
        """See Lease.lvb."""
        if lease.shared:
            raise InvalidUse(reason=f"{lease.resource} is held shared: only an exclusive holder writes the value block")
        self.membership.require_usable()
        self.membership.engines.run(resource.write_lvb(lease.held.lease, data, self.io_timeout))

    def add_holder(
        self,
        lease: Lease,
        pid: int,
        *,
        group: bool = False,
        kill_path: Sequence[str] = (),
        never_kill: bool = False,
        never_terminate: bool = False,
    ) -> None:
        """See Lease.add_holder."""
        self.membership.uses.hand_over(
            lease, pid, group=group, kill_path=kill_path, never_kill=never_kill, never_terminate=never_terminate
        )
        if lease.lost.is_set():  # while we were at it: nobody else would stop it
            self.membership.hands.stop_users_of(lease)

    def acknowledged(self, lease: Lease) -> None:
        """See Lost.acknowledge."""
        self.membership.uses.acknowledged(lease)
        self.membership.wake_guard()

    # ---------------------------------------------------------------------------------------------- the index

    def area_of(self, name: str) -> LeaseArea:
        """Where the index has the lease. Raises NoSuchLease, BadRecord, DiskError."""
        encoded = name.encode()
        area = self._areas.get(encoded)
        if area is None:
            place = self.index
            _, offset = self.membership.engines.run(indexes.lookup(place, self.io_timeout, encoded))
            area = self._areas[encoded] = place.lease(encoded, place.number(offset))
        return area

    def has_lease(self, name: str) -> bool:
        """Whether the index names such a lease. Raises BadRecord, DiskError."""
        try:
            self.area_of(name)
        except NoSuchLease:
            return False
        return True

    @property
    def index(self) -> indexes.Index:
        """The volume's index. Raises InvalidUse, or BadRecord where there is none, DiskError."""
        if self._index is None:
            if self._index_place is None:
                raise InvalidUse(reason=f"lockspace {self.name} was joined without an index")
            area = self.membership.area
            self._index = self.membership.engines.run(indexes.open_index(area.name, self._index_place, self.io_timeout))
        return self._index

    def create_lease(self, name: str, num_hosts: int = 0) -> LeaseArea:
        """Make a lease in the index, for `num_hosts` hosts (0: as many as the index's own lease is for).

        Raises NameTaken, IndexFull, HeldElsewhere (another host changes the index), TryAgain, DiskError.
        """
        place = self.index
        if not num_hosts:
            num_hosts = self.membership.engines.run(_num_hosts(place.guard, self.io_timeout))
        encoded = name.encode()
        area = self._operations.change_index(place.guard, lambda by: indexes.create(by, place, encoded, num_hosts))
        self._areas[encoded] = area
        return area

    def delete_lease(self, name: str) -> None:
        """Remove a lease that nobody holds. Raises NoSuchLease, HeldElsewhere, TryAgain, DiskError."""
        try:
            self._delete_lease(name)
        except LeaseHeld:  # as the leader says; its owner may be dead or gone
            self.acquire(name, nowait=True).release()
            self._delete_lease(name)

    def _delete_lease(self, name: str) -> None:
        place, encoded = self.index, name.encode()
        self._operations.change_index(place.guard, lambda by: indexes.delete(by, place, encoded))
        self._areas.pop(encoded, None)

    def rebuild_index(self) -> indexes.Entries:
        """Write the index anew from the leases on the volume. Raises HeldElsewhere, TryAgain, DiskError."""
        place = self.index
        self._areas.clear()
        return self._operations.change_index(place.guard, lambda by: indexes.rebuild(by, place))

    # -------------------------------------------------------------------------------------------- other hosts

    def request(self, name: str, force: Force = Force.GRACEFUL, lver: int | None = None) -> int:
        """Ask the owner of a lease to give it up (version `lver`, None: the next). Its host id, 0: nobody has it.

        Raises RequestOld, RequestSuperseded, NoSuchLease, BadRecord, DiskError.
        """
        return self.request_area(self.area_of(name), force, lver)

    def request_area(self, area: LeaseArea, force: Force, lver: int | None = None) -> int:
        """As `request`, for a lease that no index names."""
        self.membership.require_usable()
        asked = self.membership.engines.run(requests.request(area, lver, force, self.io_timeout))
        if asked.owner:
            self.membership.hands.call(asked.owner)
        return asked.owner

    def send_event(self, host_id: int, generation: int, event: int, data: int = 0) -> None:
        """Tell another host something with the next renewals (ondisk.md 7.4), in place of what was told before."""
        self.membership.require_usable()
        self.membership.hands.send((generation, event, data), host_id)

    # ------------------------------------------------------------------------------------------------- the end

    def leave(self, force: bool = False) -> None:
        """Give the host id back. With leases still held: StillHeld; with `force` the processes that use them are
        killed, and then they are released. After a failure: wait until recovery has ended, as long as that can last.
        """
        held = self.leases
        if held and not force and self.failure is None:
            raise StillHeld(lockspace=self.name, resources=sorted({lease.resource for lease in held}))
        self.membership.leave(force)

    def _give_up(self) -> None:
        """Release everything; after a failure only what this process itself uses: the guard sees to the others."""
        for lease in self.leases:
            if self.failure is None or not lease.holders:
                with suppress(LeaseholdError):
                    lease.release()
                lease.lost.set(RemovedByCommand())

    def __enter__(self) -> Lockspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(force=True)


def _num_hosts(area: LeaseArea, timeout: float) -> Steps[int]:
    """How many hosts a lease is laid out for."""
    leader, _ = yield from read_leader(area, timeout)
    return leader.num_hosts
