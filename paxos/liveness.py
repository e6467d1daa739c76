"""What we know of the other hosts, and since when: the basis of every "is it dead?".

A host proves that it lives by changing the timestamp in its delta lease. Timestamps come from the writer's own
clock, so others compare them only for *change*; when a change was seen is noted in our clock. From one renewal's
read of the lockspace area all slots are examined at once (ondisk.md 4.6).

The same read tells a host that it was paused: where its clock stood still, the others' timestamps have moved on by
more than its own clock did. The reference never looks (see `Observation.paused_for`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paxos.area import calling, decode_lockspace
from paxos.errors import StaleRead
from paxos.geometry import Place
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.records import DELTA_MAGIC, Block, name_of, pack_name
from paxos.timing import Timing, judging_io_timeout


class Dice(Protocol):
    """Randomness is handed in: `random.Random` is one."""

    def uniform(self, low: float, high: float, /) -> float: ...


class HostState(IntEnum):
    """As users and the socket protocol know it."""

    UNKNOWN = 1
    FREE = 2
    LIVE = 3
    FAIL = 4
    DEAD = 5


@dataclass(frozen=True, slots=True)
class HostHistory:
    """One slot's past. Times are seconds of our clock; `timestamp` is of the host's own."""

    host_id: int
    owner_id: int
    generation: int
    name: bytes
    timestamp: int
    io_timeout: float
    first_check: float
    last_check: float
    #: when (owner, generation, timestamp) was last seen to change; 0 = never anything but zeros
    last_live: float

    def dead_at(self, fire_timeout: float) -> float:
        """From then on (our clock) this host's watchdog has fired, unless it renews again."""
        return (self.last_live or self.first_check) + Timing(self.io_timeout, fire_timeout).host_dead


