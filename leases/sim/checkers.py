"""What must never happen, looked at on every event and not at the end.

A rule is a small class with any of the methods below; the judge calls the ones it has. A rule that is broken
raises Violation at that moment, with the trace still showing how it came about.

    asked(task, step)              an I/O was asked for
    landed(task, offset, data, before, late)
                                   bytes of the disk changed; late: nobody waits for this write any more
    granted(holding)               a client has got a lease, as it sees it
    letting_go(holding)            its client begins to release it, or has been told that it is lost
    released(holding)              its host begins to give it back on the disk
    gone(holding)                  the holder was killed, or its machine reset
    joined(member) / left(member)  a process believes to own a host id / no longer
    laid_out()                     the volume was initialised anew under everybody
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paxos.records import Block, Leader
from paxos.timing import Timing

if TYPE_CHECKING:
    from leases.sim.layout import Layout
    from leases.sim.machine import Machine, Process, Task
    from paxos.steps import Read, Write


class Violation(Exception):
    """A rule was broken: `rule` is its name, `detail` the facts."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


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

    def __post_init__(self) -> None:
        self.boots = self.machine.boots

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


class Judge:
    """Passes events to the rules, and knows who holds what."""

    def __init__(self, rules: Iterable[Any]) -> None:
        self.rules = list(rules)
        self.holdings: dict[Holding, None] = {}
        self.members: dict[Membership, None] = {}
        self.grants = 0
        self.asked: Callable[..., None] = self._all("asked")
        self.landed: Callable[..., None] = self._all("landed")
        self.laid_out: Callable[..., None] = self._all("laid_out")
        self._granted = self._all("granted")
        self._letting_go = self._all("letting_go")
        self._released = self._all("released")
        self._gone = self._all("gone")
        self._joined = self._all("joined")
        self._left = self._all("left")

    def granted(self, holding: Holding) -> None:
        self.grants += 1
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

    def _all(self, name: str) -> Callable[..., None]:
        methods = [getattr(rule, name) for rule in self.rules if hasattr(rule, name)]
        if len(methods) == 1:
            return methods[0]  # type: ignore[no-any-return]

        def call(*arguments: Any) -> None:
            for method in methods:
                method(*arguments)

        return call


class OneOwner:
    """At most one exclusive holder, and never a shared one beside it."""

    def __init__(self) -> None:
        self._holders: dict[int, dict[Holding, None]] = {}

    def granted(self, holding: Holding) -> None:
        holders = self._holders.setdefault(holding.resource, {})
        for other in holders:
            if holding.exclusive or other.exclusive:
                raise Violation("one owner", f"{holding} was granted while {other} is held")
        holders[holding] = None

    def letting_go(self, holding: Holding) -> None:
        self._holders.get(holding.resource, {}).pop(holding, None)

    gone = letting_go


class WatchdogFirst:
    """No grant before the watchdog of an owner that did not release has had to fire."""

    def __init__(self) -> None:
        self._owed: dict[int, dict[Holding, None]] = {}

    def granted(self, holding: Holding) -> None:
        owed = self._owed.setdefault(holding.resource, {})
        for other in list(owed):
            machine = other.machine
            if machine is holding.machine or machine.boots != other.boots:
                del owed[other]
            elif machine.world.now < machine.watchdog.deadline:
                if holding.exclusive or other.exclusive:
                    left = machine.watchdog.deadline - machine.world.now
                    raise Violation(
                        "watchdog first",
                        f"{holding} was granted {left:.1f} s before the watchdog over {other} has to fire",
                    )
            else:
                del owed[other]
        owed[holding] = None

    def released(self, holding: Holding) -> None:
        self._owed.get(holding.resource, {}).pop(holding, None)


