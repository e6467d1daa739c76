"""Lockspaces, resources and lists of them as text (daemon.md section 5).

    lockspace   name:host_id:path:offset
    resource    lockspace:name:path:offset[:path:offset...][:lver|:SH]
    index       lockspace:path:offset
    entry       name[:offset]
    state       resources joined by one space

In paths a backslash protects a space or a colon. The functions work on bytes: names are bytes, and what the
daemon says need not be text in any encoding. Offsets are decimal, or decimal MiB with the suffix `M`. Where
the reference takes of a bad number what it can read, BadText is raised here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from leases.daemon.numbers import MAX_DISKS, NAME_LENGTH, PATH_LENGTH, ResourceFlag
from leases.daemon.wire import Disk, Index, IndexEntry, Lockspace, Resource
from paxos.errors import InvalidUse
from paxos.geometry import MIB

MAX_RESOURCE_TEXT = 4400

_MAX_U64 = (1 << 64) - 1
_FIELD = re.compile(rb"(?:[^\\:]|\\.)*", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(rb"\\.|[ :]", re.DOTALL)
_OFFSET = re.compile(rb"\d+M?")
#: as strtoull with base 0 reads it
_NUMBER = re.compile(rb"(0[xX][0-9a-fA-F]+)|(0[0-7]*)|([1-9]\d*)")


class BadText(InvalidUse):
    """A text that names no lockspace, resource or index."""

    template = "{text} is no {kind}: {reason}"


# ---------------------------------------------------------------------------------------------------- to text


def format_lockspace(lockspace: Lockspace) -> bytes:
    disk = lockspace.disk
    return b"%s:%d:%s:%d" % (lockspace.name, lockspace.host_id, _exported(disk.path), disk.offset)


def format_resource(resource: Resource) -> bytes:
    """Names as they are, paths escaped, `SH` or the version in the end. InvalidUse above 4400 bytes."""
    disks = b"".join(b":%s:%d" % (_exported(disk.path), disk.offset) for disk in resource.disks)
    end = b"SH" if resource.shared else b"%d" % resource.lver
    text = resource.lockspace + b":" + resource.name + disks + b":" + end
    if len(text) > MAX_RESOURCE_TEXT:
        raise InvalidUse(reason=f"a resource's text has at most {MAX_RESOURCE_TEXT} bytes, not {len(text)}")
    return text


def format_state(resources: Iterable[Resource]) -> bytes:
    return b" ".join(format_resource(resource) for resource in resources)


def export_path(path: bytes) -> bytes:
    """A backslash before each space and colon; what a backslash protects already stays as it is."""
    return _TO_ESCAPE.sub(lambda found: found[0] if found[0][0] == 0x5C else b"\\" + found[0], path)


def _exported(path: str) -> bytes:
    return export_path(path.encode("utf-8", "surrogateescape"))


# -------------------------------------------------------------------------------------------------- from text


def parse_lockspace(text: bytes) -> Lockspace:
    """Missing parts stay empty or 0, as in `LS` or `:0:/dev/vg/leases:0`. Raises BadText."""
    kind = "lockspace"
    parts = _split(text, kind)
    if len(parts) > 4:
        raise BadText(text=text, kind=kind, reason=f"{len(parts)} fields, at most 4 are possible")
    name, host_id, path, offset = parts + [b""] * (4 - len(parts))
    disk = Disk(_path(path.replace(b"\\", b""), text, kind) if path else "", _offset(offset or b"0", text, kind))
    return Lockspace(_name(name, text, kind), _decimal(host_id or b"0", text, kind), disk)


def parse_resource(text: bytes) -> Resource:
    """A resource with 0 to 4 disks. A version sets the flag LVER, `SH` the flag SHARED. Raises BadText."""
    kind = "resource"
    parts = _split(text, kind)
    if len(parts) < 2:
        raise BadText(text=text, kind=kind, reason="it needs lockspace:name:path:offset")
    lockspace, name, *rest = parts
    flags = lver = 0
    if len(rest) % 2:
        end = rest.pop()
        if not rest:
            raise BadText(text=text, kind=kind, reason="a path without an offset")
        if end.startswith(b"SH"):
            flags = ResourceFlag.SHARED
        else:
            flags, lver = ResourceFlag.LVER, _number(end, text, kind)
    if len(rest) > 2 * MAX_DISKS:
        raise BadText(text=text, kind=kind, reason=f"{len(rest) // 2} disks, at most {MAX_DISKS} are possible")
    disks = tuple(
        Disk(_path(_unescaped(path), text, kind), _offset(offset, text, kind))
        for path, offset in zip(rest[::2], rest[1::2], strict=True)
    )
    lockspace, name = (_name(_unescaped(part), text, kind) for part in (lockspace, name))
    return Resource(lockspace, name, disks, int(flags), lver)


def parse_state(text: bytes) -> list[Resource]:
    """Resources separated by spaces. A space before an element's third colon belongs to a name or path.

    Raises BadText; so does an empty text.
    """
    elements = [bytearray()]
    position, colons = 0, 0
    while position < len(text):
        char = text[position : position + 1]
        if char == b"\\":
            char = text[position : position + 2]
        elif char == b":":
            colons += 1
        elif char == b" " and colons >= 3:
            elements.append(bytearray())
            colons = -1  # so that the space itself is not part of the next element
        if colons < 0:
            colons = 0
        else:
            elements[-1] += char
        position += len(char)
    return [parse_resource(bytes(element)) for element in elements]


def parse_index(text: bytes) -> Index:
    """Raises BadText."""
    kind = "resource index"
    parts = _split(text, kind)
    if len(parts) not in (2, 3):
        raise BadText(text=text, kind=kind, reason="it needs lockspace:path[:offset]")
    lockspace, path, *offset = parts
    disk = Disk(_path(_unescaped(path), text, kind), _offset(offset[0] if offset else b"0", text, kind))
    return Index(_name(_unescaped(lockspace), text, kind), disk)


def parse_index_entry(text: bytes) -> IndexEntry:
    """`name`, `name:offset` or `:offset`. Raises BadText."""
    kind = "index entry"
    parts = _split(text, kind)
    if len(parts) > 2:
        raise BadText(text=text, kind=kind, reason="it needs name[:offset]")
    offset = _offset(parts[1], text, kind) if len(parts) == 2 else 0
    return IndexEntry(_name(_unescaped(parts[0]), text, kind), offset)


# ----------------------------------------------------------------------------------------------------- fields


def _split(text: bytes, kind: str) -> list[bytes]:
    """At colons that no backslash protects; the escapes stay in."""
    if b"\0" in text:
        raise BadText(text=text, kind=kind, reason="it contains a NUL byte")
    parts = []
    position = 0
    while True:
        found = _FIELD.match(text, position)
        assert found is not None
        parts.append(found[0])
        position = found.end()
        if position == len(text):
            return parts
        if text[position] != 0x3A:
            raise BadText(text=text, kind=kind, reason="a backslash protects nothing at the end")
        position += 1


def _unescaped(part: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", part)


def _name(part: bytes, text: bytes, kind: str) -> bytes:
    if len(part) > NAME_LENGTH:
        raise BadText(text=text, kind=kind, reason=f"a name has at most {NAME_LENGTH} bytes, not {len(part)}")
    return part


def _path(part: bytes, text: bytes, kind: str) -> str:
    if not 0 < len(part) < PATH_LENGTH:
        raise BadText(text=text, kind=kind, reason=f"a path has 1 to {PATH_LENGTH - 1} bytes, not {len(part)}")
    return part.decode("utf-8", "surrogateescape")


def _offset(part: bytes, text: bytes, kind: str) -> int:
    if not _OFFSET.fullmatch(part):
        raise BadText(text=text, kind=kind, reason=f"{part.decode('latin-1')!r} is no offset")
    value = int(part[:-1]) * MIB if part.endswith(b"M") else int(part)
    return _checked(value, part, text, kind)


def _decimal(part: bytes, text: bytes, kind: str) -> int:
    if not part.isdigit():
        raise BadText(text=text, kind=kind, reason=f"{part.decode('latin-1')!r} is no host id")
    return _checked(int(part), part, text, kind)


def _number(part: bytes, text: bytes, kind: str) -> int:
    found = _NUMBER.fullmatch(part)
    if not found:
        raise BadText(text=text, kind=kind, reason=f"{part.decode('latin-1')!r} is no version")
    base = 16 if found[1] else 8 if found[2] else 10
    return _checked(int(part, base), part, text, kind)


def _checked(value: int, part: bytes, text: bytes, kind: str) -> int:
    if value > _MAX_U64:
        raise BadText(text=text, kind=kind, reason=f"{part.decode('latin-1')} is too large")
    return value
