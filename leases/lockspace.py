"""A joined lockspace: this host is a member, its host id is renewed, and leases can be held.

Around the protocols stand three threads. The renewal thread proves on disk that this host lives; the guard looks
whether that goes well, and walks the recovery ladder when it does not; the attendant does what may take a while
(looking at requests of other hosts, settling what an I/O error left open). Leases are acquired, converted and
released by the threads that ask for it, each with an engine of its own.

When the lockspace fails, all leases are lost, their holders are stopped, and only when every one of them is gone
is the watchdog told that nobody uses the lockspace any more. This process counts as a user as long as it has a
lease without other holders that it neither released nor acknowledged as lost (leases/lease.py), and as long as one
of its threads is at work on a lease: it gets no signal from the ladder, and the watchdog stays armed.
"""

from __future__ import annotations

import atexit
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from leases import events
from leases.attendant import Attendant
from leases.engines import CtrlC, Engines, ctrl_c_waits
from leases.events import Announcer, Event
from leases.hands import KeeperHands, OnlyProcesses
from leases.holdings import Grip, Holdings, Phase
from leases.keeper.decisions import RemovedByCommand, Vitals, keep_renewing, stand_guard, stop_holders
from leases.keeper.recovery import Guard, Users, run_on_clock
from leases.keeper.renewal import RenewalThread
from leases.keeper.watchdog import Watchdog, boot_time
from leases.lease import Lease
from leases.waiting import sharpened, until_worth_a_try
from paxos import host_lease, index, resource
from paxos import request as requests
from paxos.disk.abort import AbortSignal
from paxos.disk.device import Devices
from paxos.disk.engine import Engine
from paxos.errors import (
    Aborted,
    AlreadyHeld,
    BadRecord,
    DiskError,
    HeldElsewhere,
    InvalidUse,
    IOTimeout,
    LeaseholdError,
    NoSuchLease,
    NotJoined,
    ReleaseOwner,
    StillHeld,
    TryAgain,
    WatchdogUnavailable,
)
from paxos.geometry import Place
from paxos.host_lease import HostLease, Progress
from paxos.lease_area import LeaseArea, read_leader
from paxos.liveness import HostTable, LockspaceArea, Member
from paxos.request import Force
from paxos.resource import Held, Want
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Steps, now, reap
from paxos.timing import Timing

T = TypeVar("T")

