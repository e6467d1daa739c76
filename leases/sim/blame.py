"""Whose writes brought it about that a rule was broken: hosts of the reference alone, or leasehold as well.

The reference lets nothing wait for an I/O that timed out, and erases a block whose commit is uncertain. So some things
happen on volumes that it uses, and no other host can do anything about them, as nothing on the disk shows any more
what was there:

    two of its hosts hold a lease                      found out by `among_references`
    its late write covers the mark by which it holds   `lost_its_mark`: whoever looks sees nobody
    it believes what it reads, though a write or the   `believed_astray`
    read itself went astray
    it takes back what was decided                     `taken_back`: a version is decided twice, a token comes again
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paxos.records import Block, Leader

if TYPE_CHECKING:
    from leases.sim.checkers import Holding
    from leases.sim.layout import Layout
    from leases.sim.machine import Task
    from paxos.steps import Read, Write


#: how long before its grant, or its decision, an acquire may have begun: a few I/Os (true seconds)
_BALLOT_S = 60.0
#: and where it waited for an owner's death
_WAIT_S = 200.0


class Blame:
    """Watches all writes. Times are true times of the last such write; resources are areas by number."""

    def __init__(self, layout: Layout | None = None) -> None:
        self._layout = layout
        #: late writes of leasehold hosts, by resource
        self._ours: dict[int, float] = {}
        #: late writes of a host of the reference over its own block, by resource and host id
        self._own_block: dict[tuple[int, int], float] = {}
        #: writes by which the reference took back what may have been decided, by resource
        self._taken_back: dict[int, float] = {}
        #: writes that went astray, by resource and the host id whose block they covered
        self._astray: dict[tuple[int, int], float] = {}
        #: reads that showed something else, by machine number
        self._misled: dict[int, float] = {}
        #: highest version that a leader was written for, by resource
        self._decided: dict[int, int] = {}

    def asked(self, task: Task, step: Read | Write) -> None:
        data = getattr(step, "data", None)
        if data is None or self._layout is None:
            return
        area, sector = self._layout.where(step.offset)
        if area == 0:
            return
        if sector == 0:
            self._decided[area] = max(self._decided.get(area, 0), Leader.unpack(data).lver)
        elif task.process.reference:
            block = Block.unpack(data)
            if block.erased or block.lver < self._decided.get(area, 0):
                self._taken_back[area] = task.world.now

    def landed(self, task: Task, offset: int, data: bytes, before: bytes, late: bool) -> None:
        if not late or self._layout is None:
            return
        area, sector = self._layout.where(offset)
        if not task.process.reference:
            self._ours[area] = task.world.now
        elif sector - 1 == task.process.host_id:
            self._own_block[area, sector - 1] = self._taken_back[area] = task.world.now

    def astray(self, task: Task, offset: int, data: bytes) -> None:
        if self._layout is not None:
            area, sector = self._layout.where(offset)
            self._astray[area, sector - 1] = task.world.now

    def misled(self, task: Task) -> None:
        self._misled[task.machine.number] = task.world.now

    def laid_out(self, area: int) -> None:
        self._decided.pop(area, None)

    def explains(self, newcomer: Holding, holder: Holding) -> bool:
        """Whether hosts of the reference alone brought it about that `newcomer` got the lease beside `holder`."""
        return (
            self.lost_its_mark(holder)
            or self.lost_its_mark(newcomer)
            or self.believed_astray(newcomer, holder)
            or self.among_references(newcomer, holder)
        )

    def among_references(self, one: Holding, other: Holding) -> bool:
        """Whether two holders are both of the reference, and nobody else's late write came between their grants."""
        since = min(one.since, other.since)
        return one.reference and other.reference and self._ours.get(one.resource, -1.0) < since

    def lost_its_mark(self, holder: Holding) -> bool:
        """Whether a host of the reference has itself written over what said that it holds the lease, or acquires it."""
        last = self._own_block.get((holder.resource, holder.host_id))
        return holder.reference and last is not None and last >= holder.since - _BALLOT_S

    def believed_astray(self, newcomer: Holding, holder: Holding) -> bool:
        """Whether a host of the reference was misled: by its read, or by what had covered the holder's block."""
        read = self._misled.get(newcomer.machine.number)
        covered = self._astray.get((holder.resource, holder.host_id))
        return newcomer.reference and (
            (read is not None and read >= newcomer.since - _WAIT_S) or (covered is not None and covered >= holder.since)
        )

    def taken_back(self, resource: int, since: float) -> bool:
        """Whether a host of the reference took back what a ballot that ended at a true time may have decided."""
        last = self._taken_back.get(resource)
        return last is not None and last >= since - _BALLOT_S
