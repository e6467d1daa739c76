"""What all records on disk share: names of 48 bytes, version numbers, and the first check of their length."""

from __future__ import annotations

from typing import Final, TypeAlias

from paxos.errors import InvalidUse, RecordTooShort

Bytes: TypeAlias = bytes | bytearray | memoryview

NAME_LENGTH: Final = 48
#: a record whose version differs in these bits is laid out otherwise (ondisk.md 1.5)
MAJOR_MASK: Final = 0xFFFF0000
#: no host has ever counted so far: a version, generation or ballot number above it is damage, and could not be raised
COUNTER_LIMIT: Final = 1 << 62


def same_major(version: int, ours: int) -> bool:
    return version & MAJOR_MASK == ours & MAJOR_MASK


def need(data: Bytes, needed: int, record: str) -> None:
    """Raises RecordTooShort if `data` is less than `needed` bytes, so too few to hold `record`."""
    if len(data) < needed:
        raise RecordTooShort(place=f"a buffer of {len(data)} bytes", record=record, needed=needed, got=len(data))


def pack_name(name: bytes) -> bytes:
    """A name as a field of 48 bytes, NUL padded; 48 bytes leave no NUL. Raises InvalidUse if it is none."""
    if not name:
        raise InvalidUse(reason="a name must not be empty")
    if len(name) > NAME_LENGTH:
        raise InvalidUse(reason=f"a name has at most {NAME_LENGTH} bytes, this one {len(name)}: {name!r}")
    if 0 in name:
        raise InvalidUse(reason=f"a name must not contain a NUL byte: {name!r}")
    return name.ljust(NAME_LENGTH, b"\0")


def name_of(field: bytes) -> bytes:
    """The name in a field of 48 bytes: all before the first NUL. The tail means nothing (ondisk.md 1.3)."""
    return field[:NAME_LENGTH].partition(b"\0")[0]


def same_name(a: bytes, b: bytes) -> bool:
    """Whether two fields, or names, are the same up to their first NUL or 48 bytes."""
    return name_of(a) == name_of(b)


def replace_name(old: bytes, new: bytes) -> bytes:
    """The field `old` with `new` and one NUL stored over it; the tail of a longer old name stays.

    The reference does it so (ondisk.md 1.3). Raises InvalidUse if `new` has more than 48 bytes.
    """
    if len(new) > NAME_LENGTH:
        raise InvalidUse(reason=f"a name has at most {NAME_LENGTH} bytes, this one {len(new)}: {new!r}")
    return (new + b"\0" + old[len(new) + 1 :])[:NAME_LENGTH]
