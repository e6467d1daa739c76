"""Many runs: the same numbers on one core and on two, begun again where they were left, and never mixed up."""

from __future__ import annotations

import pytest

from leases.sim.cluster import Setup
from leases.sim.faults import GENTLE
from leases.sim.runs import Totals, campaign
from paxos.errors import InvalidUse

SMALL = Setup(hosts=2, hours=0.05, faults=GENTLE)


def _numbers(results):
    return [(r.seed, r.operations, r.grants, r.events, r.rule) for r in results]


def test_two_cores_give_what_one_gives():
    assert _numbers(campaign(SMALL, range(1, 5), jobs=2)) == _numbers(campaign(SMALL, range(1, 5), jobs=1))


def test_finished_seeds_are_not_run_again(tmp_path):
    state = tmp_path / "state"
    first = campaign(SMALL, range(1, 4), jobs=1, state=state)
    told = []
    again = campaign(SMALL, range(1, 6), jobs=1, state=state, told=told.append)
    assert again[:3] == first  # to the last digit of the time they took
    assert sorted(result.seed for result in told) == [1, 2, 3, 4, 5]


def test_a_line_that_was_cut_off_is_run_again(tmp_path):
    state = tmp_path / "state"
    campaign(SMALL, range(1, 3), jobs=1, state=state)
    state.write_text(state.read_text()[:-20])
    assert len(campaign(SMALL, range(1, 3), jobs=1, state=state)) == 2


def test_results_of_other_runs_are_refused(tmp_path):
    state = tmp_path / "state"
    campaign(SMALL, [1], jobs=1, state=state)
    with pytest.raises(InvalidUse, match="results of other runs"):
        campaign(Setup(hosts=3), [1], jobs=1, state=state)


def test_totals_add_up():
    totals = Totals()
    results = campaign(SMALL, range(1, 4), jobs=1)
    for result in results:
        totals.add(result)
    assert totals.runs == 3 and totals.violations == 0
    assert totals.hours == pytest.approx(0.15)
    assert totals.operations == sum(result.operations for result in results)
