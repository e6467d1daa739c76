"""Whole clusters: the protocols as they ship keep every rule, and a planted bug is found, told and shrunk."""

from __future__ import annotations

import pytest

from leases.sim.checkers import Violation
from leases.sim.cluster import Cluster, Setup
from leases.sim.faults import ALL, GENTLE, NONE, Faults
from leases.sim.shrink import shrink
from paxos import election


def _run(setup):
    return Cluster(setup).run()


def test_without_faults_everybody_gets_leases_and_no_rule_is_broken():
    outcome = _run(Setup(hosts=3, hours=0.1, faults=NONE))
    assert outcome.failure is None
    assert outcome.grants > 50 and outcome.operations > 2 * outcome.grants


def test_the_same_setup_gives_the_same_run():
    setup = Setup(seed=5, hosts=3, hours=0.1, faults=ALL)
    first, again = _run(setup), _run(setup)
    assert (first.digest, first.events, first.grants) == (again.digest, again.events, again.grants)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gentle_faults_break_no_rule_and_leave_every_lease_usable(seed):
    outcome = _run(Setup(seed=seed, hosts=3, hours=0.1, faults=GENTLE, calm_s=30))
    assert outcome.failure is None, outcome.trace.text(last=60)


@pytest.fixture
def eager(monkeypatch):
    """A planted bug: leases of hosts that may be alive are taken."""
    monkeypatch.setattr(election, "claims", lambda scene, member: [])


def test_a_planted_bug_is_found_and_the_trace_tells_how(eager):
    outcome = _run(Setup(hosts=2, hours=1, faults=NONE))
    assert isinstance(outcome.failure, Violation)
    text = outcome.trace.text(last=20)
    assert "V one owner" in text or "V watchdog first" in text or "V decided" in text
    assert "leader lver=" in text


def test_a_failing_run_shrinks_to_the_faults_and_hosts_that_matter(eager):
    failing = _run(Setup(hosts=4, hours=1, faults=Faults(slow=0.05, early=0.05)))
    assert isinstance(failing.failure, Violation)
    small = shrink(failing, _run, max_runs=60)
    assert isinstance(small.failure, Violation) and small.failure.rule == failing.failure.rule
    assert small.setup.hosts == 2 and len(small.chosen) < max(1, len(failing.chosen))


@pytest.mark.parametrize("seed", [2, 3])
def test_areas_initialised_anew_under_running_hosts_bring_no_double_and_no_crash(seed):
    outcome = _run(Setup(seed=seed, hosts=3, hours=0.5, faults=Faults.parse("all,relaid=20")))
    assert outcome.failure is None, outcome.trace.text(last=60)
    assert sum(kind == "relaid" for _, kind in outcome.chosen) > 3
