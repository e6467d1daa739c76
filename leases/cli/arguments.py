"""How the command line is read: the parser all commands share, and the kinds of values they take."""

from __future__ import annotations

import argparse
from typing import NoReturn

from paxos.errors import InvalidUse

MIB = 1024 * 1024


class BadCommandLine(InvalidUse):
    """`reason` is the parser's."""


class Parser(argparse.ArgumentParser):
    """Raises BadCommandLine for what it can't read. Options are never guessed from their beginnings."""

    def __init__(self, prog: str | None = None, **how: object) -> None:
        super().__init__(prog=prog, allow_abbrev=False, **how)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise BadCommandLine(reason=message, program=self.prog, advice=f"see {self.prog} --help")


def size(text: str) -> int:
    """Bytes from `4096`, `1M` or `1MiB`."""
    digits = text.upper().removesuffix("IB").removesuffix("M")
    try:
        number = int(digits)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write e.g. 1M") from None
    return number if digits == text.upper() else number * MIB


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON, and nothing else, to standard output")


def add_volume(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--volume", metavar="PATH", required=required, help="the volume: a file or a block device")
