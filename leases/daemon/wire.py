"""The messages of the daemon's socket protocol as bytes: the header and the structures (daemon.md 2 and 4).

A message is a header of 32 bytes and, for most commands, structures after it. All integers are in host byte
order, all structures have the C layout of 64 bit Linux. Strings are NUL padded; a name of 48 bytes has no
NUL. Names are bytes here, as on the disk; paths are text (UTF-8, with undecodable bytes as in os.fsdecode).

This module turns bytes into frozen dataclasses and back, for both ends. It trusts nothing: bytes that are no
structure raise BadMessage; values that no structure can carry raise InvalidUse. It does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from struct import Struct
from struct import error as StructError
from typing import Any, ClassVar, Self

from leases.daemon.numbers import (
    KILLPATH_FIELD,
    MAGIC,
    MAX_DISKS,
    MAX_STATE_TEXT,
    NAME_LENGTH,
    OWN_CONNECTION,
    PATH_LENGTH,
    PROTOCOL,
    Command,
    HostState,
    ResourceFlag,
    StateType,
)
from paxos.errors import InvalidUse, LeaseholdError
from paxos.geometry import MAX_HOSTS, Geometry

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


class BadMessage(LeaseholdError):
    """Bytes from the socket that are no message of this protocol."""

    template = "{what}: {reason}"


SIZE_MASK = 0x3F0


def geometry_of(flags: int) -> Geometry | None:
    """The sizes that these flags state; None when they state none.

    Raises BadMessage for one size without the other and for pairs that do not exist.
    """
    sizes = flags & SIZE_MASK
    if not sizes:
        return None
    for sector_size, align_size in MAX_HOSTS:
        geometry = Geometry(sector_size, align_size)
        if geometry.wire_flags == sizes:
            return geometry
    raise BadMessage(what="size flags", reason=f"{sizes:#x} is no valid pair of sector and align size")


# ----------------------------------------------------------------------------------------------------- fields


def _unpack(layout: Struct, data: bytes, offset: int, what: str) -> tuple[Any, ...]:
    if len(data) - offset < layout.size:
        raise BadMessage(what=what, reason=f"{max(0, len(data) - offset)} bytes instead of {layout.size}")
    return layout.unpack_from(data, offset)


def _pack(layout: Struct, what: str, *values: Any) -> bytes:
    try:
        return layout.pack(*values)
    except StructError as error:
        raise InvalidUse(reason=f"{what}: {error} in {values!r}") from None


def _name_field(name: bytes) -> bytes:
    if len(name) > NAME_LENGTH:
        raise InvalidUse(reason=f"a name has at most {NAME_LENGTH} bytes, this one {len(name)}: {name!r}")
    return name


def _text(raw: bytes) -> bytes:
    """What comes before the first NUL; all of it where there is none."""
    return raw.split(b"\0", 1)[0]


def _path_text(raw: bytes) -> str:
    if b"\0" not in raw:
        raise BadMessage(what="path", reason=f"no end within {len(raw)} bytes")
    return _text(raw).decode("utf-8", "surrogateescape")


def _path_field(path: str, length: int = PATH_LENGTH) -> bytes:
    raw = path.encode("utf-8", "surrogateescape")
    if len(raw) >= length:
        raise InvalidUse(reason=f"a path has at most {length - 1} bytes, this one {len(raw)}")
    if b"\0" in raw:
        raise InvalidUse(reason=f"a path must not contain a NUL byte: {path!r}")
    return raw


# ------------------------------------------------------------------------------------------------- the header


@dataclass(frozen=True, slots=True)
class Header:
    """First 32 bytes of each message, in both directions. `length` counts them and the payload, in bytes."""

    layout: ClassVar[Struct] = Struct("=8I")

    command: int
    flags: int = 0
    length: int = 32
    seq: int = 0
    #: request: an argument; reply: the result as an unsigned number, see `result`
    data: int = 0
    data2: int = 0
    version: int = PROTOCOL
    magic: int = MAGIC

    @property
    def result(self) -> int:
        """`data` as the signed result of a reply."""
        return self.data - (1 << 32) if self.data & 0x80000000 else self.data

    @property
    def payload(self) -> int:
        """Bytes that follow, as the sender says; 0 for lengths that do not even cover the header."""
        return max(0, self.length - self.layout.size)

    @property
    def major(self) -> int:
        return self.version >> 16

    @property
    def own_target(self) -> bool:
        """Whether the command is about its own connection, not another process by its pid (`data2`)."""
        return self.data2 == OWN_CONNECTION

    def reply(self, result: int, data2: int = 0, payload: int = 0) -> Header:
        """The header that answers this one: command, flags and seq come back, the rest is new."""
        return replace(
            self,
            magic=MAGIC,
            version=PROTOCOL,
            length=self.layout.size + payload,
            data=result & _U32,
            data2=data2 & _U32,
        )

    def pack(self) -> bytes:
        return _pack(
            self.layout,
            "header",
            self.magic,
            self.version,
            self.command,
            self.flags,
            self.length,
            self.seq,
            self.data,
            self.data2,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Any 32 bytes; `check` says whether they are a header."""
        magic, version, command, flags, length, seq, data1, data2 = _unpack(cls.layout, data, offset, "header")
        return cls(command, flags, length, seq, data1, data2, version, magic)

    def check(self) -> None:
        """Raise BadMessage unless magic and version are ours. A server ignores such messages."""
        if self.magic != MAGIC:
            raise BadMessage(what="header", reason=f"magic {self.magic:#010x} instead of {MAGIC:#010x}")
        if self.major > 0 and self.command != Command.VERSION:
            raise BadMessage(what="header", reason=f"protocol version {self.version:#x} is not ours")


