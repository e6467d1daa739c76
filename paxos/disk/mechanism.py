"""What the engine asks of a way to do I/O, and which way this machine allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from paxos.disk.buffers import Buffer


class Mechanism(Protocol):
    """Transfers are known by a number, 0 to `capacity` - 1, which is free again when its end was seen.

    Used by one thread at a time, but for `wake`.
    """

    capacity: int

    def queue(self, number: int, fd: int, buffer: Buffer, length: int, offset: int, writing: bool) -> None:
        """Prepare a transfer of `length` bytes between `buffer` and byte `offset` of `fd`."""

    def submit(self) -> Sequence[tuple[int, int]]:
        """Start everything queued. The numbers that could not be, each with -errno."""

    def wait(self, timeout: float) -> Sequence[tuple[int, int]]:
        """Ended transfers: (number, bytes moved or -errno). Waits up to `timeout` s for the first.

        Empty also when woken, or when a signal arrived.
        """

    def cancel(self, number: int) -> bool:
        """Try to take back a transfer; if that may have worked, its end can be waited for at once."""

    def wake(self) -> None:
        """Make the current or next `wait` return. From any thread."""

    def close(self) -> None:
        """Free everything. Only when nothing is in flight."""
