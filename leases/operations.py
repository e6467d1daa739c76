"""Taking, converting and giving back leases, as a member: the protocols of paxos/resource.py, carried out.

Each operation runs in the thread that asks for it, under a grip (leases/holdings.py) that keeps this host's other
threads off the resource. Where one ends so that it is not known what is on the disk, the resource is unsettled, and
the attendant settles it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from leases import events
from leases.aborting import passing_on
from leases.engines import ctrl_c_waits
from leases.holdings import Grip, Phase
from leases.keeper.watchdog import boot_time
from leases.lease import Lease
from leases.membership import Membership
from leases.waiting import sharpened, until_worth_a_try
from paxos import resource
from paxos.disk.abort import AbortSignal
from paxos.errors import (
    Aborted,
    AlreadyHeld,
    BadRecord,
    DiskError,
    HeldElsewhere,
    InvalidUse,
    LeaseholdError,
    LvbUnsupported,
    NotJoined,
    ReleaseOwner,
    StaleRead,
    TryAgain,
)
from paxos.lease_area import LeaseArea
from paxos.liveness import Member
from paxos.resource import Held, Want
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Steps, Write

if TYPE_CHECKING:
    from leases.lockspace import Lockspace

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a lease is to be acquired; see Lockspace.acquire."""

    want: Want
    wait: float | None = None
    lvb: bool = False
    holder: int | None = None
    abort: AbortSignal | None = None
    on_refusal: Callable[[LeaseholdError], object] | None = None


