"""Hunting mutants: which seed finds each deliberate bug, and how fast. A bug that survives is a hole in the checkers.

`hunt` plants one mutant and runs its ground seed after seed until something breaks; `all_hunts` does so for each of a
list, and `report` tells what came of it. The same seeds without a mutant must break nothing: `clean`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from leases.sim.mutants import Mutant, ballots, hosts, owners, planted
from leases.sim.mutants.grounds import GROUNDS
from paxos.errors import InvalidUse

MUTANTS: tuple[Mutant, ...] = (*ballots.MUTANTS, *owners.MUTANTS, *hosts.MUTANTS)
_TWO, _SHARING = "two hosts, every order", "a sharer and another, every order"
_EVERY_ORDER = {
    "skip-second-read": _TWO,
    "skip-first-read": _TWO,
    "forget-accepted-value": _TWO,
    "chosen-for-another-is-ours": _TWO,
    "same-generation-taken-for-a-new-one": _TWO,
    "nobody-is-asked": _TWO,
    "commit-ourselves": _SHARING,
    "outvoted-in-phase-2": _SHARING,
}
#: those that exploring every order of the steps of two hosts finds as well, without any seed
EXPLORED = tuple(replace(mutant, ground=_EVERY_ORDER[mutant.name]) for mutant in MUTANTS if mutant.name in _EVERY_ORDER)
#: seeds tried before a mutant counts as a survivor
MANY = range(1, 201)


@dataclass(frozen=True, slots=True)
class Kill:
    """A mutant was found: by the run of `seed`, after `seconds` in all (real time); `what` was broken."""

    mutant: Mutant
    seed: int
    seconds: float
    what: str


def named(names: Iterable[str]) -> tuple[Mutant, ...]:
    """The mutants of these names with each of their grounds; all if there are none. Raises InvalidUse."""
    wanted = set(names)
    unknown = wanted - {mutant.name for mutant in MUTANTS}
    if unknown:
        raise InvalidUse(reason=f"no mutant is called {', '.join(sorted(unknown))}")
    return tuple(mutant for mutant in (*MUTANTS, *EXPLORED) if not wanted or mutant.name in wanted)


def hunt(mutant: Mutant, seeds: Iterable[int] = MANY) -> Kill | None:
    """Run seed after seed until the mutant breaks something; None if it survives them all.

    Raises InvalidUse if the mutant does not fit the code, and whatever else it makes the code raise.
    """
    ground = GROUNDS[mutant.ground]
    start = time.monotonic()
    with planted(mutant):
        for seed in seeds if ground.seeded else [0]:
            what = ground.hunt(seed)
            if what is not None:
                return Kill(mutant, seed, time.monotonic() - start, what)
    return None


def around(mutant: Mutant, runs: int = 40) -> Sequence[int]:
    """The seed known to kill the mutant, then those after it: small changes elsewhere move the moments of a run."""
    return range(mutant.seed, mutant.seed + runs)


def clean(ground: str, seeds: Iterable[int]) -> str | None:
    """What is broken on this ground without a mutant: None, or there is a bug that nobody planted."""
    for seed in seeds if GROUNDS[ground].seeded else [0]:
        what = GROUNDS[ground].hunt(seed)
        if what is not None:
            return f"seed {seed}: {what}"
    return None


def all_hunts(mutants: Iterable[Mutant], seeds: Iterable[int] = MANY) -> Iterator[tuple[Mutant, Kill | None]]:
    """Each mutant with what found it, as soon as that is known."""
    for mutant in mutants:
        yield mutant, hunt(mutant, seeds)


def report(mutants: Iterable[Mutant], tell: Callable[[str], object], seeds: Iterable[int] = MANY) -> int:
    """What `leasehold sim --mutants` does: tell a line about each hunt and one about all; returns the survivors."""
    killed = total = 0
    tell(f"{'mutant':34} {'ground':34} {'seed':>4} {'s':>5}  what it broke")
    for mutant, kill in all_hunts(mutants, seeds):
        total += 1
        killed += kill is not None
        if kill is None:
            tell(f"{mutant.name:34} {mutant.ground:34} SURVIVES: {mutant.what}")
        else:
            tell(f"{mutant.name:34} {mutant.ground:34} {kill.seed:4} {kill.seconds:5.1f}  {kill.what}")
    tell(f"{killed} of {total} mutants killed")
    return total - killed
