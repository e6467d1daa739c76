"""The ground under exchanges: what they yield, how a request is put and its reply taken.

An exchange is a generator. It yields Send and Receive and is sent the bytes received; its return value is the
command's result. It opens nothing and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from leases.daemon.numbers import MAX_REPLY, Command
from leases.daemon.results import DaemonGone, refusal
from leases.daemon.wire import BadMessage, Header, request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class Receive:
    """Exactly `length` bytes; at the end of the connection the fewer that came, down to none."""

    length: int


Exchange = Generator[Send | Receive, bytes, T]


def receive(length: int, what: str) -> Exchange[bytes]:
    """Exactly `length` bytes. Raises DaemonGone at the connection's end, BadMessage for absurd lengths."""
    if length > MAX_REPLY:
        raise BadMessage(what=what, reason=f"{length} bytes announced, at most {MAX_REPLY} are possible")
    data = yield Receive(length)
    if len(data) < length:
        raise DaemonGone(command=what)
    return data


def reply(command: Command) -> Exchange[Header]:
    header = Header.unpack((yield from receive(Header.layout.size, command.name)))
    header.check()
    # the answer to SHUTDOWN_WAIT comes from the end of the main loop, which no longer knows the command
    if header.command != command and command != Command.SHUTDOWN_WAIT:
        raise BadMessage(what=f"reply to {command.name}", reason=f"it answers command {header.command}")
    return header


def ask(
    command: Command, payload: bytes, subject: str, *, flags: int = 0, data: int = 0, data2: int = 0
) -> Exchange[Header]:
    """Send a request and receive the header of its reply. Raises `refusal` for a negative result.

    What follows a negative result is left unread: the connection is done for.
    """
    yield Send(request(command, payload, flags=flags, data=data, data2=data2))
    header = yield from reply(command)
    if header.result < 0:
        raise refusal(command, header.result, subject)
    return header


def array(command: Command, header: Header, item: Callable[[bytes, int], T], size: int) -> Exchange[list[T]]:
    """The `data2` structures of `size` bytes that follow a reply's header."""
    raw = yield from receive(header.data2 * size, command.name)
    return [item(raw, n * size) for n in range(header.data2)]
