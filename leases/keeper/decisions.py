"""What the keeper decides: when to renew, when it is late, when holders are stopped, when force is called off.

Two generators of steps run side by side for each joined lockspace, in the simulator and in real life alike. They
decide; their `Hands` carry out.

    keep_renewing   renews the host lease every 2 io, and after each success pushes the watchdog and the deadlines
    stand_guard     looks once a second whether the last success is too long ago, and if so walks the ladder:

        last success + 6 io           warn
        last success + 8 io           recovery: the lockspace is dead for new leases; each holder gets its kill
                                      path once, or SIGTERM each second
        last success + 8 io + grace   SIGKILL each second, at most 100 times
        last success + 8 io + fire    the watchdog resets the machine, unless all holders are gone before

The invariant: recovery, once begun, ends only with every holder gone or the machine reset. A renewal that succeeds
later does not call it off (ondisk.md section 8), and neither does one that comes late without anybody having
looked, as after a SIGSTOP: that is why lateness is latched by whoever sees it first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from paxos.errors import BadRecord, DiskError, HostLeaseLost, LeaseholdError, ReleaseOwner
from paxos.host_lease import Beacon, HostLease, Renewal, renew
from paxos.lockspace_area import Observation
from paxos.steps import Steps, now, sleep
from paxos.timing import MAX_KILLS, RENEWAL_PAUSE, Timing

if TYPE_CHECKING:
    from paxos.liveness import Member
    from paxos.resource import Held

#: how often recovery looks at the holders, and how far apart two signals to one holder are (seconds)
RECOVERY_TICK = 0.2
SIGNAL_INTERVAL = 1.0
WATCH_TICK = 1.0


class Stop(Enum):
    """Ways to stop a holder, from the mildest."""

    KILL_PATH = "kill path"
    TERMINATE = "SIGTERM"
    KILL = "SIGKILL"


@dataclass(slots=True)
class Holder:
    """A process that uses leases of the lockspace, and what was done to stop it."""

    pid: int
    #: it named a program that stops it
    has_kill_path: bool = False
    #: it must not get SIGKILL (gets SIGTERM instead), or not SIGTERM (gets SIGKILL instead)
    never_kill: bool = False
    never_terminate: bool = False
    signals: int = 0
    last_signal: float = float("-inf")
    kill_path_begun: bool = False

    @property
    def stuck(self) -> bool:
        """Signalled so often that no more signals will help: the watchdog has to."""
        return self.signals >= MAX_KILLS


@dataclass(slots=True)
class Vitals:
    """How one lockspace is doing. Times are seconds of the boot-time clock."""

    timing: Timing
    last_success: float
    #: why the lockspace failed; never cleared
    failure: LeaseholdError | None = None
    leaving: bool = False
    #: last error of a renewal, None after a success
    trouble: LeaseholdError | None = None
    #: hosts whose attention we ask for, sent with the next renewal
    beacon: Beacon = field(default_factory=Beacon)
    #: longest sleep (seconds) while all is well; whoever makes it longer wakes both generators when something changes
    nap: float = WATCH_TICK

    @property
    def expires(self) -> float:
        """Until then the leases are surely ours if no renewal succeeds any more."""
        return self.last_success + self.timing.renewal_fail

    def watch_pause(self, at: float) -> float:
        """Until the guard has to look again."""
        return self.nap if at + self.nap < self.last_success + self.timing.renewal_warn else WATCH_TICK

    def fail(self, reason: LeaseholdError) -> None:
        if self.failure is None:
            self.failure = reason

    def check_late(self, at: float) -> None:
        if at >= self.expires:
            self.fail(RenewalsFailed(seconds=at - self.last_success, cause=self.trouble))


class RenewalsFailed(LeaseholdError):
    code, name = -202, "AIO_TIMEOUT"
    template = "no renewal of the host lease for {seconds} s (last error: {cause})"
    advice = "check the storage: the lockspace can be joined again when it answers"


class RemovedByCommand(LeaseholdError):
    code, name = -201, "ERROR"
    template = "the lockspace is being left"


class GuardHands(Protocol):
    """What the guard's decisions are carried out by, whatever is being kept. None of these may wait for anything."""

    def warn(self, seconds: float) -> None:
        """No renewal has succeeded for so long."""

    def recovery(self, reason: LeaseholdError) -> None:
        """What is kept has failed: nothing new may rest on it, and what is held is lost."""

    def holders(self) -> list[Holder]:
        """The processes that use what is held and are still there."""

    def stop(self, holder: Holder, how: Stop) -> None: ...