def request(command: Command, payload: bytes = b"", *, flags: int = 0, data: int = 0, data2: int = 0) -> bytes:
    """A whole request. `data` and `data2` may be negative (-1 as a pid)."""
    header = Header(command, flags, Header.layout.size + len(payload), 0, data & _U32, data2 & _U32)
    return header.pack() + payload


# ------------------------------------------------------------------------------------------------- structures


@dataclass(frozen=True, slots=True)
class Disk:
    """A path and a byte offset on it. The daemon's pads are not kept: they mean nothing to clients."""

    layout: ClassVar[Struct] = Struct("=1024sQII")

    path: str = ""
    offset: int = 0

    def pack(self) -> bytes:
        return _pack(self.layout, "disk", _path_field(self.path), self.offset, 0, 0)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        path, place, _, _ = _unpack(cls.layout, data, offset, "disk")
        return cls(_path_text(path), place)


@dataclass(frozen=True, slots=True)
class Lockspace:
    """A lockspace, and a host in it. Flags: LockspaceFlag and SizeFlag."""

    layout: ClassVar[Struct] = Struct("=48sQI4x1040s")

    name: bytes = b""
    host_id: int = 0
    disk: Disk = field(default_factory=Disk)
    flags: int = 0

    def pack(self) -> bytes:
        return _pack(self.layout, "lockspace", _name_field(self.name), self.host_id, self.flags, self.disk.pack())

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        name, host_id, flags, disk = _unpack(cls.layout, data, offset, "lockspace")
        return cls(_text(name), host_id, Disk.unpack(disk), flags)


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource. Flags: ResourceFlag, SizeFlag; `lver` counts only with LVER, `num_hosts` with NUM_HOSTS.

    Whether its disks go over the wire depends on the command; `num_disks` is sent in any case.
    """

    layout: ClassVar[Struct] = Struct("=48s48sQQIIII")

    lockspace: bytes = b""
    name: bytes = b""
    disks: tuple[Disk, ...] = ()
    flags: int = 0
    lver: int = 0
    num_hosts: int = 0
    #: as the sender counts them: equal to len(disks) unless the disks were not sent
    num_disks: int = -1

    @property
    def shared(self) -> bool:
        return bool(self.flags & ResourceFlag.SHARED)

    def pack(self) -> bytes:
        """The 128 bytes without disks."""
        return _pack(
            self.layout,
            "resource",
            _name_field(self.lockspace),
            _name_field(self.name),
            self.lver,
            0,
            self.num_hosts,
            0,
            self.flags,
            len(self.disks) if self.num_disks < 0 else self.num_disks,
        )

    def pack_with_disks(self) -> bytes:
        return self.pack() + b"".join(disk.pack() for disk in self.disks)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """The 128 bytes. `disks` is empty; `num_disks` is the sender's word, any number."""
        lockspace, name, lver, _, num_hosts, _, flags, num_disks = _unpack(cls.layout, data, offset, "resource")
        return cls(_text(lockspace), _text(name), (), flags, lver, num_hosts, num_disks)

    @classmethod
    def unpack_with_disks(cls, data: bytes, offset: int = 0) -> Self:
        """Raises BadMessage also for more than 4 disks. Its size on the wire is `wire_size`."""
        cls.disks_size(data[offset : offset + cls.layout.size])
        bare = cls.unpack(data, offset)
        start = offset + cls.layout.size
        return replace(
            bare,
            disks=tuple(Disk.unpack(data, start + n * Disk.layout.size) for n in range(bare.num_disks)),
        )

    @property
    def wire_size(self) -> int:
        """Bytes with disks."""
        return self.layout.size + len(self.disks) * Disk.layout.size

    @classmethod
    def disks_size(cls, data: bytes) -> int:
        """Bytes of disks that follow these 128. Raises BadMessage for more than 4 disks."""
        count = cls.unpack(data).num_disks
        if count > MAX_DISKS:
            raise BadMessage(what="resource", reason=f"{count} disks, at most {MAX_DISKS} are possible")
        return count * Disk.layout.size


