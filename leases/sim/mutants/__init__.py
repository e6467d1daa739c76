"""Deliberate bugs, to see that they are found: each is an edit of a function that ships, named, with what it breaks.

A mutant is written as a reader would see it in a review: in this function, instead of these lines, those. Planting it
takes the function's own source, makes the edit, and puts the result wherever the function is used, for as long as the
context lasts. An edit that does not fit exactly once is an error, so that no mutant outlives the code it is about.

`ground` names where it is hunted (leases/sim/mutants/grounds.py) and `seed` is one that is known to kill it there.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from paxos.errors import InvalidUse


@dataclass(frozen=True, slots=True)
class Edit:
    """In `where` ("module:function" or "module:Class.function"), `new` instead of `old`."""

    where: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug. `what` it is, as a sentence about the code; `breaks`: what must go wrong by it."""

    name: str
    what: str
    breaks: str
    edits: tuple[Edit, ...]
    ground: str
    seed: int = 1


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The mutant's bug is in the code. Raises InvalidUse if an edit does not fit the code any more."""
    with ExitStack() as stack:
        for where in dict.fromkeys(edit.where for edit in mutant.edits):
            stack.enter_context(_edited(where, mutant))
        yield


@contextmanager
def _edited(where: str, mutant: Mutant) -> Iterator[None]:
    module_name, _, path = where.partition(":")
    module = import_module(module_name)
    *outer, last = path.split(".")
    owner: Any = module
    try:
        for part in outer:
            owner = getattr(owner, part)
        original = inspect.getattr_static(owner, last)
    except AttributeError as gone:
        raise InvalidUse(reason=f"mutant {mutant.name}: there is no {where} any more") from gone
    code = compile(
        _edited_source(original, where, mutant),
        f"<mutant {mutant.name}>",
        "exec",
        flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
    )
    made: dict[str, Any] = {}
    exec(code, vars(module), made)
    places = [(owner, last)] if outer else list(_uses_of(original))
    for place, attribute in places:
        setattr(place, attribute, made[last])
    try:
        yield
    finally:
        for place, attribute in places:
            setattr(place, attribute, original)


def _edited_source(original: Any, where: str, mutant: Mutant) -> str:
    function: Any = original.fget if isinstance(original, property) else original
    source = textwrap.dedent(inspect.getsource(function))
    for edit in mutant.edits:
        if edit.where == where:
            if source.count(edit.old) != 1:
                times = source.count(edit.old)
                raise InvalidUse(reason=f"mutant {mutant.name}: {where} has {edit.old!r} {times} times, not once")
            source = source.replace(edit.old, edit.new)
    return source


def _uses_of(function: Any) -> Iterator[tuple[Any, str]]:
    """Every module attribute of ours that is this function."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("paxos", "leases"):
            for attribute, value in list(vars(module).items()):
                if value is function:
                    yield module, attribute