class Operations:
    """On the leases of one membership; `lockspace` is what they belong to."""

    def __init__(self, lockspace: Lockspace, membership: Membership) -> None:
        self._lockspace = lockspace
        self._membership = membership

    # ---------------------------------------------------------------------------------------------- acquiring

    def acquire(self, area: LeaseArea, attempt: Attempt) -> Lease:
        """See Lockspace.acquire."""
        geometry = area.geometry
        if attempt.lvb and not geometry.has_lvb:
            raise LvbUnsupported(sector_size=geometry.sector_size, align_size=geometry.align_size)
        abort = AbortSignal()
        with (
            ctrl_c_waits(abort) as ctrl_c,
            passing_on(self._membership.closing, attempt.abort, to=abort.set),
        ):
            try:
                lease = self._acquire(area, attempt, abort)
            except Aborted:
                self._membership.require_usable()
                raise
            if ctrl_c.pressed:
                lease.release()
        return lease

    def _acquire(self, area: LeaseArea, attempt: Attempt, abort: AbortSignal) -> Lease:
        if attempt.wait is None:
            return self._try(area, attempt.want, attempt.holder, abort)
        deadline = boot_time() + attempt.wait
        want = replace(attempt.want, nowait=True)
        engines = self._membership.engines
        while True:
            try:
                return self._try(area, want, attempt.holder, abort)
            except (HeldElsewhere, TryAgain, AlreadyHeld) as refusal:
                refused = refusal
            if boot_time() >= deadline:
                raise self._sharpened(refused, abort)
            if attempt.on_refusal is not None:
                attempt.on_refusal(refused)
            member = self._membership.require_usable()
            engines.run(until_worth_a_try(member, area, refused, deadline), abort)

    def _sharpened(self, refusal: LeaseholdError, abort: AbortSignal) -> LeaseholdError:
        try:
            return self._membership.engines.run(sharpened(self._membership.member, refusal), abort)
        except (DiskError, BadRecord):
            return refusal

    def _try(self, area: LeaseArea, want: Want, holder: int | None, abort: AbortSignal) -> Lease:
        membership = self._membership
        member = membership.require_usable()
        grip = membership.holdings.begin(area, "acquired", want.shared)
        if grip.phase is not Phase.BUSY:
            return self._share(grip, holder)
        try:
            held = self._drive(grip, resource.acquire(member, area, want), abort)
            if grip.suspect is not None:  # we stood still meanwhile
                self._drive(grip, resource.verify_held(member, held), None)
            lease = Lease(self._lockspace, grip, held)
            try:
                membership.uses.begin(lease, holder)
            except LeaseholdError:
                self._release_on_disk(grip, held)
                raise
            membership.holdings.grant(grip, held, lease)
        finally:
            self._drop_if_busy(grip)
        try:
            membership.require_usable()
        except NotJoined:  # it failed while we were at it: refused
            with suppress(LeaseholdError):
                self.release(lease)
            raise
        return lease

    def _share(self, grip: Grip, holder: int | None) -> Lease:
        """One more user of a lease that this host holds shared already: no I/O."""
        assert grip.held is not None
        lease = Lease(self._lockspace, grip, grip.held)
        self._membership.uses.begin(lease, holder)
        if not self._membership.holdings.attach(grip, lease):
            self._membership.uses.end(lease)
            raise TryAgain(reason=f"{lease.resource} is just being given back on this host")
        return lease

    # --------------------------------------------------------------------------------------------- converting

    def convert(self, lease: Lease, shared: bool) -> None:
        """See Lease.convert.

        Between the modes a lease is at least shared, so that is what it is after an I/O error, whichever way it
        was to go; settling makes it so on the disk.
        """
        membership = self._membership
        member = membership.require_usable()
        grip = lease.grip
        membership.holdings.work_on(grip, lease, "converted")
        before = after = lease.held
        at_least = replace(before, shared=True)
        try:
            with ctrl_c_waits():
                after = self._drive(grip, _conversion(member, before, shared), membership.closing, keep=at_least)
        except ReleaseOwner as lost:
            membership.hands.lost(before, lost)
            raise
        finally:
            lease.held = grip.held = at_least if grip.phase is Phase.UNSETTLED else after
            if grip.phase is Phase.BUSY:
                membership.holdings.grant(grip, after)
        if grip.suspect is not None:
            membership.hands.lost(after, grip.suspect)

    # ----------------------------------------------------------------------------------------------- releasing

    def release(self, lease: Lease, lvb: bytes | None = None, new_name: bytes | None = None) -> None:
        """See Lease.release."""
        membership, grip = self._membership, lease.grip
        if membership.in_child:
            return
        last = membership.holdings.let_go(grip, lease)
        lease.released = True
        ours = not lease.lost.is_set() and membership.vitals.failure is None and not membership.left.is_set()
        try:
            if last and ours:
                self._release_on_disk(grip, lease.held, lvb, new_name)
            elif last:  # whoever has it now must find nothing of us
                membership.holdings.drop(grip)
            elif grip.phase is Phase.UNSETTLED and not grip.leases:
                self._unsettle(grip, [], keep=None)
        finally:
            membership.uses.end(lease)
            if membership.vitals.failure is not None:
                membership.wake_guard()

    def _release_on_disk(self, grip: Grip, held: Held, lvb: bytes | None = None, new_name: bytes | None = None) -> None:
        try:
            with ctrl_c_waits():
                self._drive(grip, resource.release(self._membership.member, held, lvb, new_name), None)
        except ReleaseOwner:
            raise
        except BaseException as error:
            if grip.phase is Phase.BUSY:  # before its first write: still ours on the disk, though nobody's here
                self._unsettle(grip, [], keep=None, error=error)
            raise
        finally:
            self._drop_if_busy(grip)

    def _drop_if_busy(self, grip: Grip) -> None:
        if grip.phase is Phase.BUSY:
            self._membership.holdings.drop(grip)

    # ---------------------------------------------------------------------------------- what all have in common

    def change_index(self, guard: LeaseArea, change: Callable[[Member], Steps[T]]) -> T:
        """One change at a time on this host; settled like any lease, since what failed may yet land on the index."""
        membership = self._membership
        member = membership.require_usable()
        grip = membership.holdings.begin(guard, "used to change the index")
        try:
            with ctrl_c_waits():
                return self._drive(grip, change(member), None)
        finally:
            self._drop_if_busy(grip)

    def _drive(self, grip: Grip, steps: Steps[T], abort: AbortSignal | None, keep: Held | None = None) -> T:
        """Run an operation on a resource; where it leaves the disk's state open, have that settled.

        That is so when it failed after it began to write, or found its own block older than it wrote it. `keep`: what
        we hold in any case.
        """
        begun: list[Write] = []
        with self._membership.engines.engine() as engine:
            try:
                return engine.run(_noting_writes(steps, begun), abort)
            except (HeldElsewhere, TryAgain, ReleaseOwner, InvalidUse):  # it tidied up after itself
                raise
            except BaseException as error:
                if begun or isinstance(error, StaleRead):
                    pending = pending_of(error) if isinstance(error, DiskError) else None
                    self._unsettle(grip, [pending] if pending else list(engine.abandoned), keep, error)
                raise

    def _unsettle(
        self, grip: Grip, in_flight: list[Pending], keep: Held | None, error: BaseException | None = None
    ) -> None:
        membership = self._membership

        def cure() -> Steps[None]:
            return settle(membership.member, grip.area, grip.writes_in_flight(), keep)

        membership.holdings.unsettle(grip, in_flight, cure)
        if error is not None:
            membership.tell(events.Unsettled, resource=grip.text, error=error)
        membership.attendant.wake()


def _conversion(member: Member, held: Held, shared: bool) -> Steps[Held]:
    if shared:
        return resource.convert_to_shared(member, held)
    return resource.convert_to_exclusive(member, held, nowait=True)


def _noting_writes(steps: Steps[T], begun: list[Write]) -> Steps[T]:
    """The same protocol; the writes that it asks for are appended to `begun`."""
    answer: Any = None
    failure: Exception | None = None
    while True:
        try:
            step = steps.send(answer) if failure is None else steps.throw(failure)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(step, Write):
            begun.append(step)
        answer = failure = None
        try:
            answer = yield step
        except Exception as error:
            failure = error
