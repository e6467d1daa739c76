"""What must never happen, looked at on every event and not at the end.

A rule is a small class with any of the methods below; the judge calls the ones it has. A rule that is broken
raises Violation at that moment, with the trace still showing how it came about.

    asked(task, step)              an I/O was asked for
    landed(task, offset, data, before, late)
                                   bytes of the disk changed; late: nobody waits for this write any more, or it
                                   went astray
    astray(task, offset, data)     (before that) a write lands where it was not meant to
    misled(task)                   a read shows other bytes than those that lie where it was meant to look
    granted(holding)               a client has got a lease, as it sees it
    letting_go(holding)            its client begins to release it, or has been told that it is lost
    released(holding)              its host begins to give it back on the disk
    gone(holding)                  the holder was killed, or its machine reset
    joined(member) / left(member)  a process believes to own a host id / no longer
    laid_out(area)                 an area (0: the lockspace) was initialised anew under everybody
    settled(area)                  what is left on the disk is of the new area alone

Hosts of the reference are judged too, but what they do among themselves is not leasehold's fault: a rule that is
broken with nobody else taking part is counted and told as the reference's, and the run goes on (`Judge.forgive`).

An area that is initialised anew takes away what everybody relied on. What can still be asked for is this: those who
got a lease when nothing of before was left, no operation, no membership, no holder and no write in flight, are
protected from each other as ever. Holdings from before that are `exposed`, and no rule counts one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leases.sim.blame import Blame
from paxos.records import Block, Leader

if TYPE_CHECKING:
    from leases.sim.layout import Layout
    from leases.sim.machine import Machine, Process, Task
    from paxos.steps import Read, Write


class Violation(Exception):
    """A rule was broken: `rule` is its name, `detail` the facts, `reference`: only hosts of the reference took part."""

    def __init__(self, rule: str, detail: str, *, reference: bool = False) -> None:
        super().__init__(f"{'among hosts of the reference: ' if reference else ''}{rule}: {detail}")
        self.rule = rule
        self.detail = detail
        self.reference = reference

    def __reduce__(self) -> tuple[Any, ...]:
        return _violation, (self.rule, self.detail, self.reference)


def _violation(rule: str, detail: str, reference: bool) -> Violation:
    return Violation(rule, detail, reference=reference)


@dataclass(eq=False, slots=True)
class Holding:
    """A lease as its client sees it, from the moment it was granted until the client lets go or is gone."""

    resource: int
    exclusive: bool
    process: Process
    host_id: int
    generation: int
    #: the fencing token: grows with every exclusive grant of the resource
    token: int
    #: the machine's boot in which it was granted
    boots: int = field(init=False)
    #: true time of the grant
    since: float = field(init=False)
    #: got, or already held, while something was left of an area that was initialised anew
    exposed: bool = False
    #: beside it another host of the reference holds the lease, by the reference's own doing
    doubled: bool = False

    def __post_init__(self) -> None:
        self.boots = self.machine.boots
        self.since = self.machine.world.now

    @property
    def reference(self) -> bool:
        return self.process.reference

    @property
    def machine(self) -> Machine:
        return self.process.machine

    def __str__(self) -> str:
        mode = "exclusive" if self.exclusive else "shared"
        return f"r{self.resource} {mode} token {self.token} by {self.process.name} of h{self.machine.number}"


@dataclass(eq=False, slots=True)
class Membership:
    """A process that believes to own a host id."""

    process: Process
    host_id: int
    generation: int
    #: the machine's boot in which it joined
    boots: int = field(init=False)

    def __post_init__(self) -> None:
        self.boots = self.process.machine.boots


#: tells whether something from before an area was initialised anew is still there
Remains = Callable[[], bool]


class Judge:
    """Passes events to the rules, and knows who holds what."""

    def __init__(self, rules: Iterable[Any], forgive: Callable[[Violation], None] | None = None) -> None:
        self.rules = list(rules)
        #: given each violation that is the reference's alone; without it those are raised like all others
        self.forgive = forgive
        self.holdings: dict[Holding, None] = {}
        self.members: dict[Membership, None] = {}
        self.grants = 0
        self._remains: dict[int, list[Remains]] = {}
        self.asked: Callable[..., None] = self._all("asked")
        self.landed: Callable[..., None] = self._all("landed")
        self.astray: Callable[..., None] = self._all("astray")
        self.misled: Callable[..., None] = self._all("misled")
        self._laid_out = self._all("laid_out")
        self._settled = self._all("settled")
        self._granted = self._all("granted")
        self._letting_go = self._all("letting_go")
        self._released = self._all("released")
        self._gone = self._all("gone")
        self._joined = self._all("joined")
        self._left = self._all("left")

    def granted(self, holding: Holding) -> None:
        self.grants += 1
        if self._remains and not (self.is_settled(0) and self.is_settled(holding.resource)):
            holding.exposed = True
        self._granted(holding)
        self.holdings[holding] = None

    def letting_go(self, holding: Holding) -> None:
        if self.holdings.pop(holding, 0) is None:
            self._letting_go(holding)

    def released(self, holding: Holding) -> None:
        self._released(holding)

    def joined(self, member: Membership) -> None:
        self._joined(member)
        self.members[member] = None

    def left(self, member: Membership) -> None:
        if self.members.pop(member, 0) is None:
            self._left(member)

    def process_ended(self, process: Process) -> None:
        """What this process held it holds no longer; nobody has released it."""
        for holding in [holding for holding in self.holdings if holding.process is process]:
            del self.holdings[holding]
            self._gone(holding)
        for member in [member for member in self.members if member.process is process]:
            self.left(member)

    def laid_out(self, area: int, remains: Iterable[Remains] = ()) -> None:
        """An area was initialised anew. `remains`: what has to end before nothing of before is left."""
        self._remains.setdefault(area, []).extend(remains)
        for holding in self.holdings:
            holding.exposed |= area in (0, holding.resource)
        self._laid_out(area)

    def is_settled(self, area: int) -> bool:
        """Whether nothing is left of what was before the area was initialised anew, if ever it was."""
        if area in self._remains:
            left = [remains for remains in self._remains[area] if remains()]
            if left:
                self._remains[area] = left
                return False
            del self._remains[area]
            self._settled(area)
        return True

    def _all(self, name: str) -> Callable[..., None]:
        methods = [getattr(rule, name) for rule in self.rules if hasattr(rule, name)]

        def call(*arguments: Any) -> None:
            for method in methods:
                try:
                    method(*arguments)
                except Violation as broken:
                    if not broken.reference or self.forgive is None:
                        raise
                    self.forgive(broken)

        return call


class OneOwner:
    """At most one exclusive holder, and never a shared one beside it.

    A holder whose machine stood still with its clock, and has not renewed since, does not count once others got the
    lease: it can't know, and they can't (docs/safety.md).
    """

    def __init__(self, blame: Blame | None = None) -> None:
        self._blame = blame or Blame()
        self._holders: dict[int, dict[Holding, None]] = {}

    def granted(self, holding: Holding) -> None:
        holders = self._holders.setdefault(holding.resource, {})
        others = [other for other in holders if holding.exclusive or other.exclusive]
        holders[holding] = None
        for other in others:
            if _uncounted(holding, other):
                continue
            if other.machine.watchdog.misled_by_clock:
                other.doubled = True
                continue
            reference = self._blame.explains(holding, other)
            if reference:
                other.doubled = True
                holding.doubled = not self._blame.lost_its_mark(other)
            raise Violation("one owner", f"{holding} was granted while {other} is held", reference=reference)

    def letting_go(self, holding: Holding) -> None:
        self._holders.get(holding.resource, {}).pop(holding, None)

    gone = letting_go


def _uncounted(one: Holding, other: Holding) -> bool:
    """Whether two holdings may meet by what re-initialising, or the reference's own double, did to one of them."""
    return one.exposed or other.exposed or one.doubled or other.doubled


