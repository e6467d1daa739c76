"""How an error is told: one line and what to do on standard error, or all its facts as JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from leases.cli.exit_codes import UNAVAILABLE, exit_code
from paxos.errors import LeaseholdError


def report(error: Exception, *, as_json: bool) -> int:
    """Tell the user. Returns the exit code. With LEASEHOLD_TRACEBACK in the environment, tells developers too."""
    if os.environ.get("LEASEHOLD_TRACEBACK"):
        traceback.print_exception(error)
    if as_json:
        json.dump({"error": as_facts(error)}, sys.stdout, indent=2, default=plain)
        print()
    else:
        print(f"leasehold: {one_line(error)}", file=sys.stderr)
    return exit_code(error)


def one_line(error: BaseException) -> str:
    """Message and advice, on one line whatever they contain."""
    advice = getattr(error, "advice", "")
    text = _message(error)
    return " ".join(f"{text}; {advice}".split() if advice else text.split())


def as_facts(error: BaseException) -> dict[str, Any]:
    if isinstance(error, LeaseholdError):
        return {
            "code": error.code,
            "name": error.name,
            "message": str(error),
            "advice": error.advice,
            "facts": {name: value for name, value in error.facts.items() if name != "advice"},
        }
    code = -error.errno if isinstance(error, OSError) and error.errno else -UNAVAILABLE
    return {"code": code, "name": type(error).__name__, "message": _message(error), "advice": "", "facts": {}}


def plain(value: Any) -> Any:
    """What JSON has no form for: names on the disk are bytes."""
    if isinstance(value, bytes):
        return value.split(b"\0")[0].decode("utf-8", "backslashreplace")
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


def _message(error: BaseException) -> str:
    if isinstance(error, LeaseholdError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error} (set LEASEHOLD_TRACEBACK=1 to see where)"
