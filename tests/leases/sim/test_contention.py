"""Contention in virtual time: everybody is served, sooner than by the reference's back-off, and fairly."""

from __future__ import annotations

import pytest

from bench.contention import Contest, all_served, by_rules, first_table, first_winner, rush_table, share_table
from leases.sim.rules import Leasehold


@pytest.mark.parametrize("who", ["ours", "reference", "mixed"])
@pytest.mark.parametrize("hosts", [2, 5, 16])
def test_each_host_of_a_rush_is_served_once(hosts, who):
    served = Contest(7, by_rules(hosts, who)).rush()
    assert sorted(host for _, host in served.grants) == list(range(1, hosts + 1))


@pytest.mark.parametrize("hosts", [4, 16])
def test_a_rush_is_over_sooner_than_by_the_back_off_of_the_reference(hosts):
    assert all_served(hosts, "ours", seeds=3) < all_served(hosts, "reference", seeds=3)


@pytest.mark.parametrize("hosts", [2, 8, 32])
def test_the_first_winner_of_a_rush_is_never_held_up_by_a_back_off(hosts):
    ours, reference = first_winner(hosts, "ours", seeds=20), first_winner(hosts, "reference", seeds=20)
    assert sum(ours) < sum(reference)
    assert ours[-1] < 0.05 < reference[-1]


def test_hosts_of_the_reference_in_a_rush_are_served_sooner_with_half_of_ours_among_them():
    assert all_served(16, "mixed", seeds=3) < all_served(16, "reference", seeds=3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_three_hosts_in_a_loop_each_has_at_least_a_quarter_of_the_grants(seed):
    served = Contest(seed, [Leasehold()] * 3).loop(60)
    assert min(served.shares(3)) >= 0.25


def test_the_tables_have_a_line_for_each_size_and_each_cast():
    assert len(list(first_table([2, 4], seeds=1))) == len(list(rush_table([2, 4], seeds=1))) == 3
    assert len(list(share_table(0.1))) == 4