@dataclass(frozen=True, slots=True)
class Options:
    """Follows the resources of ACQUIRE. `owner_name` replaces the client's display name."""

    layout: ClassVar[Struct] = Struct("=48sII")

    owner_name: bytes = b""
    flags: int = 0

    def pack(self) -> bytes:
        return _pack(self.layout, "options", _name_field(self.owner_name), self.flags, 0)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        name, flags, _ = _unpack(cls.layout, data, offset, "options")
        return cls(_text(name), flags)


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a lockspace. `timestamp` is on that host's clock, `io_timeout` in seconds."""

    layout: ClassVar[Struct] = Struct("=QQQII")

    host_id: int
    generation: int = 0
    timestamp: int = 0
    io_timeout: int = 0
    flags: int = 0

    @property
    def state(self) -> HostState | None:
        """None where the sender does not say (READ_RESOURCE_OWNERS)."""
        number = self.flags & 0xF
        if number == 0:
            return None
        if number > HostState.DEAD:
            raise BadMessage(what="host", reason=f"state {number} is unknown")
        return HostState(number)

    def pack(self) -> bytes:
        return _pack(self.layout, "host", self.host_id, self.generation, self.timestamp, self.io_timeout, self.flags)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        return cls(*_unpack(cls.layout, data, offset, "host"))


@dataclass(frozen=True, slots=True)
class HostEvent:
    """An event for one host. `event` and `data` mean what the applications agree on."""

    layout: ClassVar[Struct] = Struct("=QQQQ")

    host_id: int = 0
    generation: int = 0
    event: int = 0
    data: int = 0

    def pack(self) -> bytes:
        return _pack(self.layout, "host event", self.host_id, self.generation, self.event, self.data)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        return cls(*_unpack(cls.layout, data, offset, "host event"))