#: seconds that leaving waits for a thread that may be stuck in the disk, in io_timeouts
_LEAVE_PATIENCE = 2


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What a caller of acquire asked for."""

    want: Want
    wait: float | None
    lvb: bool
    holder: int | None
    abort: AbortSignal | None
    on_refusal: Callable[[LeaseholdError], object] | None


class Lockspace:
    """Made by `Volume.join`, which returns it joined. A context manager: at its end the lockspace is left."""

    def __init__(
        self,
        area: LockspaceArea,
        host_id: int,
        owner_name: bytes,
        timing: Timing,
        watchdog: Watchdog,
        *,
        own_watchdog: bool = False,
        index_place: Place | None = None,
        on_recovery: Callable[[LeaseholdError], object] | None = None,
    ) -> None:
        self.area = area
        self.name = area.name.decode("utf-8", "backslashreplace")
        self.host_id = host_id
        self.generation = 0
        self.owner_name = owner_name
        self.timing = timing
        self.vitals = Vitals(timing, 0.0)
        self.hosts = HostTable(area, host_id, timing)
        self.holdings = Holdings()
        self.users = Users()
        self.announcer = Announcer(self.name)
        self.on_event = self.announcer.hooks
        if on_recovery is not None:
            self.on_event.append(lambda event: _tell_recovery(on_recovery, event))
        self.engines = Engines()
        self.left = threading.Event()
        #: set when the lockspace fails or is left: operations under way end where they wait
        self._closing = AbortSignal()
        self._watchdog = watchdog
        self._own_watchdog = own_watchdog
        self._connection = watchdog.open(f"leasehold_{self.name}:{host_id}")
        self._index_place = index_place
        self._index: index.Index | None = None
        self._areas: dict[bytes, LeaseArea] = {}
        self._own_uses = 0
        self._own_use_lock = threading.Lock()
        self._leave_lock = threading.Lock()
        self._pid = os.getpid()
        self._began = threading.Event()
        self._start_failure: BaseException | None = None
        self._joined = False
        self._ended = False
        self._host_lease: HostLease | None = None
        self._member: Member | None = None
        self._guard: Guard | None = None
        self.attendant = Attendant(self)
        self._hands = KeeperHands(self, self._connection)
        self._renewal: RenewalThread | None = None

    def __repr__(self) -> str:
        state = "left" if self.left.is_set() else f"failed: {self.failure}" if self.failure else "joined"
        return f"<Lockspace {self.name} host {self.host_id} generation {self.generation} {state}>"

    # --------------------------------------------------------------------------------------------- joining

    def start(self, progress: Progress, abort: AbortSignal | None = None) -> None:
        """Join: take the host id, arm the watchdog, begin to renew. Called once, by Volume.join.

        Raises HostIdBusy, HostIdInvalid, BadRecord, DiskError, WatchdogUnavailable, Aborted. When it raises,
        nothing is left behind that can be undone.
        """
        devices = self._open_devices()
        engine = Engine(devices, capacity=16)
        self._renewal = RenewalThread(self.name, engine, self._live(progress), self._renewal_ended)
        abort = abort or AbortSignal()
        wake = _aborting(self._renewal, abort)
        abort.attach(wake)
        try:
            self._renewal.start()
            wake()
            self._began.wait()
        except BaseException:
            self._renewal.abort("joining was given up")
            self._began.wait()
            if self._joined:
                self.leave(force=True)
            raise
        finally:
            abort.detach(wake)
            if not self._joined:
                self._clean_up()
        if self._start_failure is not None:
            raise self._start_failure
        _joined_lockspaces.add(self)

    def _open_devices(self) -> Devices:
        """Open the disk twice, for the renewals and for the clients, and make sure that it is the same one.

        Now, not with the first lease: a volume that is replaced meanwhile is another volume.
        """
        disk, timeout = self.area.place.disk, self.timing.io_timeout
        renewals = Devices()
        ours = self.engines.devices.open(disk, timeout)
        if not os.path.samestat(os.fstat(ours.fd), os.fstat(renewals.open(disk, timeout).fd)):
            raise InvalidUse(reason=f"{disk} is being replaced by another file")
        return renewals

    def _live(self, progress: Progress) -> Steps[None]:
        """The life of a member, run by the renewal thread."""
        lease = yield from host_lease.acquire(self.area, self.host_id, self.owner_name, self.timing, progress)
        self.vitals.last_success = lease.last_success
        try:
            self._connection.arm(lease.last_success, self.vitals.expires)
            self.vitals.check_late((yield from now()))
            if self.vitals.failure is not None:
                raise self.vitals.failure
        except LeaseholdError:
            self._connection.disarm()
            yield from host_lease.release(lease, self.timing)
            raise
        self.generation = lease.generation
        self._host_lease = lease
        self._member = member = Member(
            self.area, self.host_id, lease.generation, self.timing, self.hosts, random.Random()
        )
        self._guard = Guard(self.name, stand_guard(self.vitals, self._hands), self._guard_ended)
        self._guard.start()
        self.attendant.start()
        self._joined = True
        self._began.set()
        yield from keep_renewing(lease, member, self.vitals, self._hands)

    def _renewal_ended(self, failure: BaseException | None) -> None:
        if not self._joined:
            self._start_failure = failure or Aborted(reason="joining was given up")
        elif failure is not None and not isinstance(failure, Aborted):
            raise failure  # a fault of this program: said aloud; the guard will see that renewals have stopped
        self._began.set()

    # ------------------------------------------------------------------------------------------ how it stands

    @property
    def io_timeout(self) -> float:
        return self.timing.io_timeout

    @property
    def failure(self) -> LeaseholdError | None:
        """Why the lockspace failed, None while it is well."""
        return self.vitals.failure

    @property
    def watchdog(self) -> str:
        """What stops this host's users of leases if renewals stop."""
        return self._connection.describe()

    @property
    def member(self) -> Member:
        """This host as the protocols know it. Raises NotJoined."""
        if self._member is None or self.left.is_set():
            raise NotJoined(lockspace=self.name)
        return self._member

    @property
    def leases(self) -> list[Lease]:
        """What is held now, lost leases that nobody released included."""
        return self.holdings.leases()

    def tell(self, kind: type[Event], **facts: object) -> None:
        self.announcer.tell(kind(at=boot_time(), lockspace=self.name, **facts))

    def stop_operations(self) -> None:
        """The lockspace has failed: what is under way ends where it merely waits."""
        self._closing.set("the lockspace has failed")

    def wake_guard(self) -> None:
        if self._guard is not None:
            self._guard.wake()

    def require_usable(self) -> Member:
        """For new leases: joined, neither failing nor being left. Raises NotJoined, InvalidUse."""
        if os.getpid() != self._pid:
            raise InvalidUse(reason="a lockspace can't be used by a child of the process that joined it")
        member = self.member
        self.vitals.check_late(boot_time())
        if self.vitals.failure is not None or self.vitals.leaving:
            raise NotJoined(lockspace=self.name, cause=self.vitals.failure or RemovedByCommand())
        return member

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

        wait       None: try once. An owner that is alive is a refusal; one that may be dead is waited for, up to
                   its host_dead seconds (OwnerMayBeDead at once with `nowait`). Seconds, or inf: try until then.
        lver       refuse unless the lease is at this version
        num_hosts  lay it out for so many hosts from now on
        lvb        refuse if the lease has no room for a value block
        holder     a process that will use it, see Lease.add_holder
        abort      setting it ends the waiting with Aborted
        on_refusal is told each refusal after which it is tried again

        Raises NoSuchLease, AlreadyHeld, LeaseHeld and its kin (HeldElsewhere), TryAgain, NotJoined, BadRecord,
        DiskError (then nobody on this host can have it until it is settled: WriteUnsettled), WatchdogUnavailable.
        """
        self.require_usable()
        encoded = name.encode()
        known = encoded in self._areas
        attempt = _Attempt(Want(shared, lver, num_hosts, nowait), wait, lvb, holder, abort, on_refusal)
        try:
            return self._acquire(self.area_of(name), attempt)
        except BadRecord:
            if not known:
                raise
            self._areas.pop(encoded, None)  # deleted since, and perhaps made again elsewhere
        return self._acquire(self.area_of(name), attempt)

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
        return self._acquire(
            area, _Attempt(Want(shared, lver, num_hosts, nowait), wait, lvb, holder, abort, on_refusal)
        )

    def area_of(self, name: str) -> LeaseArea:
        """Where the index has the lease. Raises NoSuchLease, BadRecord, DiskError."""
        encoded = name.encode()
        area = self._areas.get(encoded)
        if area is None:
            place = self.require_index()
            _, offset = self.engines.run(index.lookup(place, self.io_timeout, encoded))
            area = self._areas[encoded] = place.lease(encoded, place.number(offset))
        return area

    def has_lease(self, name: str) -> bool:
        """Whether the index names such a lease. Raises BadRecord, DiskError."""
        try:
            self.area_of(name)
        except NoSuchLease:
            return False
        return True

    def require_index(self) -> index.Index:
        """The volume's index. Raises NoSuchLease-like BadRecord where there is none, DiskError."""
        if self._index is None:
            if self._index_place is None:
                raise NoSuchLease(resource="", place=self.area.place)
            self._index = self.engines.run(
                index.open_index(self.area.name, self._index_place, self.io_timeout)
            )
        return self._index

    def _acquire(self, area: LeaseArea, attempt: _Attempt) -> Lease:
        if attempt.lvb and not area.geometry.has_lvb:
            resource.read_lvb(area, 0.0).send(None)
        deadline = None if attempt.wait is None else boot_time() + attempt.wait
        want = attempt.want if deadline is None else replace(attempt.want, nowait=True)
        abort = AbortSignal()
        with _joined_signals(abort, self._closing, attempt.abort), ctrl_c_waits(abort) as ctrl_c:
            while True:
                try:
                    lease = self._try(area, want, attempt.holder, abort)
                except (HeldElsewhere, TryAgain, AlreadyHeld) as refusal:
                    if deadline is None or isinstance(refusal, Aborted):
                        raise
                    if boot_time() >= deadline:
                        raise self._sharpened(refusal, abort) from None
                    if attempt.on_refusal is not None:
                        attempt.on_refusal(refusal)
                    self.engines.run(until_worth_a_try(self.require_usable(), area, refusal, deadline), abort)
                except Aborted as aborted:
                    self.require_usable()
                    raise aborted
                else:
                    return self._unless_interrupted(lease, ctrl_c)

    def _sharpened(self, refusal: LeaseholdError, abort: AbortSignal) -> LeaseholdError:
        try:
            return self.engines.run(sharpened(self.member, refusal), abort)
        except (DiskError, BadRecord, Aborted):
            return refusal

    def _unless_interrupted(self, lease: Lease, ctrl_c: CtrlC) -> Lease:
        if ctrl_c.pressed:
            lease.release()
        return lease

    def _try(self, area: LeaseArea, want: Want, holder: int | None, abort: AbortSignal) -> Lease:
        member = self.require_usable()
        grip = self.holdings.begin(area, "acquired", want.shared)
        if grip.phase is not Phase.BUSY:
            return self._share(grip, holder)
        granted = False
        try:
            held = self._drive(grip, resource.acquire(member, area, want), abort)
            if grip.suspect is not None:
                self._drive(grip, resource.verify_held(member, held), None)
            lease = Lease(self, grip, held)
            self._begin_use(lease, holder)
            self.holdings.grant(grip, held, lease)
            granted = True
        except WatchdogUnavailable:
            self._release_on_disk(grip, held, None)
            raise
        finally:
            if not granted and grip.phase is Phase.BUSY:
                self.holdings.drop(grip)
        try:
            self.require_usable()
        except NotJoined:  # it failed while we were at it: refused, and given back if there is still time
            lease.release()
            raise
        return lease

    def _share(self, grip: Grip, holder: int | None) -> Lease:
        """One more user of a lease that this host holds shared already: no I/O."""
        assert grip.held is not None
        lease = Lease(self, grip, grip.held)
        self._begin_use(lease, holder)
        if not self.holdings.attach(grip, lease):
            self._end_use(lease)
            raise TryAgain(reason=f"{lease.resource} is just being given back on this host")
        return lease

    # -------------------------------------------------------------------------- converting, value block, release

    def convert(self, lease: Lease, shared: bool) -> None:
        """See Lease.convert."""
        member = self.require_usable()
        grip = lease._grip
        self.holdings.work_on(grip, lease, "converted")
        before = grip.held
        assert before is not None
        with ctrl_c_waits():
            if shared:
                self._to_shared(member, grip, lease, before)
            else:
                self._to_exclusive(member, grip, lease, before)
            if grip.suspect is not None:
                self._hands.lost(grip.held or before, grip.suspect)

    def _to_exclusive(self, member: Member, grip: Grip, lease: Lease, before: Held) -> None:
        after = before
        try:
            after = self._drive(
                grip, resource.convert_to_exclusive(member, before, nowait=True), self._closing, before
            )
        finally:
            if grip.phase is Phase.BUSY:
                lease._held = after
                self.holdings.grant(grip, after)

    def _to_shared(self, member: Member, grip: Grip, lease: Lease, before: Held) -> None:
        """From the first write on others may share it, and with an error it is not known whether that landed.

        We hold it at least shared in any case, so that is what the lease is from now on; the rest of the way is
        settled in the background.
        """
        after = replace(before, shared=True)
        try:
            after = self._drive(
                grip, resource.convert_to_shared(member, before), None, before, self._finish_sharing
            )
        except LeaseholdError as error:
            if grip.phase is Phase.BUSY:
                self._hands.lost(before, error)
            raise
        finally:
            lease._held = grip.held = after
            if grip.phase is Phase.BUSY:
                self.holdings.grant(grip, after)

    def _finish_sharing(self, grip: Grip, before: Held) -> Steps[None]:
        """Make what was exclusive shared, wherever an error interrupted that."""
        yield from _reaped(grip, self.timing)
        try:
            yield from resource.convert_to_shared(self.member, before)
        except ReleaseOwner:  # the leader was freed by the first attempt
            yield from resource.verify_held(self.member, replace(before, shared=True))

    def read_lvb(self, lease: Lease) -> bytes:
        return self.engines.run(resource.read_lvb(lease.held.lease, self.io_timeout))

    def write_lvb(self, lease: Lease, data: bytes) -> None:
        if lease.shared:
            raise InvalidUse(
                reason=f"{lease.resource} is held shared: only an exclusive holder writes the value block"
            )
        self.require_usable()
        self.engines.run(resource.write_lvb(lease.held.lease, data, self.io_timeout))

    def release(self, lease: Lease, lvb: bytes | None = None) -> None:
        """See Lease.release."""
        grip = lease._grip
        last = self.holdings.let_go(grip, lease)
        lease.released = True
        try:
            if lease.lost.is_set() or self.vitals.failure is not None or self.left.is_set():
                # not ours any more: whoever has it now must find nothing of us
                if last:
                    self.holdings.drop(grip)
            elif last:
                assert grip.held is not None
                self._release_on_disk(grip, grip.held, lvb)
            elif grip.phase is Phase.UNSETTLED and not grip.leases:
                self._unsettle(grip, [], None)
        finally:
            self._end_use(lease)

    def _release_on_disk(self, grip: Grip, held: Held, lvb: bytes | None) -> None:
        try:
            with ctrl_c_waits():
                self._drive(grip, resource.release(self.member, held, lvb), None)
        finally:
            if grip.phase is Phase.BUSY:
                self.holdings.drop(grip)

    def _drive(
        self,
        grip: Grip,
        steps: Steps[T],
        abort: AbortSignal | None,
        keep: Held | None = None,
        cure: Callable[[Grip, Held], Steps[None]] | None = None,
    ) -> T:
        """Run an operation on a resource; where it ends so that the disk's state is open, have that settled.

        `keep`: what we hold in any case; `cure`: how it is settled instead of by giving up.
        """
        with self.engines.engine() as engine:
            try:
                return engine.run(steps, abort)
            except DiskError as error:
                pending = pending_of(error)
                self._unsettle(grip, [pending] if pending else [], keep, cure, error)
                raise
            except (HeldElsewhere, TryAgain):
                raise
            except Aborted as error:
                self._unsettle(grip, [], keep, cure, error)
                raise
            except LeaseholdError as error:
                if keep is not None and not isinstance(error, ReleaseOwner):
                    self._unsettle(grip, [], keep, cure, error)
                raise
            except BaseException as error:  # broken off: what was in flight may still happen
                self._unsettle(grip, list(engine.abandoned), keep, cure, error)
                raise

    def _unsettle(
        self,
        grip: Grip,
        in_flight: Sequence[Pending],
        keep: Held | None,
        cure: Callable[[Grip, Held], Steps[None]] | None = None,
        error: BaseException | None = None,
    ) -> None:
        def settled() -> Steps[None]:
            if cure is not None and keep is not None:
                return cure(grip, keep)
            return settle(self.member, grip.area, grip.writes_in_flight(), keep)

        self.holdings.unsettle(grip, list(in_flight), settled)
        if error is not None:
            self.tell(events.Unsettled, resource=grip.text, error=error)
        self.attendant.wake()

    # ----------------------------------------------------------------------------------- who uses the leases

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
        own_before = not lease._pids
        self.users.add(
            pid, group=group, kill_path=kill_path, never_kill=never_kill, never_terminate=never_terminate
        )
        try:
            self._connection.hold(pid, group=group, terminate=not kill_path and not never_terminate)
        except BaseException:
            self.users.remove(pid)
            raise
        lease._pids.append(pid)
        if own_before:
            self._own_use(-1)
        if lease.lost.is_set():  # while we were at it: nobody else will stop it
            self._hands.stop_users_of(lease)

    def _begin_use(self, lease: Lease, holder: int | None) -> None:
        self._own_use(+1)
        if holder is not None:
            try:
                self.add_holder(lease, holder)
            except BaseException:
                self._own_use(-1)
                raise

    def _end_use(self, lease: Lease) -> None:
        if not lease._pids and not lease.lost.acknowledged:
            self._own_use(-1)
        for pid in lease._pids:
            if self.users.remove(pid):
                with suppress(WatchdogUnavailable):
                    self._connection.unhold(pid)
        self.wake_guard_if_failed()

    def _own_use(self, change: int) -> None:
        """This process uses a lease more or less. A guardian must know; other watchdogs do nothing then."""
        with self._own_use_lock:
            self._own_uses += change
            if self._own_uses == 1 and change > 0:
                try:
                    self._connection.hold(os.getpid(), terminate=False)
                except BaseException:
                    self._own_uses -= change
                    raise
            elif self._own_uses == 0:
                with suppress(WatchdogUnavailable):
                    self._connection.unhold(os.getpid())

    def acknowledged(self, lease: Lease) -> None:
        """See Lost.acknowledge."""
        if not lease.released and not lease._pids:
            self._own_use(-1)
        self.wake_guard_if_failed()

    def wake_guard_if_failed(self) -> None:
        if self.vitals.failure is not None:
            self.wake_guard()

    # ------------------------------------------------------------------------------------ the index, other hosts

    def create_lease(self, name: str, num_hosts: int = 0) -> LeaseArea:
        """Make a lease in the volume's index, for `num_hosts` hosts (0: as many as the index itself is for).

        Raises NameTaken, IndexFull, HeldElsewhere (another host changes the index), TryAgain, DiskError.
        """
        place = self.require_index()
        if not num_hosts:
            num_hosts = self.engines.run(_num_hosts(place.guard, self.io_timeout))
        area = self._change_index(lambda member: index.create(member, place, name.encode(), num_hosts))
        self._areas[area.name] = area
        return area

    def delete_lease(self, name: str) -> None:
        """Remove a lease that nobody holds. Raises NoSuchLease, HeldElsewhere, TryAgain, DiskError."""
        place = self.require_index()
        self._areas.pop(name.encode(), None)
        self._change_index(lambda member: index.delete(member, place, name.encode()))

    def rebuild_index(self) -> index.Entries:
        """Write the index anew from the leases on the volume. Raises HeldElsewhere, TryAgain, DiskError."""
        place = self.require_index()
        self._areas.clear()
        return self._change_index(lambda member: index.rebuild(member, place))

    def _change_index(self, change: Callable[[Member], Steps[T]]) -> T:
        """One at a time on this host, and settled like any lease: what failed may still land on the index."""
        member = self.require_usable()
        grip = self.holdings.begin(self.require_index().guard, "used to change the index")
        try:
            with ctrl_c_waits():
                return self._drive(grip, change(member), None)
        finally:
            if grip.phase is Phase.BUSY:
                self.holdings.drop(grip)

    def request(self, name: str, force: Force = Force.GRACEFUL, lver: int | None = None) -> int:
        """Ask the owner of a lease to give it up (version `lver`, None: the next). Its host id, 0: nobody has it.

        Raises RequestOld, RequestSuperseded, NoSuchLease, BadRecord, DiskError.
        """
        return self.request_area(self.area_of(name), force, lver)

    def request_area(self, area: LeaseArea, force: Force, lver: int | None = None) -> int:
        self.require_usable()
        asked = self.engines.run(requests.request(area, lver, force, self.io_timeout))
        if asked.owner:
            self._hands.call(asked.owner)
        return asked.owner

    def send_event(self, host_id: int, generation: int, event: int, data: int = 0) -> None:
        """Tell another host something with the next renewals (ondisk.md 7.4); it replaces what was told before."""
        self.require_usable()
        self._hands.send((generation, event, data), host_id)

    # ------------------------------------------------------------------------------------------------- the end

    def leave(self, force: bool = False) -> None:
        """Give the host id back. With leases still held: StillHeld, or with `force` their holders are killed and
        they are released. After a failure, wait for nothing: recovery goes on by itself.
        """
        with self._leave_lock:
            if self.left.is_set():
                return
            if self.vitals.failure is not None:
                self._leave_failed()
                return
            held = [lease for lease in self.leases if not lease.released]
            if held and not force:
                raise StillHeld(lockspace=self.name, resources=sorted({lease.resource for lease in held}))
            self.vitals.leaving = True
            self._closing.set("the lockspace is being left")
            self._give_up(held)
            self._stop_threads()
            self._connection.disarm()
            self._release_host_lease()
            self._clean_up()

    def _leave_failed(self) -> None:
        """Only what this process itself uses can be given up; the guard does the rest."""
        for lease in self.leases:
            if not lease.holders:
                lease.release()
        self.wake_guard()

    def _give_up(self, held: list[Lease]) -> None:
        for lease in held:
            lease.lost.set(RemovedByCommand())
        run_on_clock(
            stop_holders(self.vitals, OnlyProcesses(self, self._connection), at_once=True), threading.Event()
        )
        for lease in held:
            lease.lost.reason = None
            with suppress(LeaseholdError):
                self.release(lease)
            lease.lost.reason = RemovedByCommand()

    def _stop_threads(self) -> None:
        patience = _LEAVE_PATIENCE * self.timing.io_timeout
        self.attendant.stop(patience)
        self.wake_guard()
        assert self._renewal is not None
        self._renewal.abort("the lockspace is being left")
        if self._renewal is not threading.current_thread():
            self._renewal.join(patience)

    def _release_host_lease(self) -> None:
        """Only if the last renewal succeeded, and nothing of ours may still land on a resource: then the next owner
        of this host id must not come before we are surely dead."""
        lease = self._host_lease
        assert lease is not None and self._renewal is not None
        if self._renewal.is_alive() or self.vitals.trouble is not None or not lease.certain:
            return
        if self.holdings.unsettled():
            return
        with suppress(DiskError):
            self.engines.run(host_lease.release(lease, self.timing))

    def _guard_ended(self, failure: LeaseholdError | None) -> None:
        """Recovery is over: every holder is gone. The host lease is left as it is, so others wait the full time."""
        if failure is None:
            return
        self.vitals.leaving = True
        if self._renewal is not None:
            self._renewal.abort("the lockspace has failed")
        self.attendant.stop(0.0)
        with suppress(WatchdogUnavailable):
            self._connection.disarm()
        self._clean_up()

    def _clean_up(self) -> None:
        """Let go of everything but what is still in flight."""
        if self._ended:
            return
        self._ended = True
        with suppress(WatchdogUnavailable):
            self._connection.close()
        if self._own_watchdog:
            self._watchdog.close()
        self.engines.close()
        self.left.set()
        if self._joined:
            self.tell(events.Left, failure=self.vitals.failure)
        self.announcer.close()
        _joined_lockspaces.discard(self)

    def __enter__(self) -> Lockspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(force=True)


