"""A held lease: its fencing token, how long it is surely ours, and the news that it is not.

    with lockspace.acquire("vm1") as lease:
        storage.write(data, fence=lease.token)
        if lease.lost.is_set(): ...

`deadline` moves on with each renewal of the lockspace. `lost` is set, once and for good, when the lease was taken
away or can't be kept; the processes named by `add_holder` are stopped then. A lease without such processes is used
by this process itself. It is sent no signal; it has to look at `lost`, stop using what the lease protects, and
then release the lease (or call `lost.acknowledge()`): until then the watchdog stays armed, and where it stays
unanswered until the watchdog fires, that stops this process by force (how, `lockspace.watchdog` says).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import total_ordering
from types import TracebackType
from typing import TYPE_CHECKING

from leases.keeper.watchdog.base import boot_time
from paxos.errors import LeaseholdError, NotHeld
from paxos.resource import Held

if TYPE_CHECKING:
    from leases.holdings import Grip
    from leases.lockspace import Lockspace


@total_ordering
@dataclass(frozen=True, slots=True)
class FencingToken:
    """Grows with each exclusive acquisition of one resource: storage that remembers the largest refuses the rest.

    Its text is "lockspace:resource:lver:host:generation", a colon or backslash of a name with a backslash before it.
    """

    lockspace: str
    resource: str
    lver: int
    host_id: int
    generation: int

    def __str__(self) -> str:
        return ":".join(
            [
                _escaped(self.lockspace),
                _escaped(self.resource),
                str(self.lver),
                str(self.host_id),
                str(self.generation),
            ]
        )

    def __lt__(self, other: object) -> bool:
        """By lver; tokens of different resources have no order (TypeError)."""
        if not isinstance(other, FencingToken):
            return NotImplemented
        if (self.lockspace, self.resource) != (other.lockspace, other.resource):
            return NotImplemented
        return self.lver < other.lver


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace(":", "\\:")


class Lost:
    """Set when a lease is no longer ours; then `reason` says why."""

    def __init__(self, on_acknowledge: Callable[[], None]) -> None:
        self.reason: LeaseholdError | None = None
        self.acknowledged = False
        self._event = threading.Event()
        self._on_acknowledge = on_acknowledge

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds; whether it is lost."""
        return self._event.wait(timeout)

    def set(self, reason: LeaseholdError) -> None:
        if self.reason is None:
            self.reason = reason
            self._event.set()

    def acknowledge(self) -> None:
        """This process has stopped using what the lease protects. Nothing happens while it is not lost."""
        if self.is_set() and not self.acknowledged:
            self.acknowledged = True
            self._on_acknowledge()


class Lease:
    """Made by `Lockspace.acquire`. Times are boot-time seconds (CLOCK_BOOTTIME)."""

    def __init__(self, lockspace: Lockspace, grip: Grip, held: Held) -> None:
        self.lockspace = lockspace
        self.resource = grip.name.decode("utf-8", "backslashreplace")
        self.released = False
        self.lost = Lost(self._acknowledged)
        self.grip = grip
        #: what it is on the disk
        self.held = held
        #: the processes that use it; none: this process does
        self.pids: list[int] = []

    def __repr__(self) -> str:
        state = "released" if self.released else f"lost: {self.lost.reason}" if self.lost.is_set() else "held"
        return f"<Lease {self.token} {'shared ' if self.shared else ''}{state}>"

    @property
    def token(self) -> FencingToken:
        held = self.held
        return FencingToken(self.lockspace.name, self.resource, held.lver, held.host_id, held.generation)

    @property
    def shared(self) -> bool:
        return self.held.shared

    @property
    def deadline(self) -> float:
        """Until then it is surely ours, even if no renewal succeeds from now on; 0 once it is lost or released."""
        if self.released or self.lost.is_set() or self.lockspace.failure is not None:
            return 0.0
        return self.lockspace.vitals.expires

    def remaining(self) -> float:
        """Seconds until `deadline`, never negative."""
        return max(0.0, self.deadline - boot_time())

    def add_holder(
        self,
        pid: int,
        *,
        group: bool = False,
        kill_path: Sequence[str] = (),
        never_kill: bool = False,
        never_terminate: bool = False,
    ) -> None:
        """Process `pid` uses the lease from now on, instead of this process.

        When the lease is lost it is stopped: by the program and arguments `kill_path`, else SIGTERM, at last by
        SIGKILL; `group`: with its process group. Raises InvalidUse, WatchdogUnavailable, NotHeld.
        """
        self._require_held()
        self.lockspace.add_holder(
            self,
            pid,
            group=group,
            kill_path=kill_path,
            never_kill=never_kill,
            never_terminate=never_terminate,
        )

    @property
    def holders(self) -> tuple[int, ...]:
        """The pids that `add_holder` named."""
        return tuple(self.pids)

    def convert(self, *, shared: bool) -> None:
        """Make it shared or exclusive. Raises as `Lockspace.acquire`; on a refusal it stays as it was."""
        self._require_held()
        if shared != self.shared:
            self.lockspace.convert(self, shared)

    @property
    def lvb(self) -> bytes:
        """The lease value block: one sector of the holders' own data. Raises LvbUnsupported, DiskError."""
        self._require_held()
        return self.lockspace.read_lvb(self)

    @lvb.setter
    def lvb(self, data: bytes) -> None:
        """Written to the disk at once; for an exclusive holder only. Raises LvbUnsupported, InvalidUse, DiskError."""
        self._require_held()
        self.lockspace.write_lvb(self, data)

    def release(self, lvb: bytes | None = None, new_name: bytes | None = None) -> None:
        """Give it back; harmless when repeated, and once it is lost. For an exclusive one, with a last value block,
        and under another name from then on.

        Raises DiskError where the disk did not take it (the lease is given up all the same, and settled in the
        background), and ReleaseOwner where the disk says that it was not ours any more.
        """
        if not self.released:
            self.lockspace.release(self, lvb, new_name)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _acknowledged(self) -> None:
        self.lockspace.acknowledged(self)

    def _require_held(self) -> None:
        if self.lost.reason is not None:
            raise self.lost.reason
        if self.released:
            raise NotHeld(resource=self.resource)