class Hands(GuardHands, Protocol):
    """What the keeper's decisions about a lockspace are carried out by. None of these may wait for anything."""

    def examine(self, view: memoryview, at: float) -> Observation:
        """A lockspace area was read: take note of the other hosts."""

    def renewed(self, renewal: Renewal, expires: float) -> None:
        """A renewal succeeded, in time: move the watchdog's expiry and the leases' deadlines."""

    def renewal_failed(self, error: LeaseholdError) -> None:
        """A renewal failed. Once the lockspace has failed, the watchdog's expiry moves *back* to `Vitals.expires`."""

    def held(self) -> Iterable[Held]:
        """The leases held in this lockspace now."""

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        """This lease was taken from us: stop its holders without grace."""


def keep_renewing(lease: HostLease, member: Member, vitals: Vitals, hands: Hands) -> Steps[None]:
    """Renew until the lockspace is being left (ondisk.md 4.3)."""
    timing = vitals.timing
    #: seconds for which we stood still, as long as not every lease has been looked at since
    paused_for = 0.0

    def examine(view: memoryview, at: float) -> None:
        nonlocal paused_for
        paused_for = max(paused_for, hands.examine(view, at).paused_for)

    while not vitals.leaving:
        due = lease.last_success + timing.renewal_interval
        if vitals.trouble is None:
            while not vitals.leaving and (left := due - (yield from now())) > 0:
                yield from sleep(min(vitals.nap, left))
        yield from sleep(RENEWAL_PAUSE)
        if vitals.leaving:
            return
        try:
            renewal = yield from renew(lease, timing, vitals.beacon, examine)
        except (HostLeaseLost, BadRecord) as corruption:
            vitals.trouble = corruption
            vitals.fail(corruption)
            # What was written last is not there: perhaps it never was. Others count from the renewal before.
            vitals.last_success = min(vitals.last_success, lease.confirmed_success)
            hands.renewal_failed(corruption)
        except DiskError as trouble:
            vitals.trouble = trouble
            hands.renewal_failed(trouble)
        else:
            vitals.check_late(lease.last_success)
            if paused_for and (yield from check_leases(member, hands, paused_for)):
                paused_for = 0.0
            vitals.trouble = None
            if vitals.failure is None:  # else nothing may be put off any more, least of all the watchdog
                vitals.last_success = lease.last_success
                hands.renewed(renewal, vitals.expires)


class Paused(LeaseholdError):
    code, name = -251, "RELEASE_OWNER"
    template = "this host stood still for about {seconds} s; meanwhile: {cause}"
    advice = "others may have written to the storage; check it before the guest is started again"


def check_leases(member: Member, hands: Hands, paused_for: float) -> Steps[bool]:
    """Others' clocks moved far more than ours: look at every lease before anything else goes on. Whether all were seen.

    Better than the reference, where a virtual machine that is stopped and resumed after a take-over keeps its
    leases for good: its clock and its watchdog stood still with it.
    """
    from paxos.resource import verify_held  # needs numpy, which a process that only renews does without

    all_seen = True
    for held in list(hands.held()):
        try:
            yield from verify_held(member, held)
        except (ReleaseOwner, BadRecord) as gone:
            hands.lost(held, Paused(seconds=paused_for, cause=gone))
        except DiskError:
            all_seen = False  # not known to be lost: looked at again after the next renewal
    return all_seen


def stand_guard(vitals: Vitals, hands: GuardHands) -> Steps[LeaseholdError | None]:
    """Watch the renewals. Returns when the lockspace is being left (None), or the failure once all holders are gone."""
    timing = vitals.timing
    while True:
        if vitals.leaving:
            return None
        at = yield from now()
        vitals.check_late(at)
        if vitals.failure is not None:
            break
        if at - vitals.last_success >= timing.renewal_warn:
            hands.warn(at - vitals.last_success)
        yield from sleep(vitals.watch_pause(at))
    hands.recovery(vitals.failure)
    yield from stop_holders(vitals, hands, at_once=False)
    return vitals.failure


def stop_holders(vitals: Vitals, hands: GuardHands, at_once: bool) -> Steps[None]:
    """Stop everybody who uses leases here; returns when nobody does any more."""
    kill_from = float("-inf") if at_once else vitals.last_success + vitals.timing.sigkill
    while holders := hands.holders():
        at = yield from now()
        for holder in holders:
            how = next_stop(holder, at, kill_from)
            if how is not None:
                hands.stop(holder, how)
        yield from sleep(RECOVERY_TICK)


def next_stop(holder: Holder, at: float, kill_from: float) -> Stop | None:
    """What to do to a holder now, noted in it; None: nothing yet, or nothing any more (daemon.md section 10)."""
    if holder.stuck or at - holder.last_signal < SIGNAL_INTERVAL:
        return None
    if at < kill_from and holder.has_kill_path:
        if holder.kill_path_begun:
            return None
        holder.kill_path_begun = True
        return Stop.KILL_PATH
    how = Stop.TERMINATE if at < kill_from else Stop.KILL
    if how is Stop.KILL and holder.never_kill:
        how = Stop.TERMINATE
    if how is Stop.TERMINATE and holder.never_terminate:
        how = Stop.KILL
    holder.signals += 1
    holder.last_signal = at
    return how
