"""What happens to a joined lockspace, as small facts for logs and metrics, and their way to whoever listens.

A renewal must not wait for a log file. So whoever has something to tell only puts it into a queue, and a thread of
its own calls the hooks, in order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeAlias

from paxos.errors import LeaseholdError

_log = logging.getLogger("leasehold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`at`: boot-time seconds."""

    at: float
    lockspace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed(Event):
    """`expires`: until then the leases are surely ours. `healed`: a dead predecessor's late write was overwritten."""

    read_seconds: float
    write_seconds: float
    expires: float
    healed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalFailed(Event):
    error: LeaseholdError


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalLate(Event):
    """No renewal has succeeded for `seconds`; recovery is near."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled(Event):
    """This host stood still for about `seconds` while others went on; its leases are being checked."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryBegun(Event):
    """The lockspace has failed; all its leases are lost and their holders are being stopped."""

    reason: LeaseholdError


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGone(Event):
    """A held lease was lost."""

    resource: str
    reason: LeaseholdError


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderStopped(Event):
    """A holder was sent a signal, or its kill path was started; `how` says which."""

    pid: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequested(Event):
    """Another host asks for a lease held here; `force` is FORCE or GRACEFUL."""

    resource: str
    force: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEvent(Event):
    """A message of another host, repeated with each of its renewals for a while (ondisk.md 7.2)."""

    from_host: int
    from_generation: int
    to_generation: int
    event: int
    data: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled(Event):
    """An I/O error left it open what is on the disk of a resource."""

    resource: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Event):
    """It is known again."""

    resource: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(Event):
    """This host is no member any more; `failure` is why, None if it left on its own."""

    failure: LeaseholdError | None


Hook: TypeAlias = Callable[[Event], object]


class Announcer:
    """`hooks` is a plain list that anybody may add to; each hook gets every event from then on."""

    def __init__(self, name: str) -> None:
        self.hooks: list[Hook] = []
        self._name = name
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def tell(self, kind: type[Event], **facts: Any) -> None:
        """Put an event of this kind on its way. Never waits for a hook."""
        if not self.hooks:
            return
        self._queue.put(kind(**facts))
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._call_hooks, name=f"events {self._name}", daemon=True)
                    self._thread.start()

    def close(self, timeout: float = 1.0) -> None:
        """Tell what is still to be told, waiting `timeout` seconds at most for it."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._queue.put(None)
            self._thread.join(timeout)

    def _call_hooks(self) -> None:
        while (event := self._queue.get()) is not None:
            for hook in list(self.hooks):
                try:
                    hook(event)
                except Exception:
                    _log.exception("a hook for events of lockspace %s failed", self._name)
