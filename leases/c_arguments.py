"""Python values as the C code of the `sanlock` module takes them: its checks, its messages, its wrapping integers."""

from __future__ import annotations

import operator
import os
from typing import Any, SupportsIndex, TypeVar

from leases.daemon.numbers import NAME_LENGTH, PATH_LENGTH
from leases.daemon.wire import Disk
from paxos.geometry import ALIGN_FLAGS, SECTOR_FLAGS

T = TypeVar("T")
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Disks = list[tuple[Path, int]]


def name(value: bytes) -> bytes:
    """The bytes of a name, cut at a NUL and at 48 bytes. Raises TypeError."""
    if not isinstance(value, bytes):
        raise TypeError(f"Argument type is not bytes: {value!r}")
    return value.split(b"\0", 1)[0][:NAME_LENGTH]


def path(value: Path) -> bytes:
    """A path as bytes. Raises TypeError, and ValueError for a NUL in it."""
    raw = os.fsencode(value)
    if 0 in raw:
        raise ValueError("embedded null byte")
    return raw


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def u64(value: int, position: int) -> int:
    """An integer modulo 2**64; `position` is the argument's, for the TypeError."""
    if not isinstance(value, int):
        raise TypeError(f"argument {position} must be int, not {_kind(value)}")
    return value & 0xFFFFFFFFFFFFFFFF


def u32(value: SupportsIndex) -> int:
    """An integer modulo 2**32. Raises TypeError."""
    return operator.index(value) & 0xFFFFFFFF


def i32(value: SupportsIndex) -> int:
    """A C int. Raises TypeError and OverflowError."""
    number = long(value)
    if not -(1 << 31) <= number < 1 << 31:
        way = "greater than maximum" if number > 0 else "less than minimum"
        raise OverflowError(f"signed integer is {way}")
    return number


def long(value: SupportsIndex) -> int:
    """A C long. Raises TypeError and OverflowError."""
    number = operator.index(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError("Python int too large to convert to C long")
    return number


def size_flags(align: int, sector: int) -> int:
    """The flags of two sizes, each valid by itself. Raises ValueError."""
    if align not in ALIGN_FLAGS:
        raise ValueError(f"Invalid align value: {align}")
    if sector not in SECTOR_FLAGS:
        raise ValueError(f"Invalid sector value: {sector}")
    return ALIGN_FLAGS[align] | SECTOR_FLAGS[sector]


def list_at(value: list[T], position: int) -> list[T]:
    """A list, whatever is in it; `position` is the argument's, for the TypeError."""
    if not isinstance(value, list):
        raise TypeError(f"argument {position} must be list, not {_kind(value)}")
    return value


def disk_path(raw: bytes) -> str:
    """Raises ValueError when it is too long for the protocol."""
    if len(raw) >= PATH_LENGTH:
        raise ValueError(f"Path is too long: {raw!r}")
    return text(raw)


def disks(value: Disks) -> tuple[Disk, ...]:
    """Tuples `(path, offset)` as structures. Raises ValueError."""
    return tuple(_disk(item) for item in value)


def _disk(item: Any) -> Disk:
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[1], int):
        raise ValueError(f"Invalid disk {item!r}")
    try:
        raw = path(item[0])
    except (TypeError, ValueError):
        raise ValueError(f"Invalid disk {item!r}") from None
    return Disk(disk_path(raw), item[1] & 0xFFFFFFFFFFFFFFFF)
