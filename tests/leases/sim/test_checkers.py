"""Each rule sees the violation planted for it, at the moment it happens, and nothing else."""

from __future__ import annotations

import pytest

from leases.sim.checkers import (
    BlocksGrow,
    Decided,
    Holding,
    Judge,
    Membership,
    OneMember,
    OneOwner,
    Places,
    Tokens,
    Violation,
    WatchdogFirst,
)
from leases.sim.layout import Layout
from paxos.records import Block, Leader
from paxos.steps import Read, Write

LAYOUT = Layout(leases=2, num_hosts=8, io_timeout=1)
MIB = 1 << 20


def _holding(it, host, token, exclusive=True):
    return Holding(1, exclusive, it.processes[host], host + 1, 1, token)


def test_two_exclusive_owners(ground):
    it = ground(rules=(OneOwner(),))
    it.world.judge.granted(_holding(it, 0, 1))
    with pytest.raises(Violation, match="one owner: r1 exclusive token 2 by test of h2"):
        it.world.judge.granted(_holding(it, 1, 2))


def test_shared_beside_exclusive_both_ways(ground):
    for first, second in [(True, False), (False, True)]:
        it = ground(rules=(OneOwner(),))
        it.world.judge.granted(_holding(it, 0, 1, first))
        with pytest.raises(Violation):
            it.world.judge.granted(_holding(it, 1, 2, second))


def test_shared_beside_shared_and_one_after_the_other_are_fine(ground):
    it = ground(rules=(OneOwner(), Tokens()))
    judge = it.world.judge
    shared = [_holding(it, 0, 1, False), _holding(it, 1, 2, False)]
    for holding in shared:
        judge.granted(holding)
    for holding in shared:
        judge.letting_go(holding)
    judge.granted(_holding(it, 0, 3))
    it.machines[0].reset("by hand")
    judge.granted(_holding(it, 1, 4))


def test_shared_grants_may_be_told_of_in_any_order_but_not_behind_an_exclusive_one(ground):
    it = ground(rules=(Tokens(),))
    judge = it.world.judge
    for token in (3, 5, 4):
        judge.granted(_holding(it, 0, token, False))
    judge.granted(_holding(it, 1, 6))
    with pytest.raises(Violation):
        judge.granted(_holding(it, 0, 5, False))


def test_a_grant_before_the_old_owners_watchdog_has_to_fire(ground):
    it = ground(rules=(OneOwner(), WatchdogFirst()))
    judge = it.world.judge
    judge.granted(_holding(it, 0, 1))
    it.machines[0].watchdog.renew(it.machines[0].clock.read(0.0) + 8)
    it.processes[0].kill()  # nobody holds it any more, but nobody released it either
    it.world.run(until=65)
    with pytest.raises(Violation, match="watchdog first"):
        judge.granted(_holding(it, 1, 2))


def test_a_grant_after_the_deadline_after_a_reset_or_after_a_release_is_fine(ground):
    for what in ("deadline", "reset", "release"):
        it = ground(rules=(OneOwner(), WatchdogFirst()))
        judge = it.world.judge
        holding = _holding(it, 0, 1)
        judge.granted(holding)
        it.machines[0].watchdog.renew(it.machines[0].clock.read(0.0) + 8)
        if what == "reset":
            it.machines[0].reset("by hand")
        if what == "release":
            judge.letting_go(holding)
            judge.released(holding)
        if what == "deadline":
            judge.process_ended(it.processes[0])
            it.machines[0].watchdog.disarm()
            it.world.run(until=61)
        judge.granted(_holding(it, 1, 2))


def test_a_token_that_repeats_or_goes_back(ground):
    for token in (7, 6):
        it = ground(rules=(Tokens(),))
        it.world.judge.granted(_holding(it, 0, 7))
        with pytest.raises(Violation, match="tokens grow"):
            it.world.judge.granted(_holding(it, 1, token))


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        ("aligned", Read("disk", 100, 512, 1.0)),
        ("aligned", Read("disk", 0, 100, 1.0)),
        ("inside its area", Read("disk", MIB - 512, 1024, 1.0)),
        ("inside its area", Read("disk", 3 * MIB, 512, 1.0)),
        ("timeouts", Read("disk", 0, 512, 0.0)),
        ("own sectors", Write("disk", 512, b"x" * 512, 1.0)),
        ("own sectors", Write("disk", MIB + 3 * 512, b"x" * 512, 1.0)),
        ("own sectors", Write("disk", MIB, bytes(1024), 1.0)),
    ],
)
def test_an_io_that_is_not_the_hosts_to_do(ground, rule, step):
    it = ground(rules=(Places(LAYOUT),))
    it.processes[0].host_id = 1

    def one():
        yield step

    it.processes[0].spawn("io", one())
    with pytest.raises(Violation) as caught:
        it.world.run(until=1)
    assert caught.value.rule == rule


