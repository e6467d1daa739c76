"""Steps: what a protocol may ask of the world, and nothing else.

Every algorithm of this package is a generator. It yields a step, and whoever drives it (the disk engine, the
simulator, the explorer) sends back the result or throws the failure into it:

    Read   -> a read-only view of the bytes     raises IOTimeout, DiskError
    Write  -> None                              raises IOTimeout, DiskError
    Reap   -> what the overdue I/O gave         raises IOTimeout (still not back), DiskError
    Sleep  -> None
    Now    -> seconds of the boot-time clock, as float

The view a Read returns lies in the driver's buffer: it is valid until the protocol's next step. What must last
longer is copied. A Write's data is the driver's to keep until the write ends, so it is `bytes`.

An I/O that was not done within its `timeout` raises IOTimeout with a `pending` handle. It is *in flight until
reaped*: it may still happen, at any later time. `Reap` waits for it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar


class Pending:
    """An I/O that timed out and has not been reaped. Drivers subclass it; protocols only pass it on."""

    __slots__ = ("step",)

    def __init__(self, step: Read | Write) -> None:
        self.step = step


@dataclass(frozen=True, slots=True)
class Read:
    """Read `length` bytes at `offset` of `disk`, both multiples of the sector size; `timeout` in seconds."""

    disk: str
    offset: int
    length: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Write:
    """Write `data` at `offset` of `disk`, both multiples of the sector size; `timeout` in seconds."""

    disk: str
    offset: int
    data: bytes
    timeout: float


@dataclass(frozen=True, slots=True)
class Reap:
    """Wait up to `timeout` seconds for an I/O that timed out before."""

    pending: Pending
    timeout: float


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Now:
    pass


Step: TypeAlias = Read | Write | Reap | Sleep | Now
T = TypeVar("T")
#: a protocol: yields steps, returns a T
Steps: TypeAlias = Generator[Step, Any, T]


# Typed forms, for `yield from`.


def read(disk: str, offset: int, length: int, timeout: float) -> Steps[memoryview]:
    view: memoryview = yield Read(disk, offset, length, timeout)
    return view


def write(disk: str, offset: int, data: bytes, timeout: float) -> Steps[None]:
    yield Write(disk, offset, data, timeout)


def reap(pending: Pending, timeout: float) -> Steps[memoryview | None]:
    result: memoryview | None = yield Reap(pending, timeout)
    return result


def sleep(seconds: float) -> Steps[None]:
    yield Sleep(seconds)


def now() -> Steps[float]:
    time: float = yield Now()
    return time