class WatchdogFirst:
    """No grant before the watchdog of an owner that did not release has had to fire.

    Where the owner's clock stood still with its machine nobody else can know how long its watchdog will be fed: such a
    host looks at its leases itself when it wakes (docs/safety.md), and only the rule of one owner is asked for.
    """

    def __init__(self, blame: Blame | None = None) -> None:
        self._blame = blame or Blame()
        self._owed: dict[int, dict[Holding, None]] = {}

    def granted(self, holding: Holding) -> None:
        owed = self._owed.setdefault(holding.resource, {})
        early: Holding | None = None
        for other in list(owed):
            machine = other.machine
            if machine is holding.machine or machine.boots != other.boots or _uncounted(holding, other):
                del owed[other]
            elif machine.watchdog.misled_by_clock:
                continue
            elif machine.world.now < machine.watchdog.deadline:
                if holding.exclusive or other.exclusive:
                    early = other
            else:
                del owed[other]
        owed[holding] = None
        if early is not None:
            left = early.machine.watchdog.deadline - early.machine.world.now
            raise Violation(
                "watchdog first",
                f"{holding} was granted {left:.1f} s before the watchdog over {early} has to fire",
                reference=self._blame.explains(holding, early),
            )

    def released(self, holding: Holding) -> None:
        self._owed.get(holding.resource, {}).pop(holding, None)

    def laid_out(self, area: int) -> None:
        if area == 0:
            self._owed.clear()
        self._owed.pop(area, None)