@dataclass(frozen=True, slots=True)
class EventMessage:
    """What the daemon sends to a registered event connection, unasked: an event and its sender. 80 bytes."""

    layout: ClassVar[Struct] = Struct("=32s32sQQ")

    event: HostEvent
    from_host_id: int
    from_generation: int

    def pack(self) -> bytes:
        header = Header(Command.REGISTER, length=self.layout.size)
        return _pack(
            self.layout,
            "event message",
            header.pack(),
            self.event.pack(),
            self.from_host_id,
            self.from_generation,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        header, event, host_id, generation = _unpack(cls.layout, data, offset, "event message")
        Header.unpack(header).check()
        return cls(HostEvent.unpack(event), host_id, generation)


@dataclass(frozen=True, slots=True)
class Index:
    """A resource index (rindex). Flags: SizeFlag. `max_resources` 0 leaves it to the daemon."""

    layout: ClassVar[Struct] = Struct("=IIQ48s1040s")

    lockspace: bytes = b""
    disk: Disk = field(default_factory=Disk)
    flags: int = 0
    max_resources: int = 0

    def pack(self) -> bytes:
        return _pack(
            self.layout,
            "rindex",
            self.flags,
            self.max_resources,
            0,
            _name_field(self.lockspace),
            self.disk.pack(),
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        flags, max_resources, _, lockspace, disk = _unpack(cls.layout, data, offset, "rindex")
        return cls(_text(lockspace), Disk.unpack(disk), flags, max_resources)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An entry of a resource index: a name, and the byte offset of its lease on the disk."""

    layout: ClassVar[Struct] = Struct("=48sQII")

    name: bytes = b""
    offset: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return _pack(self.layout, "rentry", _name_field(self.name), self.offset, self.flags, 0)

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        name, place, flags, _ = _unpack(cls.layout, data, offset, "rentry")
        return cls(_text(name), place, flags)


@dataclass(frozen=True, slots=True)
class State:
    """A record of STATUS, HOST_STATUS or RENEWAL, without its text: `text_length` bytes follow, NUL included.

    What data32, data64 and name mean depends on `type` (daemon.md 8).
    """

    layout: ClassVar[Struct] = Struct("=III4xQ48sI4x")

    type: StateType
    data32: int = 0
    data64: int = 0
    name: bytes = b""
    text_length: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return _pack(
            self.layout,
            "state",
            self.type,
            self.flags,
            self.data32 & _U32,
            self.data64 & _U64,
            _name_field(self.name),
            self.text_length,
        )

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        number, flags, data32, data64, name, length = _unpack(cls.layout, data, offset, "state")
        try:
            kind = StateType(number)
        except ValueError:
            raise BadMessage(what="state", reason=f"record type {number} is unknown") from None
        if length > MAX_STATE_TEXT:
            raise BadMessage(what="state", reason=f"text of {length} bytes, at most {MAX_STATE_TEXT}")
        return cls(kind, data32, data64, _text(name), length, flags)


def state_text(values: dict[str, object]) -> bytes:
    """`key=value` pairs as the text of a state record, with its NUL and cut to the limit."""
    text = " ".join(f"{key}={value}" for key, value in values.items()).encode("utf-8", "surrogateescape")
    return text[: MAX_STATE_TEXT - 1] + b"\0"


def parse_state_text(raw: bytes) -> dict[str, str]:
    """The pairs of a state record's text. Values without `=` are dropped: names may contain spaces."""
    text = _text(raw).decode("utf-8", "surrogateescape")
    return dict(pair.split("=", 1) for pair in text.split(" ") if "=" in pair)


def pack_killpath(path: str, args: bytes) -> bytes:
    """The payload of KILLPATH: two fields of 128 bytes. `args` is one string (escapes: daemon.md 7.1)."""
    if len(args) >= KILLPATH_FIELD:
        raise InvalidUse(reason=f"kill path arguments have at most {KILLPATH_FIELD - 1} bytes, not {len(args)}")
    return _path_field(path, KILLPATH_FIELD).ljust(KILLPATH_FIELD, b"\0") + args.ljust(KILLPATH_FIELD, b"\0")


def unpack_killpath(data: bytes) -> tuple[str, bytes]:
    """Path and argument string; the last byte of each field counts as NUL whatever it is."""
    if len(data) < 2 * KILLPATH_FIELD:
        raise BadMessage(what="kill path", reason=f"{len(data)} bytes instead of {2 * KILLPATH_FIELD}")
    path, args = data[: KILLPATH_FIELD - 1], data[KILLPATH_FIELD : 2 * KILLPATH_FIELD - 1]
    return _text(path).decode("utf-8", "surrogateescape"), _text(args)
