"""One command under way: who asked what, what its handler may wait for, and the answer.

A handler runs in the loop's thread, so it may use every table of the daemon without a lock. It returns its Reply,
or it is a generator that yields what it has to wait for:

    Work   something that may block, done by a worker; its result comes back, its exception is raised
    Wait   some seconds
    Send   bytes of an answer in several parts; goes on when the client has room for more

Raising a LeaseholdError answers with its code, and an OSError with its number.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from leases.daemon.wire import Header
from paxos.disk.abort import AbortSignal

if TYPE_CHECKING:
    from leases.daemon.clients import Client
    from leases.daemon.daemon import Daemon

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    job: Callable[[], object]
    #: name of a thread of its own, for what may wait for other hosts; None: a worker's
    own_thread: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


Task: TypeAlias = Generator[Work | Wait | Send, Any, T]


def work(job: Callable[[], T], own_thread: str | None = None) -> Task[T]:
    """Typed form of Work, for `yield from`."""
    result: T = yield Work(job, own_thread)
    return result


@dataclass(frozen=True, slots=True)
class Reply:
    """`length` overrides what the header says about the payload (daemon.md 6: LOG_DUMP and the like)."""

    result: int = 0
    data2: int = 0
    payload: bytes = b""
    length: int | None = None
    #: another header than the request's, changed; None: that one
    header: Header | None = None
    #: nothing is sent at all
    silent: bool = False


NOTHING = Reply(silent=True)
Outcome: TypeAlias = Reply | Task[Reply]


class Refused(Exception):
    """Answer with this result, and go on. `code` is negative."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True, eq=False)
class Call:
    """A whole request of `client`. `target` is the client it is about, where it is about one."""

    daemon: Daemon
    client: Client
    header: Header
    payload: bytes = b""
    target: Client | None = None
    abort: AbortSignal = field(default_factory=AbortSignal)

    @property
    def subject(self) -> Client:
        """The target, for commands that have one."""
        assert self.target is not None
        return self.target

    def pack(self, reply: Reply) -> bytes:
        """The answer as bytes."""
        header = (reply.header or self.header).reply(reply.result, reply.data2, len(reply.payload))
        if reply.length is not None:
            return _with_length(header, reply.length).pack() + reply.payload
        return header.pack() + reply.payload


def _with_length(header: Header, length: int) -> Header:
    return Header(
        header.command,
        header.flags,
        length,
        header.seq,
        header.data,
        header.data2,
        header.version,
        header.magic,
    )
