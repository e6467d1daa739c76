"""How results are shown: as JSON for programs, or as tables and lines for people, drawn by rich."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leases.cli.failure import plain

#: columns of an output that is no terminal
_UNFOLDED = 100_000


def print_json(value: Any) -> None:
    json.dump(as_json(value), sys.stdout, indent=2, default=plain)
    print()


def as_json(value: Any) -> Any:
    """Dataclasses as objects, enums by their names in lower case."""
    if isinstance(value, Enum):
        return value.name.lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return value


def console() -> Console:
    """Where it goes to a file or a pipe, nothing is folded."""
    out = Console(highlight=False, emoji=False)
    if not out.is_terminal:
        out.width = _UNFOLDED
    return out


def print_line(text: str, style: str = "") -> None:
    console().print(Text(text, style=style))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Columns whose name ends in a space are numbers and stand to the right."""
    if not rows:
        print_line(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.endswith(" ")
        table.add_column(column.strip(), justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    console().print(table)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Names and values, one a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, _cell(value))
    console().print(table)


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text(str(value))
