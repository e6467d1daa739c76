"""What leasehold promises beyond what its clients see: rules that show a bug before it does harm.

The rules in checkers.py are what must never happen to anybody. These are the reasons why it does not happen, as the
protocol's modules state them; they hold for leasehold's own hosts only, since the reference gives no such promise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leases.sim.checkers import Holding, Membership, Violation
from paxos.records import Block, Leader
from paxos.timing import Timing

if TYPE_CHECKING:
    from leases.sim.layout import Layout
    from leases.sim.machine import Machine, Task


def invariants(layout: Layout) -> list[Any]:
    """Every one of them, fresh. They hold whatever goes wrong, but for I/O that goes astray or shows an old state."""
    return [DeadFirst(layout), NeverWiped(layout), HolderShows(layout)]


def _counts(holding: Holding) -> bool:
    """Whether it is leasehold's to protect: not a reference host's, and not from before an area was laid out anew."""
    return not holding.reference and not holding.exposed


class _Areas:
    """Areas in which something is left of before they were initialised anew: nothing in them is judged."""

    def __init__(self) -> None:
        self._unsettled: set[int] = set()

    def laid_out(self, area: int) -> None:
        self._unsettled.add(area)

    def settled(self, area: int) -> None:
        self._unsettled.discard(area)

    def _judges(self, area: int) -> bool:
        return not self._unsettled & {0, area}


class DeadFirst(_Areas):
    """A host's silence proves its death after `host_dead` (by its own io_timeout), never sooner (paxos/timing.py).

    Its watchdog has fired somewhat earlier, but nobody may count on that: what lies between pays for clocks that run
    apart. So neither a lease nor a host id changes hands before that long after the old owner's last renewal.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
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
            if other.machine is holding.machine or other.generation < max(self._records.get(other.host_id, (0,))):
                del owed[other]
            elif holding.exclusive or other.exclusive:
                if self._judges(holding.resource) and _counts(holding) and _counts(other):
                    self._check(other.host_id, other.generation, other.machine, holding.machine, str(holding))
                del owed[other]  # dead by the clock of one is dead for all: who took over may give the lease on
        owed[holding] = None

    def released(self, holding: Holding) -> None:
        self._owed.get(holding.resource, {}).pop(holding, None)

    def joined(self, member: Membership) -> None:
        before = self._members.get(member.host_id)
        self._members[member.host_id] = member
        if before is None or not self._judges(0):
            return
        records = self._records[member.host_id]
        if member.generation not in records or before.generation not in records:
            return  # by a write that went astray, or came late
        (began, _, new), (_, _, old) = records[member.generation], records[before.generation]
        if new.resource_name != old.resource_name:
            who = f"{member.process.name} of h{member.process.machine.number}"
            machine = before.process.machine
            self._check(member.host_id, before.generation, machine, member.process.machine, who, began)

    def _check(
        self, host_id: int, generation: int, owner: Machine, taker: Machine, who: str, at: float | None = None
    ) -> None:
        records = self._records.get(host_id, {})
        if generation not in records:
            return
        _, last, record = records[generation]
        if record.free:
            return
        needed = Timing(record.io_timeout or 1, owner.fire).host_dead
        silent = ((taker.world.now if at is None else at) - last) * taker.rate
        if silent < needed - 0.001:
            raise Violation("dead first", f"{who} took over from host {host_id} after {silent:.1f} s, not {needed:.1f}")

    def laid_out(self, area: int) -> None:
        super().laid_out(area)
        self._owed.clear()
        self._members.clear()


class NeverWiped(_Areas):
    """A host never takes back what it accepted: its block says so until a later version (paxos/resource.py)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self._last: dict[tuple[int, int], Block] = {}

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector < 2:
            return
        if not self._judges(area):
            self._last.pop((area, sector), None)
            return
        block, last = Block.unpack(data), self._last.get((area, sector))
        self._last[area, sector] = block
        own = task.process.host_id == sector - 1 and not task.process.reference
        if late or last is None or not last.accepted or not own:
            return
        if block.lver < last.lver or (block.lver == last.lver and not block.accepted):
            raise Violation(
                "accepted stays accepted",
                f"{task.name} wiped what host {sector - 1} had accepted for version {last.lver} of r{area}",
            )

    def laid_out(self, area: int) -> None:
        super().laid_out(area)
        for place in [place for place in self._last if place[0] == area]:
            del self._last[place]


class HolderShows(_Areas):
    """While a host holds a lease exclusively its own block says so: accepted for it, at this version, not RELEASED.

    That keeps it safe against every late write of others (paxos/resource.py). A late write of its own from before it
    was reset is the disk's doing.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._layout = layout
        self._holders: dict[int, dict[Holding, None]] = {}

    def granted(self, holding: Holding) -> None:
        if holding.exclusive and not holding.reference:
            self._holders.setdefault(holding.resource, {})[holding] = None

    def letting_go(self, holding: Holding) -> None:
        self._holders.get(holding.resource, {}).pop(holding, None)

    gone = letting_go

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector < 2 or not self._holders.get(area) or not task.process.alive:
            return
        for holding in self._holders[area]:
            if holding.host_id == sector - 1 and holding.machine is task.machine and _counts(holding):
                self._check(holding, Block.unpack(data))

    def _check(self, holding: Holding, block: Block) -> None:
        shows = block.accepted and (block.inp, block.inp2) == (holding.host_id, holding.generation)
        if not shows or block.lver != holding.token or block.released:
            raise Violation("holder shows it", f"{holding}, but its block says {block}")


# ------------------------------------------------------------------- what holds only where less goes wrong


class LeadersGrow:
    """Nobody sets a leader's version back by a write that was in time.

    Holds where no process stands still between its look and its write. A leader that a competitor wrote is left out:
    its owner does not wait for anybody to see it.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._competed: set[tuple[int, int]] = set()

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        if area == 0 or sector:
            return
        leader, last = Leader.unpack(data), Leader.unpack(before)
        if leader.write_id != leader.owner_id:
            self._competed.add((area, leader.lver))
        if not late and leader.lver < last.lver and (area, leader.lver) not in self._competed:
            raise Violation("leaders grow", f"{task.name} set r{area} back from version {last.lver} to {leader.lver}")


class LostIsLost:
    """Who lost its host id notices with its next renewal: it is no member any more, and writes there no more.

    Holds where renewals work and clocks run.
    """

    def __init__(self, layout: Layout, within: float) -> None:
        self._layout = layout
        #: seconds from the new owner's first write until the old one must have left
        self._within = within
        self._taken: dict[int, tuple[int, float]] = {}
        self._members: dict[Membership, None] = {}

    def joined(self, member: Membership) -> None:
        self._members[member] = None

    def left(self, member: Membership) -> None:
        self._members.pop(member, None)

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        area, sector = self._layout.where(offset)
        now = task.world.now
        for member in self._members:
            generation, since = self._taken.get(member.host_id, (0, now))
            if generation > member.generation and now > since + self._within:
                raise Violation("lost is lost", f"host {member.host_id} generation {member.generation} goes on")
        if area:
            return
        record, last = Leader.unpack(data), Leader.unpack(before)
        if record.owner_generation > last.owner_generation:
            self._taken[sector + 1] = (record.owner_generation, now)
        elif record.owner_generation < last.owner_generation:
            raise Violation("lost is lost", f"{task.name} put back generation {record.owner_generation} of its host id")
