"""Handing everything to a successor: a description in JSON, and the descriptors that it names by their place.

A lock of an open file description is held as long as anybody has the descriptor. So the successor gets all of them
first, says that it has them, and only then the predecessor ends: nothing is unlocked for a moment, and if the
successor dies on the way, the predecessor still has everything.

    successor: one word          TAKE: only from who no longer serves; REPLACE: from who serves as well
    predecessor: BUSY, or        length (8 bytes) | JSON | one byte for each descriptor, descriptors attached
    successor: DONE
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

TAKE, REPLACE, BUSY, READY, DONE = b"take", b"repl", b"busy", b"redy", b"done"
_WORD = 4
_LENGTH = struct.Struct(">Q")
#: descriptors in one message; the kernel takes at most 253
_BATCH = 200
#: seconds the other side may take for anything
PATIENCE = 10.0


class HandoverFailed(Exception):
    """The other side went away, or is none."""


def send(channel: socket.socket, document: dict[str, Any], fds: Sequence[int]) -> bool:
    """Hand over. Whether the successor has said that it has everything."""
    text = json.dumps({**document, "descriptors": len(fds)}).encode()
    try:
        channel.sendall(READY + _LENGTH.pack(len(text)) + text)
        for start in range(0, len(fds), _BATCH):
            some = fds[start : start + _BATCH]
            socket.send_fds(channel, [b"f"], list(some))
        return _receive(channel, _WORD) == DONE
    except (OSError, HandoverFailed):
        return False


def word(channel: socket.socket) -> bytes:
    """What the successor wants. Raises HandoverFailed."""
    return _receive(channel, _WORD)


def refuse(channel: socket.socket) -> None:
    channel.sendall(BUSY)


def take(path: str, *, replace: bool) -> tuple[socket.socket, dict[str, Any], list[int]] | None:
    """Get everything from whoever listens at `path`; None if there is nobody. `done` must be called afterwards.

    Raises HandoverFailed, AlreadyServing if it serves and is not to be replaced.
    """
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(PATIENCE)
    try:
        try:
            channel.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            channel.close()
            return None
        channel.sendall(REPLACE if replace else TAKE)
        if _receive(channel, _WORD) == BUSY:
            raise AlreadyServing
        (length,) = _LENGTH.unpack(_receive(channel, _LENGTH.size))
        document = json.loads(_receive(channel, length))
        return channel, document, _receive_descriptors(channel, document["descriptors"])
    except OSError as error:
        channel.close()
        raise HandoverFailed(str(error)) from error
    except BaseException:
        channel.close()
        raise


class AlreadyServing(HandoverFailed):
    pass


def done(channel: socket.socket) -> None:
    """We have everything: the predecessor ends now."""
    with channel:
        channel.sendall(DONE)
        channel.settimeout(PATIENCE)
        channel.recv(1)  # until it has


def _receive(channel: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = channel.recv(length - len(data))
        if not piece:
            raise HandoverFailed("the other side has gone")
        data += piece
    return data


def _receive_descriptors(channel: socket.socket, count: int) -> list[int]:
    fds: list[int] = []
    try:
        while len(fds) < count:
            byte, ancillary, _flags, _address = channel.recvmsg(
                1, socket.CMSG_SPACE(_BATCH * 4), socket.MSG_CMSG_CLOEXEC
            )
            if not byte:
                raise HandoverFailed("the other side has gone")
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.extend(array.array("i", data[: len(data) - len(data) % 4]))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return fds
