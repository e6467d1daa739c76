"""What the daemon and its keeper process say to each other: one JSON object a packet, with descriptors where needed.

Both ends are ours, and the socket between them is nobody else's; so this is for exactness, not for strangers. Bytes
travel as latin-1 text. An error travels as its class's name with those of its facts that are plain; what is in
flight stays where it is.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from leases.keeper import decisions
from paxos import errors
from paxos.errors import LeaseholdError

MAX_MESSAGE = 1 << 17
_MAX_FDS = 4
_PLAIN = (str, int, float, bool, type(None))

Message = dict[str, Any]


def text(raw: bytes) -> str:
    return raw.decode("latin-1")


def raw(shown: str) -> bytes:
    return shown.encode("latin-1")


def packed(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def send(channel: socket.socket, message: Message, fds: list[int] | None = None) -> None:
    """Raises OSError when the other end is gone."""
    data = packed(message)
    if fds:
        socket.send_fds(channel, [data], fds)
    else:
        channel.send(data, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors; None when the other end is gone."""
    try:
        data, fds, _, _ = socket.recv_fds(channel, MAX_MESSAGE, _MAX_FDS)
    except OSError:
        return None
    if not data:
        return None
    message: Message = json.loads(data)
    return message, list(fds)


def pack_error(error: BaseException) -> Message:
    facts: Message = {}
    for key, value in getattr(error, "facts", {}).items():
        if isinstance(value, bytes):
            facts[key] = value.decode("utf-8", "backslashreplace")
        elif isinstance(value, _PLAIN):
            facts[key] = value
        else:
            facts[key] = str(value)
    return {"kind": type(error).__name__, "facts": facts, "text": str(error), "code": getattr(error, "code", -201)}


def unpack_error(message: Message) -> LeaseholdError:
    """The error again; one that this side does not know becomes a plain one with its message and number."""
    kind = getattr(errors, message["kind"], None) or getattr(decisions, message["kind"], None)
    if isinstance(kind, type) and issubclass(kind, LeaseholdError):
        return kind(**message["facts"])
    error = LeaseholdError(template=message["text"])
    error.code = message["code"]  # type: ignore[misc]
    return error