class Tokens:
    """A fencing token never repeats or goes back.

    An exclusive grant's is larger than all before it. A shared one's is larger than that of every exclusive grant
    before it; one that was converted from exclusive keeps its own.
    """

    def __init__(self, blame: Blame | None = None) -> None:
        self._blame = blame or Blame()
        self._largest: dict[int, Holding] = {}
        self._exclusive: dict[int, Holding] = {}

    def granted(self, holding: Holding) -> None:
        before = self._largest if holding.exclusive else self._exclusive
        last = before.get(holding.resource)
        if holding.exposed:
            return
        if holding.exclusive:
            self._exclusive[holding.resource] = holding
        largest = self._largest.get(holding.resource)
        if largest is None or holding.token > largest.token:
            self._largest[holding.resource] = holding
        if last is not None and holding.token <= last.token:
            converted = not holding.exclusive and holding.token == last.token and holding.process is last.process
            if not converted:
                self._largest[holding.resource] = holding
                raise Violation(
                    "tokens grow",
                    f"{holding} was granted after {last}",
                    reference=(holding.reference and last.reference)
                    or self._blame.taken_back(holding.resource, last.since),
                )

    def laid_out(self, area: int) -> None:
        self._largest.pop(area, None)
        self._exclusive.pop(area, None)


class Places:
    """Every I/O is aligned and inside one area, and a host writes only sectors that are its to write."""

    def __init__(self, layout: Layout) -> None:
        self._sector = layout.geometry.sector_size
        self._align = layout.geometry.align_size
        self._size = layout.size
        self._layout = layout

    def asked(self, task: Task, step: Read | Write) -> None:
        data = getattr(step, "data", None)
        length = step.length if data is None else len(data)  # type: ignore[union-attr]
        offset = step.offset
        if offset % self._sector or length % self._sector or not length:
            raise Violation("aligned", f"{task.name} asked for {length} bytes at {offset}")
        inside = offset % self._align
        if inside + length > self._align or offset < 0 or offset + length > self._size:
            raise Violation("inside its area", f"{task.name} asked for {length} bytes at {offset}")
        if step.timeout <= 0:
            raise Violation("timeouts", f"{task.name} asked for an I/O with timeout {step.timeout}")
        if data is not None:
            self._may_write(task, offset, data)

    def _may_write(self, task: Task, offset: int, data: bytes) -> None:
        area, sector = self._layout.where(offset)
        host_id = task.process.host_id
        if len(data) != self._sector:
            raise Violation("own sectors", f"{task.name} writes {len(data)} bytes at {offset}")
        if area == 0:
            if sector != host_id - 1:
                raise Violation("own sectors", f"{task.name} writes the delta lease of host {sector + 1}")
        elif sector >= 2 and sector != host_id + 1 and any(data):
            raise Violation("own sectors", f"{task.name} writes sector {sector} of r{area}")


class _Unsettled:
    """Areas in which something is left of before they were initialised anew: nothing in them is judged."""

    def __init__(self) -> None:
        self.unsettled: set[int] = set()

    def laid_out(self, area: int) -> None:
        self.unsettled.add(area)

    def settled(self, area: int) -> None:
        self.unsettled.discard(area)


