"""Being a member of a lockspace: from taking the host id to giving it back, or to the end of recovery.

Around the protocols stand three threads. The renewal thread proves on disk that this host lives; the guard looks
whether that goes well, and walks the recovery ladder when it does not; the attendant does what may take a while.

    start    watchdog opened -> host id taken -> watchdog armed -> threads at work: joined
    leave    nobody uses a lease any more -> renewals stopped -> watchdog disarmed -> host id given back
    failure  leases lost, users stopped -> none is left -> watchdog disarmed; the host id is left to die

The watchdog is let go only when nobody on this host uses a lease of the lockspace (leases/uses.py), and the host id
is given back only when moreover no write of ours may still land: its next owner would come before we are surely
dead.
"""

from __future__ import annotations

import atexit
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from leases import events
from leases.aborting import passing_on
from leases.attendant import Attendant
from leases.engines import Engines
from leases.events import Announcer, Event
from leases.hands import KeeperHands
from leases.holdings import Holdings
from leases.keeper.decisions import Vitals, keep_renewing, stand_guard, stop_holders
from leases.keeper.recovery import Guard, run_on_clock
from leases.keeper.renewal import RenewalThread
from leases.keeper.watchdog import Watchdog, boot_time
from leases.uses import Uses
from paxos import host_lease
from paxos.disk.abort import AbortSignal
from paxos.disk.device import Device, Devices
from paxos.disk.engine import Engine
from paxos.errors import Aborted, DiskError, InvalidUse, LeaseholdError, NotJoined, WatchdogUnavailable
from paxos.host_lease import HostLease, Progress
from paxos.liveness import HostTable, Member
from paxos.lockspace_area import LockspaceArea
from paxos.steps import Steps, now
from paxos.timing import Timing

#: io_timeouts that leaving waits for a thread that is stuck in the disk
_PATIENCE = 2
_DISARM_TRIES = 3
#: transfers of the renewal's engine: one at a time, and a few that are overdue
_RENEWAL_CAPACITY = 16


class Renewing(Protocol):
    """What renews a host lease, wherever it does that."""

    @property
    def aborted(self) -> bool: ...

    def abort(self, reason: str) -> None: ...

    def is_alive(self) -> bool: ...

    def join(self, timeout: float | None = None) -> None: ...


