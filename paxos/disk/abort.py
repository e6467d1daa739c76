"""Aborting a protocol from another thread, or from a signal handler, while an engine drives it."""

from __future__ import annotations

from collections.abc import Callable


class AbortSignal:
    """Set once, from anywhere. It takes no lock, so a signal handler may set it.

    The protocol sees `paxos.errors.Aborted` where it merely waits: at a Sleep or a Reap, the current or the
    next one, or before its first step. Reads and writes are never cut short: what was begun is seen through
    to a place that the protocol itself chose for waiting.
    """

    __slots__ = ("_wakers", "reason")

    def __init__(self) -> None:
        #: why, or None as long as it is not set
        self.reason: str | None = None
        self._wakers: list[Callable[[], None]] = []

    def set(self, reason: str = "aborted") -> None:
        if self.reason is None:
            self.reason = reason
        for wake in tuple(self._wakers):
            wake()

    def is_set(self) -> bool:
        return self.reason is not None

    def attach(self, wake: Callable[[], None]) -> None:
        """`wake` is called by `set`. Look at `reason` after attaching: it may have been set before."""
        self._wakers.append(wake)

    def detach(self, wake: Callable[[], None]) -> None:
        self._wakers.remove(wake)