class BlocksGrow(_Unsettled):
    """mbal, and lver, of a leasehold host's block only grow, as far as its live writes go.

    A late write may set a block back: that is the disk's doing, and what the protocol has to live with.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self._last: dict[tuple[int, int], Block] = {}

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector < 2:
            return
        block = Block.unpack(data)
        if block.unused or not block.mbal or task.process.reference or area in self.unsettled:
            self._last.pop((area, sector), None)  # cleared by another host, or erased
            return
        last = self._last.get((area, sector))
        if late:
            return
        if last is not None and (block.mbal < last.mbal or block.lver < last.lver):
            raise Violation(
                "blocks grow",
                f"{task.name} wrote mbal {block.mbal} lver {block.lver} into sector {sector} of r{area}"
                f" after mbal {last.mbal} lver {last.lver}",
            )
        self._last[area, sector] = block

    def laid_out(self, area: int) -> None:
        super().laid_out(area)
        for place in [place for place in self._last if place[0] == area]:
            del self._last[place]


class Decided(_Unsettled):
    """What was decided for a version stays decided: every leader written for it names the same owner."""

    #: versions remembered for each resource
    KEEP = 256

    def __init__(self, layout: Layout, blame: Blame | None = None) -> None:
        super().__init__()
        self._layout = layout
        self._blame = blame or Blame()
        #: by resource and version: the owner's host id and generation, whether a host of the reference said so, when
        self._owners: dict[int, dict[int, tuple[int, int, bool, float]]] = {}

    def asked(self, task: Task, step: Read | Write) -> None:
        data = getattr(step, "data", None)
        if data is None:
            return
        area, sector = self._layout.where(step.offset)
        if area == 0 or sector != 0 or area in self.unsettled:
            return
        reference = task.process.reference
        leader = Leader.unpack(data)
        if not leader.owner_id:
            return
        owners = self._owners.setdefault(area, {})
        owner = (leader.owner_id, leader.owner_generation, reference, task.world.now)
        decided = owners.setdefault(leader.lver, owner)
        if decided[:2] != owner[:2]:
            owners[leader.lver] = owner
            raise Violation(
                "decided stays decided",
                f"{task.name} writes owner {owner[0]}/{owner[1]} for version {leader.lver} of r{area},"
                f" which was decided for {decided[0]}/{decided[1]}",
                reference=(reference and decided[2]) or self._blame.taken_back(area, decided[3]),
            )
        if len(owners) > self.KEEP:
            for lver in sorted(owners)[: self.KEEP // 2]:
                del owners[lver]

    def laid_out(self, area: int) -> None:
        super().laid_out(area)
        self._owners.pop(area, None)


class OneMember(_Unsettled):
    """A host id has one owner at a time, and each owner of it a larger generation than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[int, dict[Membership, None]] = {}
        self._generations: dict[int, int] = {}

    def joined(self, member: Membership) -> None:
        if self.unsettled:
            return
        owners = self._owners.setdefault(member.host_id, {})
        for other in owners:
            raise Violation(
                "one owner for a host id",
                f"{_place(member)} joined as host {member.host_id} beside {_place(other)}",
            )
        if member.generation <= self._generations.get(member.host_id, 0):
            raise Violation(
                "generations grow",
                f"{_place(member)} joined as host {member.host_id} with generation {member.generation}",
            )
        self._generations[member.host_id] = member.generation
        owners[member] = None

    def left(self, member: Membership) -> None:
        self._owners.get(member.host_id, {}).pop(member, None)

    def laid_out(self, area: int) -> None:
        if area == 0:
            super().laid_out(area)
            self._owners.clear()
            self._generations.clear()


def _place(member: Membership) -> str:
    return f"{member.process.name} of h{member.process.machine.number}"


def all_rules(layout: Layout) -> list[Any]:
    """Every rule, fresh."""
    blame = Blame(layout)
    return [
        blame,
        OneOwner(blame),
        WatchdogFirst(blame),
        Tokens(blame),
        Places(layout),
        BlocksGrow(layout),
        Decided(layout, blame),
        OneMember(),
    ]
