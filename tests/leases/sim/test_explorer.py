"""The explorer visits every interleaving of a small configuration, and finds what a rare one does."""

from __future__ import annotations

import pytest

from leases.sim import small
from leases.sim.explorer import Explorer, Granted, LetGo, Limits
from paxos import ballot, election
from paxos.steps import Read, Write

IMAGE = bytes(4 * 512)


@pytest.fixture(autouse=True)
def few_ballots(monkeypatch):
    monkeypatch.setattr(election, "MAX_BALLOTS", 2)
    monkeypatch.setattr(election, "MAX_LOOKS", 2)


def _careless(environment):
    """Takes a lease by reading and then writing, as if nobody else did."""
    view = yield Read("disk", 0, 512, 1.0)
    if view[0] == 0:
        yield Write("disk", 0, b"x" * 512, 1.0)
        yield Granted(1)
        yield LetGo()


def _writer(sector):
    def program(environment):
        yield Write("disk", sector * 512, b"x" * 512, 1.0)

    return program


def test_independent_writes_are_a_grid_of_states():
    report = Explorer(IMAGE, 512, [_writer(0), _writer(1), _writer(2)], [0, 1, 2]).explore(Limits())
    assert (report.states, report.ends, report.complete) == (8, 1, True)


def test_a_race_is_found_with_the_way_to_it():
    report = Explorer(IMAGE, 512, [_careless, _careless], [0]).explore(Limits())
    assert report.violation is not None and report.violation.rule in ("one owner", "tokens grow")
    assert sum("reads" in event for event in report.way) == 2


def test_a_crash_may_come_anywhere_and_a_crashed_host_holds_nothing():
    free = Explorer(IMAGE, 512, [_careless], [0]).explore(Limits())
    crashing = Explorer(IMAGE, 512, [_careless], [0]).explore(Limits(crashes=1))
    # crashed before its write or after it, which is all that others can tell; or not at all
    assert free.ends == 1 and crashing.ends == 3 and crashing.violation is None


def test_a_late_write_may_land_at_any_time_or_never():
    report = Explorer(IMAGE, 512, [_writer(0)], [0]).explore(Limits(late_writes=1))
    # not yet; written; timed out and still flying, perhaps for ever; landed
    assert (report.states, report.ends) == (4, 2)


def test_too_many_states_are_said_so():
    report = Explorer(IMAGE, 512, [_writer(0), _writer(1), _writer(2)], [0, 1, 2]).explore(Limits(max_states=3))
    assert not report.complete


def test_two_hosts_never_both_hold_the_lease_whatever_the_order_of_their_steps():
    report = small.explorer(2, [small.user(1, 2), small.user(2, 2)]).explore(Limits())
    assert report.complete and report.violation is None, report.way
    assert report.states > 10_000 and report.grants > 10


@pytest.mark.slow
def test_nor_if_one_of_them_crashes_anywhere():
    report = small.explorer(2, [small.user(1, 2), small.user(2, 2)]).explore(Limits(crashes=1))
    assert report.complete and report.violation is None, report.way


def test_a_ballot_that_ignores_larger_ones_is_found_out(monkeypatch):
    monkeypatch.setattr(ballot, "_give_up_if_lost", lambda *arguments: None)
    report = small.explorer(2, [small.user(1, 2), small.user(2, 2)]).explore(Limits())
    assert report.violation is not None


def test_a_lease_taken_from_the_living_is_found_out(monkeypatch):
    def nobody_holds_it(scene, member):
        return []

    monkeypatch.setattr(election, "claims", nobody_holds_it)
    report = small.explorer(2, [small.user(1, 2), small.user(2, 2)]).explore(Limits())
    assert report.violation is not None