def test_a_ballot_number_or_version_that_goes_back(ground):
    for worse in (Block(mbal=1, lver=5), Block(mbal=9, lver=4)):
        it = ground(rules=(BlocksGrow(LAYOUT),))

        def writes(worse=worse):
            for block in (Block(mbal=5, lver=5), Block(mbal=6, lver=5), worse):
                yield Write("disk", MIB + 2 * 512, block.sealed().sector(512), 1.0)

        it.processes[0].spawn("io", writes())
        with pytest.raises(Violation, match="blocks grow"):
            it.world.run(until=1)


def _leader(lver: int, owner: int) -> bytes:
    return Leader.unpack(bytes(512)).changed(lver=lver, owner_id=owner, owner_generation=1, timestamp=1).sector(512)


def test_a_version_decided_for_two(ground):
    it = ground(rules=(Decided(LAYOUT),))

    def writes():
        for lver, owner in [(1, 1), (2, 2), (2, 2), (1, 1), (2, 1)]:
            yield Write("disk", MIB, _leader(lver, owner), 1.0)

    it.processes[0].spawn("io", writes())
    with pytest.raises(Violation, match=r"owner 1/1 for version 2 of r1, which was decided for 2/1"):
        it.world.run(until=1)


def test_two_owners_of_a_host_id_or_a_generation_that_does_not_grow(ground):
    it = ground(rules=(OneMember(),))
    judge = it.world.judge
    first = Membership(it.processes[0], 3, 1)
    judge.joined(first)
    with pytest.raises(Violation, match="one owner for a host id"):
        judge.joined(Membership(it.processes[1], 3, 2))
    judge.left(first)
    with pytest.raises(Violation, match="generations grow"):
        judge.joined(Membership(it.processes[1], 3, 1))


def test_a_judge_without_rules_lets_everything_pass():
    judge = Judge([])
    judge.asked(None, None)
    judge.laid_out(0)


def test_what_was_held_before_a_lease_is_laid_out_anew_counts_no_more(ground):
    it = ground(hosts=3, rules=(OneOwner(), WatchdogFirst(), Tokens()))
    judge = it.world.judge
    before = _holding(it, 0, 7)
    judge.granted(before)
    judge.laid_out(1)
    judge.granted(_holding(it, 1, 1))
    with pytest.raises(Violation, match="one owner"):
        judge.granted(_holding(it, 2, 2))


def test_while_something_is_left_of_before_nobody_who_gets_a_lease_is_protected(ground):
    it = ground(hosts=4, rules=(OneOwner(),))
    judge, left = it.world.judge, [True]
    judge.laid_out(0, [lambda: left[0]])
    exposed = _holding(it, 0, 1)
    judge.granted(exposed)
    judge.granted(_holding(it, 1, 2))
    assert exposed.exposed and not judge.is_settled(0)
    left[0] = False
    assert judge.is_settled(0)
    judge.granted(_holding(it, 2, 3))
    with pytest.raises(Violation, match="one owner"):
        judge.granted(_holding(it, 3, 4))


def test_blocks_and_versions_begin_anew_with_their_area(ground):
    it = ground(rules=(BlocksGrow(LAYOUT), Decided(LAYOUT)))
    judge, left = it.world.judge, [True]
    place = MIB + 2 * LAYOUT.geometry.sector_size

    def writes():
        yield Write("disk", place, Block(mbal=2501, lver=5).sealed().sector(512), 1.0)
        yield Write("disk", MIB, _leader(5, 1), 1.0)
        judge.laid_out(1, [lambda: left[0]])
        yield Write("disk", place, Block(mbal=1, lver=1).sealed().sector(512), 1.0)
        yield Write("disk", MIB, _leader(5, 2), 1.0)  # of somebody from before
        left[0] = False
        assert judge.is_settled(1)
        yield Write("disk", MIB, _leader(5, 1), 1.0)
        yield Write("disk", MIB, _leader(5, 2), 1.0)

    it.processes[0].spawn("io", writes())
    with pytest.raises(Violation, match="decided stays decided"):
        it.world.run(until=1)
