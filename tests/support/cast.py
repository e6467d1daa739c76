"""The hosts of a story: the keeper's real decisions, the real protocols, and clients who use what they hold.

A host by the reference's rules takes and gives back resource leases as leases/sim/reference.py does. Of the keeper's
improvements it has none: it neither heals its host lease from a predecessor's late renewal, nor looks for pauses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from leases.keeper.decisions import Holder, Stop, Vitals, keep_renewing, stand_guard, stop_holders
from leases.sim import reference
from paxos import host_lease, request, resource
from paxos.errors import (
    AlreadyHeld,
    BadRecord,
    DiskError,
    HeldElsewhere,
    InvalidUse,
    LeaseholdError,
    NotHeld,
    NotJoined,
    ReleaseOwner,
    TryAgain,
    WriteUnsettled,
)
from paxos.host_lease import Beacon, HostLease, Renewal
from paxos.lease_area import LeaseArea
from paxos.liveness import HostTable, Member
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.request import Force
from paxos.resource import Held, Want
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Sleep, Steps
from paxos.timing import Timing
from tests.support.memory import Landed
from tests.support.stage import Machine, Stage, Task

if TYPE_CHECKING:
    from tests.support.plot import Story


@dataclass(eq=False)
class Use:
    """A client that uses a lease on its host."""

    lease: LeaseArea
    held: Held
    client: Holder


@dataclass(frozen=True)
class Work:
    """Something a host does: its steps, and what becomes of their result or failure."""

    steps: Steps[Any]
    done: Callable[[Any], None]
    failed: Callable[[LeaseholdError], None]
    #: what is to be done however it ends
    ended: Callable[[], None] = lambda: None


@dataclass
class Doubt:
    """What an I/O error left open: the I/O in flight, and the lease that we hold at least (converting)."""

    pending: list[Pending] = field(default_factory=list)
    keep: Held | None = None


def number(error: LeaseholdError) -> str:
    return f"{type(error).__name__} {error.code}: {error}"


class Host:
    """One machine with its lease program. The keeper's decisions are carried out here (`Hands`)."""

    def __init__(self, story: Story, host_id: int, name: str, label: str, io_timeout: int) -> None:
        self.story = story
        self.stage: Stage = story.stage
        self.host_id = host_id
        self.name = name
        self.label = label
        self.reference = False
        self.timing = Timing(io_timeout)
        self.machine: Machine = story.stage.machine(label, 1000.0 * host_id)
        self.area: LockspaceArea = story.area
        self.dice = random.Random(host_id)
        self.obedient = True
        self._clients = 0
        self._forget()

    def _forget(self) -> None:
        self.member: Member | None = None
        self.lease: HostLease | None = None
        self.vitals: Vitals | None = None
        self.uses: list[Use] = []
        self.doubts: dict[LeaseArea, Doubt] = {}
        #: leases with an operation under way
        self.busy: set[LeaseArea] = set()
        #: the operation that the story drives by hand, or that goes on beside it
        self.begun: Task | None = None
        self._watchdog: Task | None = None
        self._watchdog_expires = 0.0
        self._told: set[str] = set()
        #: whether the operation that ended last had begun to write
        self._wrote = False
        self._calls: dict[int, float] = {}
        self._answered: dict[int, float] = {}
        self.renewals = 0

    def say(self, text: str) -> None:
        self.story.say(f"{self.label} {text}")

    # --- what the story lets it do ---

    def start(self, work: Work) -> Task:
        def ended(task: Task) -> None:
            work.ended()
            self._wrote = task.wrote
            if self.begun is task:
                self.begun = None
            if task.failure is None:
                work.done(task.result)
            else:
                assert isinstance(task.failure, LeaseholdError)
                work.failed(task.failure)

        return self.stage.begin(self.machine, work.steps, ended)

    def begin(self, work: Work, by_hand: bool) -> None:
        assert self.begun is None, f"{self.label} has begun something already"
        task = self.start(work)
        if task.step is not None:
            task.by_hand = by_hand
            self.begun = task

    def refused(self, error: LeaseholdError) -> None:
        self.say(number(error))

    def join(self) -> Work:
        return Work(self._join(), lambda text: self.say(text), self.refused)

    def _join(self) -> Steps[str]:
        assert self.member is None, f"{self.label} has joined already"
        lease = yield from host_lease.acquire(self.area, self.host_id, self.name.encode(), self.timing)
        if self.reference:
            lease.previous = lease.previous.changed(timestamp=0)  # it knows no predecessor
        self._told.clear()
        self.lease = lease
        self.vitals = Vitals(self.timing, lease.last_success)
        hosts = HostTable(self.area, self.host_id, self.timing)
        self.member = Member(self.area, self.host_id, lease.generation, self.timing, hosts, self.dice)
        self._feed(self.vitals.expires)
        renewing = self.stage.begin(self.machine, keep_renewing(lease, self.member, self.vitals, self), lambda _: None)
        self.stage.begin(self.machine, stand_guard(self.vitals, self), lambda task: self._guard_ended(task, renewing))
        while not hosts.examined and self.member is not None:
            yield Sleep(0.25)
        return f"joined as {self.name}, generation {lease.generation}"

    def leave(self) -> Work:
        def left(_: Any) -> None:
            self._forget()
            self.say("left")

        return Work(self._leave(), left, self.refused)

    def _leave(self) -> Steps[None]:
        self._require_member()
        assert self.vitals is not None and self.lease is not None
        self.vitals.leaving = True
        yield from stop_holders(self.vitals, self, at_once=True)
        yield Sleep(1.0)  # its renewals have ended by then
        yield from host_lease.release(self.lease, self.timing)

    def acquire(self, lease: LeaseArea, want: Want) -> Work:
        by = reference if self.reference else resource

        def steps() -> Steps[Held]:
            member = self._require_free(lease)
            held: Held = yield from by.acquire(member, lease, want)
            return held

        return self._on(lease, steps(), lambda held: self._granted(lease, held), self._failed(lease))

    def release(self, lease: LeaseArea, value: str | None = None) -> Work:
        use = self._use_of(lease)

        def failed(error: LeaseholdError) -> None:
            if isinstance(error, InvalidUse) and use:
                self.uses.append(use)  # nothing was written: it is held as before
            self._failed(lease)(error)

        def steps() -> Steps[None]:
            member = self._require_member()
            if use is None:
                raise NotHeld(resource=lease.name)
            self.uses.remove(use)
            if self.reference:
                yield from reference.release(member, use.held)
            else:
                yield from resource.release(member, use.held, None if value is None else value.encode())

        return self._on(lease, steps(), lambda _: self.say(f"released {_text(lease)}"), failed)

    def convert(self, lease: LeaseArea, shared: bool) -> Work:
        """Between the modes a lease is at least shared, so that is what it is if this fails."""
        assert not self.reference, "the reference's model has no conversions"
        use = self._use_of(lease)

        def steps() -> Steps[Held]:
            member = self._require_free(lease, but=use)
            if use is None:
                raise NotHeld(resource=lease.name)
            before = use.held
            use.held = replace(before, shared=True)
            if shared:
                return (yield from resource.convert_to_shared(member, before))
            return (yield from resource.convert_to_exclusive(member, before, nowait=True))

        def failed(error: LeaseholdError) -> None:
            self.say(f"stays at {_mode(use.held) if use else 'nothing'}: {number(error)}")
            if isinstance(error, ReleaseOwner) and use in self.uses:
                self.lost(use.held, error)
            elif use and (isinstance(error, DiskError) or (self._wrote and isinstance(error, BadRecord))):
                self._in_doubt(lease, error, use.held)

        return self._on(lease, steps(), lambda held: self._granted(lease, held, use), failed)

    def verify(self, lease: LeaseArea) -> Work:
        def steps() -> Steps[None]:
            use = self._use_of(lease)
            if use is None:
                raise NotHeld(resource=lease.name)
            yield from resource.verify_held(self._require_member(), use.held)

        return self._on(lease, steps(), lambda _: self.say(f"still holds {_text(lease)}, by the disk"), self.refused)

    def settle(self, lease: LeaseArea) -> Work:
        """Leasehold's clean-up after an I/O error; it waits for what is in flight."""
        doubt = self.doubts.get(lease)

        def steps() -> Steps[None]:
            if doubt is not None:
                yield from settle(self._require_member(), lease, doubt.pending, doubt.keep)

        def done(_: Any) -> None:
            self.doubts.pop(lease, None)
            self.say(f"has settled {_text(lease)}" if doubt else f"has nothing to settle of {_text(lease)}")

        def failed(error: LeaseholdError) -> None:
            pending = pending_of(error) if isinstance(error, DiskError) else None
            if doubt and pending and pending not in doubt.pending:
                doubt.pending.append(pending)
            if isinstance(error, BadRecord):  # what is no lease any more is nothing to settle
                self.doubts.pop(lease, None)
                self.say(f"gives up settling {_text(lease)}: {number(error)}")
                return
            self.say(f"can't settle {_text(lease)} yet: {number(error)}")

        return self._on(lease, steps(), done, failed)

    def change(self, guard: LeaseArea, steps: Callable[[Member], Steps[Any]], done: Callable[[Any], None]) -> Work:
        """Change the index, under its guard."""

        def guarded() -> Steps[Any]:
            return (yield from steps(self._require_free(guard)))

        return self._on(guard, guarded(), done, self._failed(guard))

    def ask(self, lease: LeaseArea, lver: int | None, force: Force) -> Work:
        clear = lver == 0 and force is Force.NONE

        def asked(result: request.Asked) -> None:
            if result.owner:
                self._calls[result.owner] = self.machine.clock + self.timing.bitmap_life
                self._set_beacon()
            nobody = "has taken its request back" if clear else "finds nobody to ask"
            self.say(f"asks h{result.owner}.{result.generation} for it" if result.owner else nobody)

        def steps() -> Steps[request.Asked]:
            self._require_member()
            return (yield from request.request(lease, lver, force, self.timing.io_timeout))

        return Work(steps(), asked, self.refused)

    # --- what each operation has in common ---

    def _require_member(self) -> Member:
        if self.member is None or self.vitals is None or self.vitals.failure is not None:
            raise NotJoined(lockspace=self.area.name)
        return self.member

    def _require_free(self, lease: LeaseArea, but: Use | None = None) -> Member:
        member = self._require_member()
        if lease in self.doubts:
            raise WriteUnsettled(resource=lease.name)
        use = self._use_of(lease)
        if use is not None and use is not but:
            raise AlreadyHeld(resource=lease.name)
        return member

    def _on(
        self,
        lease: LeaseArea,
        steps: Generator[Any, Any, Any],
        done: Callable[[Any], None],
        failed: Callable[[LeaseholdError], None],
    ) -> Work:
        assert lease not in self.busy, f"{self.label} is busy with {_text(lease)}"
        self.busy.add(lease)
        return Work(steps, done, failed, lambda: self.busy.discard(lease))

    def _use_of(self, lease: LeaseArea) -> Use | None:
        return next((use for use in self.uses if use.lease == lease), None)

    def _granted(self, lease: LeaseArea, held: Held, use: Use | None = None) -> None:
        if use is None:
            self._clients += 1
            use = Use(lease, held, Holder(self._clients))
            known = False
            self.uses.append(use)
        else:
            known = use.held.lver == held.lver
        use.held = held
        self.say(f"holds {_text(lease)} {_mode(held)}: lver {held.lver}, h{held.host_id}.{held.generation}")
        self.story.granted(self, use, known)

    def _failed(self, lease: LeaseArea) -> Callable[[LeaseholdError], None]:
        def failed(error: LeaseholdError) -> None:
            self.refused(error)
            tidied_up = isinstance(error, HeldElsewhere | TryAgain | ReleaseOwner | InvalidUse)
            if not self.reference and (isinstance(error, DiskError) or (self._wrote and not tidied_up)):
                self._in_doubt(lease, error, None)

        return failed

    def _in_doubt(self, lease: LeaseArea, error: LeaseholdError, keep: Held | None) -> None:
        pending = pending_of(error) if isinstance(error, DiskError) else None
        self.doubts[lease] = Doubt([pending] if pending else [], keep)
        open_ = f"{str(self.stage.what(pending.step)).partition(' ')[2]} in flight" if pending else "nothing in flight"
        self.say(f"has {_text(lease)} in doubt: {open_}")

    # --- death and other misfortunes ---

    def kill(self) -> None:
        """The power is cut."""
        self.machine.switch_off()
        self._forget()

    def _feed(self, expires: float) -> None:
        self._watchdog_expires = expires
        if self._watchdog is None:
            task = self.stage.begin(self.machine, self._bark(), lambda _: None)
            task.hardware = True
            self._watchdog = task

    def _bark(self) -> Steps[None]:
        while (left := self._watchdog_expires + self.timing.fire_timeout - self.machine.clock) > 0:
            yield Sleep(left)
        if self._watchdog is not None:
            self.say("is reset by its watchdog")
            self.kill()

    def _guard_ended(self, guard: Task, renewing: Task) -> None:
        if guard.result is not None:
            renewing.step = None
            self._forget()
            self.say("has no users left: its watchdog is disarmed, it is no member any more")

    # --- Hands ---

    def examine(self, view: memoryview, at: float) -> Observation:
        assert self.member is not None
        observation = self.member.hosts.observe(view, at)
        for caller in observation.calling:
            if at - self._answered.get(caller, float("-inf")) >= self.timing.bitmap_life:
                self._answered[caller] = at
                self.stage.begin(self.machine, self._look_at_requests(), lambda _: None)
        if observation.paused_for and self.uses and not self.reference:
            self.say(f"may have stood still for about {observation.paused_for:.0f} s, and looks at its leases")
        return replace(observation, paused_for=0.0) if self.reference else observation

    def _look_at_requests(self) -> Steps[None]:
        for use in list(self.uses):
            force = yield from request.examine(use.held, self.timing.io_timeout)
            if force is not Force.NONE:
                self.say(f"is asked for {_text(use.lease)}, lver {use.held.lver}")
                self.stop(use.client, Stop.KILL if force is Force.FORCE else Stop.TERMINATE)

    def renewed(self, renewal: Renewal, expires: float) -> None:
        self.renewals += 1
        self._told = {text for text in self._told if not text.startswith("could not renew")}
        self._feed(expires)
        self._set_beacon()
        if renewal.healed is not None:
            late = renewal.healed
            self.say(f"writes over a late renewal of generation {late.owner_generation}, of {late.timestamp}")

    def _set_beacon(self) -> None:
        if self.vitals is not None:
            calls = frozenset(host for host, until in self._calls.items() if until > self.machine.clock)
            self.vitals.beacon = Beacon(calls)

    def renewal_failed(self, error: LeaseholdError) -> None:
        self.renewals += 1
        self._say_once(f"could not renew: {number(error)}")

    def held(self) -> Iterable[Held]:
        return [use.held for use in self.uses]

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        for use in [use for use in self.uses if use.held is held]:
            self.say(f"has lost {_text(use.lease)}: {number(reason)}")
            self.uses.remove(use)

    def warn(self, seconds: float) -> None:
        self.say(f"warns: no renewal for {seconds:.1f} s")

    def recovery(self, reason: LeaseholdError) -> None:
        self.say(f"gives up the lockspace: {number(reason)}")

    def holders(self) -> list[Holder]:
        return [use.client for use in self.uses]

    def stop(self, holder: Holder, how: Stop) -> None:
        use = next(use for use in self.uses if use.client is holder)
        self._say_once(f"sends {how.value} to the user of {_text(use.lease)}")
        if not self.obedient and how is not Stop.KILL:
            return
        assert self.vitals is not None
        if self.vitals.failure is None and not self.vitals.leaving:
            self.start(self.release(use.lease))
        else:
            self.uses.remove(use)  # what is held in a lost lockspace is given back by nobody

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(text)

    # --- how it is ---

    def state(self) -> str:
        who = "" if self.name == self.label else f"{self.name}: "
        if not self.machine.on:
            return f"{who}off"
        if self.member is None or self.lease is None:
            return f"{who}on, not joined"
        ago = self.machine.clock - self.lease.last_success
        words = [f"{who}generation {self.member.generation}, renewed {ago:.1f} s ago"]
        if self.vitals is not None and self.vitals.failure is not None:
            words.append("lockspace lost")
        if self.machine.suspended:
            words.append("suspended")
        words += [f"holds {_text(use.lease)} {_mode(use.held)} lver {use.held.lver}" for use in self.uses]
        for lease, doubt in self.doubts.items():
            flying = sum(not pending.landed for pending in doubt.pending if isinstance(pending, Landed))
            words.append(f"{_text(lease)} in doubt ({flying} in flight)")
        others = [
            f"h{seen.host_id} {self.member.hosts.state(seen.host_id, self.machine.clock).name}"
            for seen in self.member.hosts.used()
            if seen.host_id != self.host_id
        ]
        return ", ".join(words + (["sees " + " ".join(others)] if others else []))


def _text(lease: LeaseArea) -> str:
    return lease.name.decode()


def _mode(held: Held) -> str:
    return "shared" if held.shared else "exclusive"