class Membership:
    """One host id of one lockspace, ours for a while. With `own_watchdog` the watchdog is closed at the end.

    Raises WatchdogUnavailable where the watchdog can't be opened: then nothing else was begun.
    """

    def __init__(
        self,
        area: LockspaceArea,
        host_id: int,
        owner_name: bytes,
        timing: Timing,
        watchdog: Watchdog,
        *,
        own_watchdog: bool = False,
    ) -> None:
        self.area = area
        self.name = area.name.decode("utf-8", "backslashreplace")
        self.host_id = host_id
        self.owner_name = owner_name
        self.timing = timing
        self.generation = 0
        self.vitals = Vitals(timing, 0.0)
        self.hosts = HostTable(area, host_id, timing)
        self.holdings = Holdings()
        self.announcer = Announcer(self.name)
        self.connection = watchdog.open(f"leasehold_{self.name}:{host_id}")
        self.uses = Uses(self.connection)
        self.engines = Engines()
        #: set when the lockspace fails or is left: operations under way end where they merely wait
        self.closing = AbortSignal()
        #: releases what is held, when it is left by force
        self.give_up: Callable[[], None] = lambda: None
        #: set when it is all over
        self.left = threading.Event()
        self.hands = KeeperHands(self)
        self.attendant = Attendant(self)
        #: the volume as the renewals see it, once it is open
        self.device: Device | None = None
        self._watchdog = watchdog if own_watchdog else None
        self._pid = os.getpid()
        self._began = threading.Event()
        self._joined = False
        self._start_failure: BaseException | None = None
        self._leaving = threading.Lock()
        self._ending = threading.Lock()
        self._host_lease: HostLease | None = None
        self._member: Member | None = None
        self._guard: Guard | None = None
        self._renewal: Renewing | None = None

    # --------------------------------------------------------------------------------------------- joining

    def start(self, progress: Progress, abort: AbortSignal) -> None:
        """Take the host id, arm the watchdog, begin to renew.

        Raises HostIdBusy, HostIdInvalid, BadRecord, DiskError, WatchdogUnavailable, Aborted. When it raises,
        nothing is left behind that can be undone.
        """
        try:
            engine = Engine(self._open_devices(), capacity=_RENEWAL_CAPACITY)
            renewal = RenewalThread(self.name, engine, self._live(progress), self._renewal_ended)
            self._renewal = renewal
            with passing_on(abort, to=renewal.abort):
                self._begin(renewal)
            if self._start_failure is not None:
                raise self._start_failure
            if abort.reason is not None:
                self.leave(force=True)
                raise Aborted(reason=abort.reason)
        finally:
            if not self._joined:
                self._end()
        _members.add(self)

    def _begin(self, renewal: RenewalThread) -> None:
        """Wait until joining has ended, one way or another."""
        renewal.start()
        try:
            self._began.wait()
        except BaseException:
            renewal.abort("joining was given up")
            self._began.wait()
            if self._joined:
                self.leave(force=True)
            raise

    def _open_devices(self) -> Devices:
        """Open the disk twice, for the renewals and for the leases, and make sure that it is the same one.

        Now, not with the first lease: a volume that is replaced meanwhile is another volume.
        """
        disk, timeout = self.area.place.disk, self.timing.io_timeout
        renewals = Devices()
        self.device = renewals.open(disk, timeout)
        if not os.path.samestat(os.fstat(self.device.fd), os.fstat(self.engines.devices.open(disk, timeout).fd)):
            raise InvalidUse(reason=f"{disk} is being replaced by another file")
        return renewals

    def _live(self, progress: Progress) -> Steps[None]:
        """The life of a member, run by the renewal thread."""
        lease = yield from host_lease.acquire(self.area, self.host_id, self.owner_name, self.timing, progress)
        self.vitals.last_success = lease.last_success
        try:
            self.connection.arm(lease.last_success, self.vitals.expires)
            self.vitals.check_late((yield from now()))
            if self.vitals.failure is not None:
                raise self.vitals.failure
            assert self._renewal is not None
            if self._renewal.aborted:
                raise Aborted(reason="joining was given up")
        except LeaseholdError:
            self._disarm()
            yield from host_lease.release(lease, self.timing)
            raise
        self._host_lease = lease
        member = self._is_member(lease.generation)
        yield from keep_renewing(lease, member, self.vitals, self.hands)

    def _is_member(self, generation: int) -> Member:
        """The host id is taken and the watchdog armed: from now on leases can be had."""
        self.generation = generation
        dice = random.Random()
        self._member = Member(self.area, self.host_id, generation, self.timing, self.hosts, dice)
        self._guard = Guard(self.name, stand_guard(self.vitals, self.hands), self._guard_ended)
        self._guard.start()
        self.attendant.start()
        self._joined = True
        self._began.set()
        return self._member

    def _renewal_ended(self, failure: BaseException | None) -> None:
        if not self._joined:
            self._start_failure = failure
            self._began.set()
        elif failure is not None and not isinstance(failure, Aborted):
            raise failure  # a fault of this program: said aloud; the guard will see that renewals have stopped

    # ------------------------------------------------------------------------------------------ how it stands

    @property
    def member(self) -> Member:
        """This host as the protocols know it. Raises NotJoined."""
        if self._member is None or self.left.is_set():
            raise NotJoined(lockspace=self.name, cause=self.vitals.failure)
        return self._member

    @property
    def in_child(self) -> bool:
        """Whether this is a child of the process that joined, by fork: nothing here is the child's."""
        return os.getpid() != self._pid

    def require_usable(self) -> Member:
        """For new leases: joined, neither failing nor being left. Raises NotJoined, InvalidUse."""
        if self.in_child:
            raise InvalidUse(reason="a lockspace can't be used by a child of the process that joined it")
        member = self.member
        self.vitals.check_late(boot_time())
        if self.vitals.failure is not None:
            self.wake_guard()
        if self.vitals.failure is not None or self.closing.reason is not None:
            raise NotJoined(lockspace=self.name, cause=self.vitals.failure or self.closing.reason)
        return member

    def tell(self, kind: type[Event], **facts: object) -> None:
        """Tell whoever listens. Never waits."""
        self.announcer.tell(kind, at=boot_time(), lockspace=self.name, **facts)

    def fail(self, reason: LeaseholdError) -> None:
        """The lockspace can't be used any more: recovery begins."""
        self.vitals.fail(reason)
        self.wake_guard()

    def wake_guard(self) -> None:
        """Somebody ended, or something failed: it looks now, not at its next tick."""
        if self._guard is not None:
            self._guard.wake()

    # ------------------------------------------------------------------------------------------------- the end

    def leave(self, force: bool) -> None:
        """Give the host id back. With `force`, processes that use leases are killed first, and then what is held is
        given up. After a failure only wait for the end of recovery, as long as it can last.
        """
        if self.in_child:
            return
        with self._leaving:
            if self.left.is_set():
                return
            self.closing.set("the lockspace is being left")
            if force:
                if self.vitals.failure is None:
                    self._stop_processes()
                self.give_up()
            if self.vitals.failure is not None:
                self.wake_guard()
                self.left.wait(max(0.0, self.vitals.last_success + self.timing.host_dead - boot_time()))
                return
            self.vitals.leaving = True
            self._stop_threads()
            self._disarm()
            self._release_host_lease()
            self._end()

    def _stop_processes(self) -> None:
        """Kill whatever uses a lease; renewals go on until it is gone."""
        hands = self.hands.for_processes_only()
        run_on_clock(stop_holders(self.vitals, hands, at_once=True), threading.Event())

    def _stop_threads(self) -> None:
        patience = _PATIENCE * self.timing.io_timeout
        give_up_at = boot_time() + patience
        while self.holdings.in_motion() and boot_time() < give_up_at:
            time.sleep(0.02)
        self.attendant.stop(patience)
        self.wake_guard()
        assert self._renewal is not None and self._guard is not None
        self._renewal.abort("the lockspace is being left")
        self._renewal.join(patience)

    def _release_host_lease(self) -> None:
        lease = self._host_lease
        assert lease is not None and self._renewal is not None
        well = self.vitals.failure is None and self.vitals.trouble is None and lease.certain
        if well and not self._renewal.is_alive() and not self.holdings.in_motion():
            with suppress(DiskError):
                self.engines.run(host_lease.release(lease, self.timing))

    def _guard_ended(self, failure: LeaseholdError | None) -> None:
        """With a failure, recovery is over: every user is gone. The host lease is left as it is."""
        if failure is None:
            return
        self.vitals.leaving = True
        if self._renewal is not None:
            self._renewal.abort("the lockspace has failed")
        self.attendant.stop(0.0)
        self._disarm()
        self._end()

    def _disarm(self) -> None:
        """Nobody uses the lockspace. Where the watchdog can't be told, it will fire for nothing: so try again."""
        for _ in range(_DISARM_TRIES):
            try:
                self.connection.disarm()
            except WatchdogUnavailable:
                time.sleep(0.5)
            else:
                return

    def _end(self) -> None:
        """Let go of everything but what is still in flight."""
        with self._ending:
            if self.left.is_set():
                return
            with suppress(WatchdogUnavailable):
                self.connection.close()
            if self._watchdog is not None:
                self._watchdog.close()
            self.engines.close()
            self.left.set()
        if self._joined:
            self.tell(events.Left, failure=self.vitals.failure)
        self.announcer.close()
        _members.discard(self)


_members: weakref.WeakSet[Membership] = weakref.WeakSet()


@atexit.register
def _leave_all() -> None:
    """A program that ended without leaving would be taken for a stuck one by its watchdog."""
    for member in list(_members):
        with suppress(LeaseholdError):
            member.leave(force=True)
