"""Where mutants are hunted: clusters with the right trouble, small worlds to explore, and stories played to the end.

A ground takes a seed and returns what was broken, or None. Code without a bug passes every seed of every ground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from leases.sim import small
from leases.sim.checkers import Violation, all_rules
from leases.sim.cluster import Cluster, Setup
from leases.sim.explorer import Explorer, Limits
from leases.sim.faults import NONE, Faults
from leases.sim.host import Work
from leases.sim.invariants import LeadersGrow, LostIsLost, invariants
from leases.sim.layout import Layout
from leases.sim.mutants import buffers, ladder, stories
from leases.sim.mutants.worlds import (
    apart_and_lost,
    frozen_whole,
    holders_lose_their_path,
    old_leaders_return,
    one_host_id_for_two,
    twins,
    two_io_timeouts,
    watched,
)
from paxos import election


class Ground(Protocol):
    @property
    def seeded(self) -> bool:
        """Whether another seed is another run."""

    def hunt(self, seed: int) -> str | None:
        """What was broken in the run of this seed; None: nothing."""


@dataclass(frozen=True)
class Simulated:
    """A whole cluster. `prepare` changes it before it starts; `rules` are kept there beside those that always are."""

    setup: Setup
    prepare: Callable[[Cluster], None] | None = None
    rules: Callable[[Layout], list[Any]] = lambda layout: []
    #: False: only `rules` count, for what no protocol can prevent happens there
    usual_rules: bool = True
    seeded: bool = True

    def hunt(self, seed: int) -> str | None:
        setup = replace(self.setup, seed=seed)
        layout = Cluster(replace(setup, hosts=1), rules=[]).layout
        usual = [*all_rules(layout), *invariants(layout)] if self.usual_rules else []
        rules = [*usual, *self.rules(layout)]
        cluster = Cluster(setup, rules)
        if self.prepare is not None:
            self.prepare(cluster)
        outcome = cluster.run()
        if outcome.failure is None or isinstance(outcome.failure, Violation):
            return None if outcome.failure is None else str(outcome.failure)
        raise outcome.failure


@dataclass(frozen=True)
class Explored:
    """Every interleaving of a small configuration."""

    make: Callable[[], Explorer]
    limits: Limits = field(default_factory=lambda: Limits(max_states=40_000))
    seeded: bool = False

    def hunt(self, seed: int) -> str | None:
        with _few_ballots():
            violation = self.make().explore(self.limits).violation
        return None if violation is None else str(violation)


@dataclass(frozen=True)
class Story:
    """One course of events, played to its end; `play` raises Violation."""

    play: Callable[[], None]
    seeded: bool = False

    def hunt(self, seed: int) -> str | None:
        try:
            self.play()
        except Violation as violation:
            return str(violation)
        return None


@contextmanager
def _few_ballots() -> Iterator[None]:
    """So few that exploring comes to an end."""
    before = election.MAX_BALLOTS, election.MAX_LOOKS
    election.MAX_BALLOTS = election.MAX_LOOKS = 2
    try:
        yield
    finally:
        election.MAX_BALLOTS, election.MAX_LOOKS = before


#: clients that all want one lease all the time
_BUSY = Work(clients=2, period_s=0.05, hold_s=0.01, long_holds=0.0, shared=0.0, convert=0.0, nowait=1.0, leaves=0.0)
_SHARING = replace(_BUSY, shared=0.5, convert=0.3)
#: that hold it, and wait for the dead
_PATIENT = Work(clients=2, period_s=1.0, hold_s=0.5, long_holds=0.7, shared=0.0, convert=0.0, nowait=0.0, leaves=0.0)
_JITTER = Faults(slow=0.02, early=0.03, split=0.03)
_LATE = Faults(slow=0.02, late=0.02, error=0.01, unacked=0.01, hung=0.005, late_s=60)
_DEATHS = Faults(reset=6, outage=40, kill=6, outage_s=600)


def _setup(hosts: int, minutes: float, work: Work, faults: Faults = NONE, fire_timeout: int = 30) -> Setup:
    return Setup(
        hosts=hosts,
        leases=1,
        hours=minutes / 60,
        faults=faults,
        io_timeout=1,
        fire_timeout=fire_timeout,
        work=work,
        trace_length=200,
    )


def _lost_is_lost(layout: Layout) -> list[Any]:
    return [LostIsLost(layout, within=5.0)]


GROUNDS: dict[str, Ground] = {
    "two hosts, every order": Explored(lambda: small.explorer(2, [small.user(1, 2), small.user(2, 2)])),
    "a sharer and another, every order": Explored(
        lambda: small.explorer(2, [small.user(1, 2, shared=True), small.user(2, 2)])
    ),
    "contention": Simulated(_setup(3, 1, _BUSY, _JITTER)),
    "slow contention, watched": Simulated(
        _setup(3, 3, replace(_BUSY, period_s=0.1), Faults(slow=0.1)),
        watched,
        rules=lambda layout: [LeadersGrow(layout)],
    ),
    "slow contention": Simulated(_setup(3, 3, replace(_BUSY, period_s=0.3), Faults(slow=0.3, early=0.2, split=0.1))),
    "sharing": Simulated(_setup(3, 1, _SHARING, _JITTER)),
    "late I/O": Simulated(_setup(3, 5, replace(_SHARING, period_s=0.5), _LATE)),
    "late I/O under long holds": Simulated(
        _setup(3, 5, replace(_BUSY, period_s=0.05, hold_s=3.0), replace(_LATE, error=0.05))
    ),
    "stale reads": Simulated(_setup(3, 3, replace(_BUSY, leaves=60), Faults(slow=0.02, stale=0.003, early=0.02))),
    "old leaders return": Simulated(_setup(3, 5, replace(_BUSY, period_s=0.5, hold_s=3.0)), old_leaders_return),
    "deaths": Simulated(_setup(3, 30, _PATIENT, _DEATHS)),
    "resets": Simulated(_setup(3, 30, _PATIENT, Faults(reset=30))),
    "lost paths": Simulated(_setup(3, 60, _PATIENT, fire_timeout=60), holders_lose_their_path),
    "clocks that run apart": Simulated(_setup(3, 60, _PATIENT, fire_timeout=60), apart_and_lost),
    "two io_timeouts": Simulated(_setup(3, 30, _PATIENT, _DEATHS), two_io_timeouts(4)),
    "two io_timeouts, sharing": Simulated(
        _setup(
            2,
            30,
            replace(_PATIENT, clients=3, shared=0.6, period_s=0.2, long_holds=0.3, long_hold_s=200),
            Faults(pause=200, pause_s=75),
        ),
        two_io_timeouts(10),
    ),
    "newcomers": Simulated(_setup(2, 10, replace(_SHARING, hold_s=0.5, leaves=60)), two_io_timeouts(10)),
    "rejoining": Simulated(_setup(2, 10, replace(_BUSY, period_s=5.0, leaves=60))),
    "one host id for two": Simulated(
        _setup(2, 20, replace(_BUSY, period_s=20.0, leaves=20), Faults(slow=0.3, reset=10)), one_host_id_for_two
    ),
    "twins": Simulated(_setup(2, 3, replace(_BUSY, period_s=20.0)), twins, rules=_lost_is_lost, usual_rules=False),
    "frozen whole": Simulated(_setup(2, 20, replace(_PATIENT, long_holds=1.0)), frozen_whole, usual_rules=False),
    "a late commit of a reference host": Story(stories.a_late_commit_of_a_reference_host),
    "a competitor wrote the leader": Story(stories.a_competitor_wrote_the_leader),
    "two late steps of one release": Story(stories.two_late_steps_of_one_release),
    "two that join at once": Story(stories.two_that_join_at_once),
    "a competitor that gave up": Story(stories.a_competitor_that_gave_up),
    "an old path in a ballot": Story(stories.an_old_path_in_a_ballot),
    "a mark that went astray": Story(stories.a_mark_that_went_astray),
    "an old record of the owner": Story(stories.an_old_record_of_the_owner),
    "the ladder": Story(ladder.whole_ladder),
    "an engine and a slow disk": Story(buffers.a_late_write_keeps_its_bytes),
}
