"""What goes wrong, how often, and which of it in this run: rates, named profiles, a plan drawn from a seed.

Every fault of a run has a key: (host number, "io", when it was asked for), (host number, "life", number of the
disturbance) or (0, "relaid", number). Details of a fault come from its key alone, so a run can be repeated with some of
its faults left out (`only`), and those that stay do what they did before. That is what shrinking a failing run needs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random
from typing import TypeAlias

from paxos.errors import InvalidUse


@dataclass(frozen=True, slots=True)
class Faults:
    """Rates of everything that can go wrong.

    The first group are probabilities for each I/O, the second are numbers for each host and hour, then one for the
    volume and hour; the rest are bounds.
    """

    slow: float = 0.0  #: takes up to its timeout, just not longer
    hung: float = 0.0  #: times out and never happens; ends with an error after up to `late_s`
    error: float = 0.0  #: fails; a write may have landed all the same
    late: float = 0.0  #: times out and happens up to `late_s` later
    unacked: float = 0.0  #: a write lands at once, its acknowledgement comes up to `late_s` later
    torn: float = 0.0  #: a write of several sectors lands in part, then fails or lands in full later
    split: float = 0.0  #: a read of several sectors sees its parts at different times
    early: float = 0.0  #: a read sees the disk some time before it is answered
    misdirected: float = 0.0  #: hits another sector than it was meant for
    stale: float = 0.0  #: a read from a path that failed over: sees the disk of up to `stale_s` ago

    kill: float = 0.0  #: the lease program is killed
    kill_client: float = 0.0  #: a program that holds leases is killed
    pause: float = 0.0  #: the lease program stands still up to `pause_s`
    suspend: float = 0.0  #: the machine stands still up to `pause_s`
    freeze: float = 0.0  #: so it does, and its clock with it
    reset: float = 0.0  #: somebody pulls the plug
    outage: float = 0.0  #: the host loses its path to the disk up to `outage_s`

    relaid: float = 0.0  #: the lockspace, or one lease, is initialised anew under everybody

    late_s: float = 300.0
    stale_s: float = 30.0
    pause_s: float = 200.0
    outage_s: float = 300.0
    clock_rate: float = 0.0  #: clocks run faster or slower by up to this share
    watchdog_early: float = 0.0  #: watchdogs fire up to this share of their time early; never late

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0 or (field.name in IO_KINDS and value > 1):
                raise InvalidUse(reason=f"fault rate {field.name}={value} is out of range")

    @classmethod
    def parse(cls, text: str) -> Faults:
        """From text like `all`, `gentle,kill=3` or `late=0.01,pause=2`. Raises InvalidUse."""
        faults = NONE
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, number = part.partition("=")
            if not equals:
                if name not in PROFILES:
                    raise InvalidUse(reason=f"no fault profile {name!r}: there are {', '.join(PROFILES)}")
                faults = PROFILES[name]
                continue
            if name not in {field.name for field in fields(cls)}:
                raise InvalidUse(reason=f"no fault {name!r}")
            try:
                faults = replace(faults, **{name: float(number)})
            except ValueError as bad:
                raise InvalidUse(reason=f"fault rate {part!r} is no number") from bad
        return faults


IO_KINDS = ("slow", "hung", "error", "late", "unacked", "torn", "split", "early", "misdirected", "stale")
LIFE_KINDS = ("kill", "kill_client", "pause", "suspend", "freeze", "reset", "outage")

NONE = Faults()
GENTLE = Faults(slow=1e-2, error=1e-4, early=1e-2, split=1e-2, kill_client=1.0, pause=1.0, clock_rate=0.01)
ALL = Faults(
    slow=1e-2,
    hung=3e-4,
    error=1e-3,
    late=2e-3,
    unacked=1e-3,
    torn=1e-3,
    split=1e-2,
    early=1e-2,
    misdirected=1e-5,
    stale=1e-4,
    kill=0.5,
    kill_client=4.0,
    pause=2.0,
    suspend=1.0,
    freeze=0.5,
    reset=0.5,
    outage=1.0,
    relaid=0.1,
    clock_rate=0.01,
    watchdog_early=0.2,
)
PROFILES = {"none": NONE, "gentle": GENTLE, "all": ALL}

Key: TypeAlias = tuple[int, str, int]


class Plan:
    """The faults of one run. `only`: of all that would happen, let only these happen."""

    def __init__(self, seed: int, faults: Faults, only: frozenset[Key] | None = None) -> None:
        self.seed = seed
        self.faults = faults
        self.only = only
        #: no new fault is chosen while set
        self.quiet = False
        #: what was chosen so far, with a word about it
        self.chosen: list[tuple[Key, str]] = []
        self._io = _Mix(faults, IO_KINDS)
        self._life = _Mix(faults, LIFE_KINDS)

    @property
    def io_rate(self) -> float:
        """The probability of a fault for each I/O."""
        return min(self._io.total, 1.0)

    def io_fault(self, host: int, moment: int) -> tuple[str, Random] | None:
        """The kind of fault of an I/O asked for at this moment, and the source of its details."""
        return self._choose((host, "io", moment), self._io)

    def next_life(self, host: int, number: int) -> float:
        """Seconds from disturbance `number` of `host` to the next one."""
        if self._life.total <= 0:
            return float("inf")
        return self._random((host, "calm", number)).expovariate(self._life.total / 3600.0)

    def next_relaid(self, number: int) -> float:
        """Seconds from re-initialisation `number` to the next one."""
        if self.faults.relaid <= 0:
            return float("inf")
        return self._random((0, "calm", number)).expovariate(self.faults.relaid / 3600.0)

    def relaid(self, number: int) -> Random | None:
        """The source of what is initialised anew; None: this time nothing is."""
        key = (0, "relaid", number)
        if self.quiet or (self.only is not None and key not in self.only):
            return None
        self.chosen.append((key, "relaid"))
        return self._random(key)

    def life_fault(self, host: int, number: int) -> tuple[str, Random] | None:
        return self._choose((host, "life", number), self._life)

    def _choose(self, key: Key, mix: _Mix) -> tuple[str, Random] | None:
        if self.quiet or (self.only is not None and key not in self.only):
            return None
        random = self._random(key)
        kind = mix.draw(random)
        self.chosen.append((key, kind))
        return kind, random

    def _random(self, key: Key) -> Random:
        return Random(f"{self.seed}/{key[0]}/{key[1]}/{key[2]}")


class _Mix:
    """Kinds of faults with their rates."""

    def __init__(self, faults: Faults, kinds: tuple[str, ...]) -> None:
        self.kinds = [kind for kind in kinds if getattr(faults, kind) > 0]
        self.rates = [getattr(faults, kind) for kind in self.kinds]
        self.total: float = sum(self.rates)

    def draw(self, random: Random) -> str:
        return random.choices(self.kinds, self.rates)[0]


def between(random: Random, low: float, high: float) -> float:
    """A duration in seconds: short ones and long ones alike, each order of magnitude as often as the next."""
    low, high = max(low, 1e-3), max(high, 1e-3)
    return float(low * (high / low) ** random.random()) if high > low else low
