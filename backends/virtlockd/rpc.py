"""virtlockd's protocol as bytes: frames, headers, XDR arguments, errors (lockmanager.md 7.2 to 7.4). No I/O here.

    length (counts itself) | program version procedure type serial status | payload

Everything is big-endian. What a client sends is hostile until it was decoded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar
from uuid import UUID

PROGRAM = 0x0EA7BEEF
KEEPALIVE = 0x6B656570
VERSION = 1

_LENGTH = struct.Struct(">I")
_HEADER = struct.Struct(">IIIIII")
#: of a whole message, in bytes, its length word included
SMALLEST = _LENGTH.size + _HEADER.size
LARGEST = 33554436
#: of a string among the arguments, in bytes
_LONGEST_STRING = 65536


class Type(IntEnum):
    CALL = 0
    REPLY = 1
    MESSAGE = 2


class Status(IntEnum):
    OK = 0
    ERROR = 1


class Procedure(IntEnum):
    REGISTER = 1
    RESTRICT = 2
    NEW = 3
    CREATE_RESOURCE = 4
    DELETE_RESOURCE = 5
    ACQUIRE_RESOURCE = 6
    RELEASE_RESOURCE = 7
    CREATE_LOCKSPACE = 8


class Keepalive(IntEnum):
    PING = 1
    PONG = 2


class BadFrame(Exception):
    """The length word can't be: there is no telling where the next message begins."""


class Undecodable(Exception):
    """The payload is not what the procedure takes."""


@dataclass(frozen=True, slots=True)
class Message:
    program: int
    version: int
    procedure: int
    type: int
    serial: int
    status: int
    payload: bytes = b""

    def pack(self) -> bytes:
        header = _HEADER.pack(self.program, self.version, self.procedure, self.type, self.serial, self.status)
        return _LENGTH.pack(SMALLEST + len(self.payload)) + header + self.payload

    def reply(self, error: Error | None = None) -> Message:
        """The answer to this call: program and version are the caller's, known or not."""
        if error is None:
            return replace(self, type=Type.REPLY, status=Status.OK, payload=b"")
        return replace(self, type=Type.REPLY, status=Status.ERROR, payload=error.pack())


def call(procedure: Procedure, serial: int, payload: bytes) -> Message:
    return Message(PROGRAM, VERSION, procedure, Type.CALL, serial, Status.OK, payload)


class Frames:
    """Cuts what comes from a socket into messages."""

    def __init__(self, rest: bytes = b"") -> None:
        self._rest = bytearray(rest)

    @property
    def rest(self) -> bytes:
        """What came of a message that is not complete."""
        return bytes(self._rest)

    def feed(self, data: bytes) -> None:
        self._rest += data

    def next(self) -> Message | None:
        """The next complete message. Raises BadFrame."""
        if len(self._rest) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._rest)
        if not SMALLEST <= length <= LARGEST:
            raise BadFrame(length)
        if len(self._rest) < length:
            return None
        program, version, procedure, kind, serial, status = _HEADER.unpack_from(self._rest, _LENGTH.size)
        message = Message(program, version, procedure, kind, serial, status, bytes(self._rest[SMALLEST:length]))
        del self._rest[:length]
        return message


# ------------------------------------------------------------------------------------------------------ arguments


class Arguments:
    """Reads XDR fields in order; bytes after the last one are nobody's business. Raises Undecodable."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._position = 0

    def _take(self, length: int) -> bytes:
        piece = self._payload[self._position : self._position + length]
        if len(piece) < length:
            raise Undecodable
        self._position += length
        return piece

    def number(self) -> int:
        value: int = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        return value

    def uuid(self) -> UUID:
        return UUID(bytes=self._take(16))

    def text(self) -> str:
        """A string; bytes that are no UTF-8 are kept, as file names do. A NUL ends it, as in C."""
        length = self.number()
        if length > _LONGEST_STRING:
            raise Undecodable
        piece = self._take(length)
        self._take(-length % 4)
        return piece.split(b"\0")[0].decode("utf-8", "surrogateescape")


def pack_number(value: int) -> bytes:
    return _LENGTH.pack(value)


def pack_text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return _LENGTH.pack(len(encoded)) + encoded + bytes(-len(encoded) % 4)


# --------------------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True, slots=True)
class Error:
    """libvirt's error as it goes over the wire. `int1` has the errno of a system error; -1 where unused."""

    code: int
    domain: int
    message: str
    str1: str | None = None
    str2: str | None = None
    int1: int = -1
    int2: int = -1

    #: an error, not a warning
    LEVEL: ClassVar[int] = 2

    def pack(self) -> bytes:
        return b"".join(
            [
                struct.pack(">iI", self.code, self.domain),
                _optional(self.message),
                struct.pack(">iI", self.LEVEL, 0),
                _optional(self.str1),
                _optional(self.str2),
                _optional(None),
                struct.pack(">iiI", self.int1, self.int2, 0),
            ]
        )

    @classmethod
    def unpack(cls, payload: bytes) -> Error:
        """Raises Undecodable."""
        fields = Arguments(payload)
        code, domain = fields.number(), fields.number()
        message = _read_optional(fields)
        fields.number(), fields.number()
        str1, str2, _str3 = _read_optional(fields), _read_optional(fields), _read_optional(fields)
        int1, int2 = _signed(fields.number()), _signed(fields.number())
        return cls(code, domain, message or "", str1, str2, int1, int2)


def _optional(text: str | None) -> bytes:
    return pack_number(0) if text is None else pack_number(1) + pack_text(text)


def _read_optional(fields: Arguments) -> str | None:
    return fields.text() if fields.number() else None


def _signed(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value
