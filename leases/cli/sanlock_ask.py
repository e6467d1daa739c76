"""What the actions of `leasehold sanlock` share: asking a daemon, and reading what an action is about."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from leases.cli.sanlock import Arguments
from leases.connection import Connection, socket_path
from leases.daemon import statestring
from leases.daemon.conversation import Exchange
from leases.daemon.wire import IndexEntry, Lockspace, Resource
from paxos.errors import InvalidUse, LeaseholdError
from paxos.geometry import ALIGN_FLAGS, MIB, SECTOR_FLAGS, Geometry

T = TypeVar("T")


def ask(command: Exchange[T]) -> T:
    """On a connection of its own. Raises LeaseholdError."""
    with Connection(socket_path()) as connection:
        return connection.run(command)


def result_of(command: Callable[[], Exchange[object]]) -> int:
    """Its number: 0, or what the daemon refused it with."""
    try:
        ask(command())
    except LeaseholdError as error:
        return error.code
    return 0


def lockspace(arguments: Arguments) -> Lockspace:
    text = arguments.text("s")
    return statestring.parse_lockspace(os.fsencode(text)) if text else Lockspace()


def resources(arguments: Arguments) -> list[Resource]:
    return [statestring.parse_resource(os.fsencode(text)) for text in arguments.values.get("r", [])]


def geometry(arguments: Arguments) -> Geometry | None:
    """The sizes that were asked for, None if none were. Raises InvalidUse for half of them, and for wrong ones."""
    sector, align = arguments.number("Z"), align_of(arguments)
    if not sector and not align:
        return None
    if sector not in SECTOR_FLAGS or align not in ALIGN_FLAGS:
        error = InvalidUse(reason="sector and align size go together")
        error.code = -1  # type: ignore[misc]
        raise error
    return Geometry(sector, align)


def align_of(arguments: Arguments) -> int:
    text = arguments.text("A") or "0"
    return int(text[:-1]) * MIB if text.endswith("M") else int(text)


def done(name: str, result: int) -> int:
    print(f"{name} done {result}")
    return result


def guarded(action: Callable[[], int]) -> int:
    try:
        return action()
    except LeaseholdError as error:
        return error.code


def entry(arguments: Arguments) -> IndexEntry:
    text = arguments.text("e")
    return statestring.parse_index_entry(os.fsencode(text)) if text else IndexEntry()


def print_entry(found: IndexEntry) -> None:
    print(f"name {found.name.decode(errors='surrogateescape') or '-'} offset {found.offset}")
