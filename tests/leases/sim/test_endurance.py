"""Thousands of simulated hours with everything going wrong, and no rule broken: the numbers behind "never".

LEASEHOLD_SIM_HOURS makes it larger: 2000 for the whole campaign, which asks for a million operations too; more is for
`leasehold sim --seeds` with a state file.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from leases.sim.cluster import Setup
from leases.sim.faults import ALL
from leases.sim.host import Work
from leases.sim.runs import Totals, campaign, cores

HOURS = float(os.environ.get("LEASEHOLD_SIM_HOURS", "20"))

#: many uses of few leases, for the races between hosts
DENSE = Setup(hosts=3, leases=2, hours=1.0, faults=ALL, work=Work(period_s=2.0))
#: few uses over many hours, for what takes long: take-overs, late writes, hosts that come and go
LONG = Setup(hosts=3, leases=2, hours=20.0, faults=ALL, work=Work(period_s=60.0, hold_s=4.0))
DENSE_RUNS = max(1, round(HOURS * 0.05))
LONG_RUNS = max(1, round(HOURS * 0.95 / LONG.hours))


@pytest.mark.slow
def test_thousands_of_hours_with_all_faults_break_no_rule(capsys):
    totals = Totals()
    failed = []
    for setup, seeds in ((LONG, range(1, LONG_RUNS + 1)), (DENSE, range(10_001, 10_001 + DENSE_RUNS))):
        for result in campaign(setup, seeds, jobs=cores()):
            totals.add(result)
            if result.rule:
                failed.append((replace(setup, seed=result.seed), result.failure))
    with capsys.disabled():
        print(
            f"\nsimulated {totals.hours:.0f} cluster-hours, {totals.operations} lease operations,"
            f" {totals.grants} grants, {totals.rate:.0f} operations a second on one core:"
            f" {totals.violations} violations"
        )
    assert not failed, failed
    if HOURS >= 2000:
        assert totals.hours >= 2000 and totals.operations >= 1_000_000