class HostTable:
    """All slots of one lockspace, examined anew with each renewal. One thread observes; any may ask."""

    def __init__(self, area: LockspaceArea, own_host_id: int, timing: Timing) -> None:
        self._area = area
        self._own = own_host_id
        self._timing = timing
        hosts = area.geometry.max_hosts
        self._rows: NDArray[np.void] | None = None
        self._first_check = 0.0
        self._last_check = 0.0
        self._last_live = np.zeros(hosts, dtype=np.float64)

    @property
    def examined(self) -> bool:
        return self._rows is not None

    def observe(self, view: memoryview, now: float) -> Observation:
        """Examine a lockspace area just read; `now` in seconds of our clock, taken after the read."""
        geometry = self._area.geometry
        rows = decode_lockspace(view, geometry)
        # Checksum and version are not looked at (4.6): a sector being torn must not look like a death.
        good = (rows["magic"] == DELTA_MAGIC) & (rows["space_name"] == pack_name(self._area.name))
        before = self._rows
        if before is None:
            changed = (rows["owner_id"] != 0) | (rows["owner_generation"] != 0) | (rows["timestamp"] != 0)
            self._first_check = now
            paused_for = 0.0
        else:
            changed = (
                (rows["timestamp"] != before["timestamp"])
                | (rows["owner_generation"] != before["owner_generation"])
                | (rows["owner_id"] != before["owner_id"])
            )
            paused_for = self._paused_for(before, rows, changed & good, now)
            bad = ~good
            if bad.any():
                # A bad sector's names and numbers are not taken over, but a moving timestamp is a sign of life.
                kept = before.copy()
                kept["timestamp"] = rows["timestamp"]
                rows = np.where(bad, kept, rows)
        self._last_live[changed] = now
        self._last_check = now
        self._rows = rows
        ids = np.flatnonzero(changed) + 1
        callers = calling(view, geometry, self._own)
        if len(callers):
            callers = callers[np.isin(callers, ids) & (callers != self._own)]
        return Observation(
            changed=tuple(int(i) for i in ids),
            calling=tuple(int(i) for i in callers),
            paused_for=paused_for,
        )

    def _paused_for(
        self, before: NDArray[np.void], rows: NDArray[np.void], changed: NDArray[np.bool_], now: float
    ) -> float:
        others = changed.copy()
        others[self._own - 1] = False
        same = (
            others
            & (rows["owner_id"] == before["owner_id"])
            & (rows["owner_generation"] == before["owner_generation"])
            & (rows["timestamp"] != 0)
            & (before["timestamp"] != 0)
        )
        elapsed = now - self._last_check
        if same.any():
            moved = rows["timestamp"][same].astype(np.float64) - before["timestamp"][same].astype(np.float64)
            # One honest clock is enough to say that no time was lost.
            ahead = float(moved.min() - elapsed)
        else:
            newcomers = others & (rows["timestamp"] != 0) & (rows["owner_id"] != before["owner_id"])
            newcomers |= others & (rows["timestamp"] != 0) & (rows["owner_generation"] > before["owner_generation"])
            # Nobody whose clock we know, and a stranger: it may have joined, waited and taken over meanwhile.
            ahead = float(self._timing.host_dead) if newcomers.any() else 0.0
        return ahead if ahead > self._timing.pause_suspected else 0.0

    def get(self, host_id: int) -> HostHistory | None:
        """The history of a slot, or None before the first examination or for an id that does not exist."""
        rows = self._rows
        if rows is None or not 1 <= host_id <= len(rows):
            return None
        row = rows[host_id - 1]
        return HostHistory(
            host_id=host_id,
            owner_id=int(row["owner_id"]),
            generation=int(row["owner_generation"]),
            name=name_of(bytes(row["resource_name"])),
            timestamp=int(row["timestamp"]),
            io_timeout=judging_io_timeout(int(row["io_timeout"]), self._timing.io_timeout),
            first_check=self._first_check,
            last_check=self._last_check,
            last_live=float(self._last_live[host_id - 1]),
        )

    def used(self) -> list[HostHistory]:
        """The slots with a timestamp, in the order of host ids."""
        if self._rows is None:
            return []
        found = (self.get(int(i) + 1) for i in np.flatnonzero(self._rows["timestamp"]))
        return [history for history in found if history is not None]

    def state(self, host_id: int, now: float) -> HostState:
        """The state shown to users (4.6)."""
        history = self.get(host_id)
        if history is None:
            return HostState.UNKNOWN
        if history.timestamp == 0:
            return HostState.FREE
        if host_id == self._own:
            return HostState.LIVE
        timing = Timing(history.io_timeout, self._timing.fire_timeout)
        age = now - (history.last_live or history.first_check)
        if age <= timing.renewal_fail:
            seen_to_change = history.last_live != history.first_check
            return HostState.LIVE if seen_to_change else HostState.UNKNOWN
        return HostState.DEAD if age > timing.host_dead else HostState.FAIL

    def shared_holder_alive(self, host_id: int, generation: int) -> bool:
        """Whether a shared mark of that host's `generation` must be respected (6.2). In doubt, yes.

        Silence counts only while we looked: a host that was stopped itself and judges by its clock would take
        everybody else for dead.
        """
        history = self.get(host_id)
        if history is None:
            return True
        if history.generation != generation:
            # A mark of a later generation than was examined is of a host that joined since.
            return history.generation < generation
        if history.timestamp == 0:
            return False
        return history.last_check <= history.dead_at(self._timing.fire_timeout)


@dataclass(frozen=True, slots=True)
class Member:
    """This host as a member of a lockspace: what a resource protocol must know of itself and of others."""

    area: LockspaceArea
    host_id: int
    generation: int
    timing: Timing
    hosts: HostTable
    dice: Dice
    #: the own block as this host instance's last ballot left it, by lease: no read may show less (`check_fresh`)
    ballots: dict[Place, Block] = field(default_factory=dict, compare=False)

    def wrote(self, lease: Place, block: Block) -> None:
        """Note what a ballot wrote into our own block."""
        self.ballots[lease] = block

    def check_fresh(self, lease: Place, place: Place, block: Block) -> None:
        """Raise StaleRead if a read of our own block, which only we write, shows an earlier one than our last ballot's.

        An empty one is believed when it is seen again: a host that took us for dead clears our shared mark so. Any
        other is put right by settling.
        """
        written = self.ballots.get(lease, block)
        if block.progress >= written.progress:
            return
        if block.mbal == 0:
            del self.ballots[lease]
        raise StaleRead(operation="read", disk=place.disk, offset=place.offset, found=block.mbal, written=written.mbal)
