"""leasehold sanlock: the arguments of the `sanlock` command, its output and its exit codes, word for word.

A wrapper `exec leasehold sanlock "$@"` named `sanlock` replaces the program in scripts that call it (daemon.md 6 to
8 say what is behind it). Every option is one letter and has its value after a space; `-D` has none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from leases.daemon.settings import CONFIG_FILE, BadSetting, Settings, read_file, with_sanlock_options

#: of the reference whose command this is
VERSION = "3.8.5"
_VALUED = "QRHLSUGtgwhlbeoasrpcfxidnAZzOPuFmEN"
_TYPES = ("daemon", "client", "direct")

_USAGE = """Usage:
leasehold sanlock <command> <action> ...

commands:
  daemon        start the daemon, in the foreground
  client        ask the daemon (also without this word)
  direct        use the storage without a daemon
  help          print this
  version       print the version of the command that this one stands for

daemon [-D] [-w 0|1] [-h 0|1] [-l 0|1|2] [-e name] [-U user] [-G group] [-g seconds] [-b seconds]
       [-H number] [-t number] [-Q 0|1] [-R 0|1] [-L number] [-S number]
client status | gets | host_status | renewal | set_event | set_config | log_dump | shutdown | init | read |
       align | add_lockspace | inq_lockspace | rem_lockspace | command | acquire | convert | release | inquire |
       request | examine | format | create | delete | lookup | update | rebuild | version
direct init | read_leader | dump | format | lookup | update | rebuild

LOCKSPACE = name:host_id:path:offset      RESOURCE = lockspace:name:path:offset[:lver|:SH]
RINDEX = lockspace:path:offset            sizes: -Z 512|4096 with -A 1M|2M|4M|8M
"""


class BadArguments(Exception):
    """The message is what is printed."""


@dataclass(slots=True)
class Arguments:
    """Of one action. `values` has each letter's values in order, `rest` what has no letter, or follows -c."""

    action: str = ""
    values: dict[str, list[str]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    debug: bool = False

    def text(self, letter: str) -> str | None:
        found = self.values.get(letter)
        return found[-1] if found else None

    def number(self, letter: str, default: int = 0) -> int:
        """As C's atoi reads it, in any base that it knows by its prefix."""
        found = self.text(letter)
        if found is None:
            return default
        try:
            return int(found, 0)
        except ValueError:
            return 0

    def flag(self, letter: str) -> bool:
        return self.number(letter) != 0


def read_arguments(words: Sequence[str], positional: bool) -> Arguments:
    """An action and its options. Raises BadArguments."""
    found = Arguments(words[0] if words else "")
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-") or len(word) < 2:
            if not positional:
                raise BadArguments(f"unknown option {word}\nspace required before option value")
            found.rest.append(word)
            continue
        letter = word[1]
        if letter == "D":
            found.debug = True
        elif letter not in _VALUED:
            raise BadArguments(f"unknown option: {letter}")
        elif len(word) > 2:
            raise BadArguments(f"unknown option {word}\nspace required before option value")
        elif letter == "c":
            found.rest = list(rest)
        else:
            found.values.setdefault(letter, []).append(_value(letter, rest))
    return found


def _value(letter: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise BadArguments(f"option '{letter}' requires arg")
    return value


class SanlockParser:
    """Stands where the other commands have their argparse parser."""

    def parse_args(self, words: Sequence[str]) -> argparse.Namespace:
        return argparse.Namespace(do=lambda _options: run(list(words)), json=False)


def parser() -> SanlockParser:
    return SanlockParser()


def run(words: list[str]) -> int:
    """Its exit code: 0, or 1 for anything that is no plain success."""
    if not words or words[0] in ("help", "-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else 1
    if words[0] in ("version", "-V", "--version"):
        print(VERSION)
        return 0
    kind = words.pop(0) if words[0] in _TYPES else "client"
    if kind == "daemon":
        return _daemon(words)
    actions = import_module(f"leases.cli.sanlock_{kind}").ACTIONS
    try:
        arguments = read_arguments(words, positional=kind == "direct" and words[:1] == ["dump"])
        if arguments.action not in actions:
            raise BadArguments(f'{kind} action "{arguments.action}" is unknown')
    except BadArguments as error:
        print(error)
        return 1
    return 1 if actions[arguments.action](arguments) else 0


def _daemon(words: list[str]) -> int:
    """In the foreground with or without -D. It begins with nothing: what an earlier daemon held is not taken up."""
    begin = Settings(watchdog="wdmd", adopt=False, high_priority=False, log_level=4)
    try:
        settings = with_sanlock_options(read_file(begin, CONFIG_FILE), words)
    except (BadSetting, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    from leases.daemon.start import run as run_daemon

    return run_daemon(settings)