def _tell_recovery(hook: Callable[[LeaseholdError], object], event: Event) -> None:
    if isinstance(event, events.RecoveryBegun):
        hook(event.reason)


def _aborting(thread: RenewalThread, signal: AbortSignal) -> Callable[[], None]:
    def wake() -> None:
        if signal.reason is not None:
            thread.abort(signal.reason)

    return wake


@contextmanager
def _joined_signals(target: AbortSignal, *sources: AbortSignal | None) -> Iterator[None]:
    """While the block lasts, whichever of `sources` is set sets `target`."""
    wakers = []
    for source in sources:
        if source is not None:
            wakers.append((source, _passing_on(source, target)))
    for source, wake in wakers:
        source.attach(wake)
        wake()
    try:
        yield
    finally:
        for source, wake in wakers:
            source.detach(wake)


def _passing_on(source: AbortSignal, target: AbortSignal) -> Callable[[], None]:
    def wake() -> None:
        if source.reason is not None:
            target.set(source.reason)

    return wake


def _num_hosts(area: LeaseArea, timeout: float) -> Steps[int]:
    """How many hosts a lease is laid out for."""
    leader, _ = yield from read_leader(area, timeout)
    return leader.num_hosts


def _reaped(grip: Grip, timing: Timing) -> Steps[None]:
    """Wait for own writes in flight; how they ended does not matter. Raises IOTimeout if one has not."""
    for pending in grip.writes_in_flight():
        try:
            yield from reap(pending, timing.host_dead)
        except IOTimeout:
            raise
        except DiskError:
            continue


_joined_lockspaces: weakref.WeakSet[Lockspace] = weakref.WeakSet()


@atexit.register
def _leave_all() -> None:
    """A program that ends without leaving would be taken for a stuck one by its watchdog."""
    for lockspace in list(_joined_lockspaces):
        with suppress(LeaseholdError):
            lockspace.leave(force=True)