class DeadFirst:
    """A host's silence proves its death after `host_dead` (by its own io_timeout), never sooner.

    Its watchdog has fired somewhat earlier, but nobody may count on that: what lies between pays for clocks that run
    apart. So neither a lease nor a host id changes hands before that long after the old owner's last renewal.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._owed: dict[int, dict[Holding, None]] = {}
        #: by host id and generation, when its record first and last changed, and the record then
        self._records: dict[int, dict[int, tuple[float, float, Leader]]] = {}
        self._members: dict[int, Membership] = {}

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area or late:
            return
        record, now = Leader.unpack(data), task.world.now
        records = self._records.setdefault(sector + 1, {})
        first, _, _ = records.get(record.owner_generation, (now, now, record))
        records[record.owner_generation] = (first, now, record)

    def granted(self, holding: Holding) -> None:
        owed = self._owed.setdefault(holding.resource, {})
        for other in list(owed):
            machine = other.machine
            if machine is holding.machine or machine.boots != other.boots:
                del owed[other]
            elif holding.exclusive or other.exclusive:
                self._check(other.host_id, other.generation, machine, holding.machine, str(holding))
        owed[holding] = None

    def released(self, holding: Holding) -> None:
        self._owed.get(holding.resource, {}).pop(holding, None)

    def joined(self, member: Membership) -> None:
        before = self._members.get(member.host_id)
        self._members[member.host_id] = member
        if before is None or before.process.machine.boots != before.boots:
            return
        records = self._records[member.host_id]
        (began, _, new), (_, _, old) = records[member.generation], records[before.generation]
        if new.resource_name != old.resource_name:
            machine = before.process.machine
            self._check(member.host_id, before.generation, machine, member.process.machine, _place(member), began)

    def _check(
        self, host_id: int, generation: int, owner: Machine, taker: Machine, who: str, at: float | None = None
    ) -> None:
        records = self._records.get(host_id, {})
        if generation not in records or (at is None and max(records) > generation):
            return
        _, last, record = records[generation]
        if record.free:
            return
        needed = Timing(record.io_timeout or 1, owner.fire).host_dead
        silent = ((taker.world.now if at is None else at) - last) * taker.rate
        if silent < needed - 0.001:
            raise Violation("dead first", f"{who} took over from host {host_id} after {silent:.1f} s, not {needed:.1f}")

    def laid_out(self) -> None:
        self._records.clear()
        self._members.clear()


class Tokens:
    """A fencing token never repeats or goes back.

    An exclusive grant's is larger than all before it. A shared one's is larger than that of every exclusive
    grant
    before it; one that was converted from exclusive keeps its own.
    """

    def __init__(self) -> None:
        self._largest: dict[int, Holding] = {}
        self._exclusive: dict[int, Holding] = {}

    def granted(self, holding: Holding) -> None:
        before = self._largest if holding.exclusive else self._exclusive
        last = before.get(holding.resource)
        if last is not None and holding.token <= last.token:
            converted = not holding.exclusive and holding.token == last.token and holding.process is last.process
            if not converted:
                raise Violation("tokens grow", f"{holding} was granted after {last}")
        if holding.exclusive:
            self._exclusive[holding.resource] = holding
        largest = self._largest.get(holding.resource)
        if largest is None or holding.token > largest.token:
            self._largest[holding.resource] = holding

    def laid_out(self) -> None:
        self._largest.clear()
        self._exclusive.clear()


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


class BlocksGrow:
    """mbal, and lver, of a host's block only grow, as far as its live writes go.

    A late write may set a block back: that is the disk's doing, and what the protocol has to live with.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: dict[tuple[int, int], Block] = {}

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector < 2:
            return
        block = Block.unpack(data)
        if block.unused or not block.mbal:
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

    def laid_out(self) -> None:
        self._last.clear()


class NeverWiped:
    """A host never takes back what it accepted: its block goes on saying so until a later version."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last: dict[tuple[int, int], Block] = {}

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector < 2:
            return
        block, last = Block.unpack(data), self._last.get((area, sector))
        self._last[area, sector] = block
        if late or last is None or not last.accepted or task.process.host_id != sector - 1:
            return
        if block.lver < last.lver or (block.lver == last.lver and not block.accepted):
            raise Violation(
                "accepted stays accepted",
                f"{task.name} wiped what host {sector - 1} had accepted for version {last.lver} of r{area}",
            )

    def laid_out(self) -> None:
        self._last.clear()


class HolderShows:
    """While a host holds a lease exclusively its own block says so: accepted for it, at this version, not RELEASED.

    That keeps it safe against every late write of others. A late write of its own earlier boot is the disk's doing.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._holders: dict[int, dict[Holding, None]] = {}

    def granted(self, holding: Holding) -> None:
        if holding.exclusive:
            self._holders.setdefault(holding.resource, {})[holding] = None

    def letting_go(self, holding: Holding) -> None:
        self._holders.get(holding.resource, {}).pop(holding, None)

    gone = letting_go

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector < 2 or not self._holders.get(area) or not task.process.alive:
            return
        for holding in self._holders[area]:
            if holding.host_id == sector - 1 and holding.machine is task.machine:
                self._check(holding, Block.unpack(data))

    def _check(self, holding: Holding, block: Block) -> None:
        shows = block.accepted and (block.inp, block.inp2) == (holding.host_id, holding.generation)
        if not shows or block.lver != holding.token or block.released:
            raise Violation("holder shows it", f"{holding}, but its block says {block}")


class Decided:
    """What was decided for a version stays decided: every leader written for it names the same owner."""

    #: versions remembered for each resource
    KEEP = 256

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._owners: dict[int, dict[int, tuple[int, int]]] = {}

    def asked(self, task: Task, step: Read | Write) -> None:
        data = getattr(step, "data", None)
        if data is None:
            return
        area, sector = self._layout.where(step.offset)
        if area == 0 or sector != 0:
            return
        leader = Leader.unpack(data)
        if not leader.owner_id:
            return
        owners = self._owners.setdefault(area, {})
        owner = (leader.owner_id, leader.owner_generation)
        decided = owners.setdefault(leader.lver, owner)
        if decided != owner:
            raise Violation(
                "decided stays decided",
                f"{task.name} writes owner {owner[0]}/{owner[1]} for version {leader.lver} of r{area},"
                f" which was decided for {decided[0]}/{decided[1]}",
            )
        if len(owners) > self.KEEP:
            for lver in sorted(owners)[: self.KEEP // 2]:
                del owners[lver]

    def laid_out(self) -> None:
        self._owners.clear()


class OneMember:
    """A host id has one owner at a time, and each owner of it a larger generation than the one before."""

    def __init__(self) -> None:
        self._owners: dict[int, dict[Membership, None]] = {}
        self._generations: dict[int, int] = {}

    def joined(self, member: Membership) -> None:
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

    def laid_out(self) -> None:
        self._generations.clear()


def _place(member: Membership) -> str:
    return f"{member.process.name} of h{member.process.machine.number}"


def all_rules(layout: Layout) -> list[Any]:
    """Every rule, fresh."""
    return [
        OneOwner(),
        WatchdogFirst(),
        DeadFirst(layout),
        Tokens(),
        Places(layout),
        BlocksGrow(layout),
        NeverWiped(layout),
        HolderShows(layout),
        Decided(layout),
        OneMember(),
    ]
