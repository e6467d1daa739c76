"""Passing an abort on: operations of one thread can be ended by several others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from paxos.disk.abort import AbortSignal


@contextmanager
def passing_on(*sources: AbortSignal | None, to: Callable[[str], None]) -> Iterator[None]:
    """While the block lasts, whichever of `sources` is set, `to` is called with its reason, maybe repeatedly."""
    with ExitStack() as stack:
        for source in sources:
            if source is not None:
                wake = _waker(source, to)
                source.attach(wake)
                stack.callback(source.detach, wake)
                wake()  # it may have been set before
        yield


def _waker(source: AbortSignal, to: Callable[[str], None]) -> Callable[[], None]:
    def wake() -> None:
        if source.reason is not None:
            to(source.reason)

    return wake
