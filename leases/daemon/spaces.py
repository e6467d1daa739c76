"""The lockspaces that the daemon is joining, is in, or is leaving, as the loop's thread knows them.

    add --joined--> spaces --failed, or removed--> rem --> gone

How a lockspace is kept alive is in leases/lockspace.py; this is what clients can see of it and ask for.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from leases.daemon.call import Refused
from leases.daemon.numbers import LockspaceFlag
from leases.daemon.wire import Lockspace as WireLockspace
from paxos.disk.abort import AbortSignal

if TYPE_CHECKING:
    from leases.daemon.kept_membership import KeptMembership
    from leases.lockspace import Lockspace

#: a result in the status texts that means success
OK = 1


class SpaceState(Enum):
    ADDING = "add"
    HELD = "spaces"
    REMOVING = "rem"


@dataclass(frozen=True, slots=True)
class RenewalRecord:
    """One renewal: `timestamp` in whole seconds, then how long read and write took (ms), and what failed after it."""

    timestamp: int
    read_ms: int = 0
    write_ms: int = 0
    next_timeouts: int = 0
    next_errors: int = 0


@dataclass(slots=True)
class Outcomes:
    """Last results of one kind of operation; times in whole boot-time seconds."""

    result: int = 0
    attempt: int = 0
    success: int = 0


@dataclass(slots=True)
class OwnEvent:
    """What this host tells others with its renewals (daemon.md 7.11)."""

    generation: int = 0
    event: int = 0
    data: int = 0
    set_at: float = float("-inf")


@dataclass(slots=True, eq=False)
class Space:
    """`wire` is the lockspace as the client gave it."""

    wire: WireLockspace
    io_timeout: int
    number: int
    history: deque[RenewalRecord]
    state: SpaceState = SpaceState.ADDING
    lockspace: Lockspace | None = None
    membership: KeptMembership | None = None
    abort: AbortSignal = field(default_factory=AbortSignal)
    acquiring: Outcomes = field(default_factory=Outcomes)
    renewing: Outcomes = field(default_factory=Outcomes)
    #: somebody outside uses it: it must not end
    external_used: bool = False
    used_by_orphans: bool = False
    #: how many orphans it has, for `in_use`, which other threads ask
    orphans: int = 0
    corrupt_result: int = 0
    failing: bool = False
    killing: bool = False
    index_busy: bool = False
    event: OwnEvent = field(default_factory=OwnEvent)
    listeners: list[socket.socket] = field(default_factory=list)
    #: host id -> boot time at which it last asked us to look
    requests: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> bytes:
        return self.wire.name

    @property
    def text(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")

    @property
    def in_use(self) -> bool:
        """Whether it must not end although no client holds a lease in it."""
        return self.external_used or (self.used_by_orphans and self.orphans > 0)

    @property
    def usable(self) -> bool:
        """For new leases."""
        return self.state is SpaceState.HELD and not self.failing

    @property
    def flags(self) -> LockspaceFlag:
        """As GET_LOCKSPACES shows it. One that is failing is on its way out, and unlike the reference we say so."""
        if self.state is SpaceState.ADDING:
            return LockspaceFlag.ADD
        return LockspaceFlag(0) if self.usable else LockspaceFlag.REM

    @property
    def joined(self) -> Lockspace:
        """For spaces that are HELD."""
        assert self.lockspace is not None
        return self.lockspace

    def same_place(self, other: WireLockspace) -> bool:
        return self.wire.disk == other.disk

    def identical(self, other: WireLockspace) -> bool:
        return self.name == other.name and self.same_place(other) and self.wire.host_id == other.host_id

    def close_listeners(self) -> None:
        while self.listeners:
            self.listeners.pop().close()


class SpaceTable:
    """By name; a name is there once at most."""

    def __init__(self, history_size: int) -> None:
        self._spaces: dict[bytes, Space] = {}
        self._numbers = itertools.count(1)
        self._history_size = history_size

    def __iter__(self) -> Iterator[Space]:
        """Those that are held, then those being removed, then those being added."""
        order = (SpaceState.HELD, SpaceState.REMOVING, SpaceState.ADDING)
        return iter([space for state in order for space in self._spaces.values() if space.state is state])

    def __len__(self) -> int:
        return len(self._spaces)

    def get(self, name: bytes) -> Space | None:
        return self._spaces.get(name)

    def held(self, name: bytes, missing: int = -errno.ENOENT) -> Space:
        """One that is held, failing or not. Raises Refused with `missing`."""
        space = self._spaces.get(name)
        if space is None or space.state is not SpaceState.HELD:
            raise Refused(missing)
        return space

    def usable(self, name: bytes) -> Space:
        """One in which leases can be had. Raises Refused (ENOSPC)."""
        space = self._spaces.get(name)
        if space is None or not space.usable:
            raise Refused(-errno.ENOSPC)
        return space

    def find(self, wanted: WireLockspace) -> Space | None:
        """By name and place, and by host id if there is one."""
        space = self._spaces.get(wanted.name)
        if space is None or not space.same_place(wanted):
            return None
        return space if wanted.host_id in (0, space.wire.host_id) else None

    def begin(self, wanted: WireLockspace, io_timeout: int) -> Space:
        """A new space, being added. Raises Refused (daemon.md 7.2)."""
        known = self._spaces.get(wanted.name)
        if known is not None and known.identical(wanted):
            refusals = {SpaceState.ADDING: errno.EINPROGRESS, SpaceState.REMOVING: errno.EAGAIN}
            raise Refused(-refusals.get(known.state, errno.EEXIST if known.usable else errno.EAGAIN))
        if known is not None or any(space.same_place(wanted) for space in self._spaces.values()):
            raise Refused(-errno.EINVAL)
        space = Space(wanted, io_timeout, next(self._numbers), deque(maxlen=self._history_size))
        self._spaces[wanted.name] = space
        return space

    def remove(self, space: Space) -> None:
        if self._spaces.get(space.name) is space:
            del self._spaces[space.name]
        space.close_listeners()
