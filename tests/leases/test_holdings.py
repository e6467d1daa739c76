"""The table of what this host holds, and what it is about to."""

from __future__ import annotations

import pytest

from leases.holdings import Grip, Holdings, Phase
from leases.lease import Lease
from paxos.errors import AlreadyHeld, TryAgain, WriteUnsettled
from paxos.geometry import MIB, Geometry, Place
from paxos.lease_area import LeaseArea
from paxos.records import EMPTY_BLOCK, Leader, fresh_resource
from paxos.resource import Held
from paxos.steps import Pending, Read, Steps, Write, sleep

GEOMETRY = Geometry(512, MIB)
AREA = LeaseArea(b"LS", b"r0", Place("d", MIB), GEOMETRY)


def held(shared: bool = False) -> Held:
    leader = Leader.unpack(fresh_resource(b"LS", b"r0", GEOMETRY))
    return Held(AREA, 1, 1, 1, shared, leader, EMPTY_BLOCK, b"")


def lease_of(grip: Grip) -> Lease:
    return Lease(None, grip, held())  # type: ignore[arg-type]


def holding(holdings: Holdings, shared: bool = False) -> tuple[Grip, Lease]:
    grip = holdings.begin(AREA, "acquired", shared)
    lease = lease_of(grip)
    holdings.grant(grip, held(shared), lease)
    return grip, lease


def no_cure() -> Steps[None]:
    yield from sleep(0)


def test_while_one_acquires_another_has_to_try_again() -> None:
    holdings = Holdings()
    holdings.begin(AREA, "acquired")
    with pytest.raises(TryAgain, match="r0 is being acquired"):
        holdings.begin(AREA, "acquired")


def test_what_is_held_exclusively_is_not_had_twice() -> None:
    holdings = Holdings()
    holding(holdings)
    for shared in (False, True):
        with pytest.raises(AlreadyHeld):
            holdings.begin(AREA, "acquired", shared)


def test_a_shared_lease_has_many_users_and_is_given_back_by_the_last() -> None:
    holdings = Holdings()
    grip, first = holding(holdings, shared=True)
    assert holdings.begin(AREA, "acquired", shared=True) is grip
    second = lease_of(grip)
    assert holdings.attach(grip, second)
    assert not holdings.let_go(grip, first)
    assert holdings.let_go(grip, second) and grip.phase is Phase.BUSY
    assert not holdings.attach(grip, lease_of(grip))


def test_a_lease_elsewhere_of_the_same_name_is_another_one() -> None:
    holdings = Holdings()
    holding(holdings, shared=True)
    with pytest.raises(AlreadyHeld):
        holdings.begin(LeaseArea(b"LS", b"r0", Place("d", 2 * MIB), GEOMETRY), "acquired", shared=True)


def test_while_one_works_on_a_lease_it_is_neither_released_nor_worked_on() -> None:
    holdings = Holdings()
    grip, lease = holding(holdings)
    holdings.work_on(grip, lease, "converted")
    with pytest.raises(TryAgain, match="being converted"):
        holdings.let_go(grip, lease)
    with pytest.raises(TryAgain):
        holdings.work_on(grip, lease, "converted")
    holdings.grant(grip, held())
    assert holdings.let_go(grip, lease)
    holdings.drop(grip)
    assert holdings.grips() == []


def test_a_lease_that_is_shared_here_is_not_worked_on() -> None:
    holdings = Holdings()
    grip, lease = holding(holdings, shared=True)
    holdings.attach(grip, lease_of(grip))
    with pytest.raises(AlreadyHeld):
        holdings.work_on(grip, lease, "converted")


def test_what_is_unsettled_can_not_be_had() -> None:
    holdings = Holdings()
    grip = holdings.begin(AREA, "acquired")
    holdings.unsettle(grip, [], no_cure)
    with pytest.raises(WriteUnsettled):
        holdings.begin(AREA, "acquired")
    assert holdings.unsettled() == [grip]
    assert holdings.settled(grip, no_cure)
    assert holdings.grips() == []


def test_what_was_kept_while_unsettled_is_held_again() -> None:
    holdings = Holdings()
    grip, lease = holding(holdings, shared=True)
    holdings.work_on(grip, lease, "converted")
    holdings.unsettle(grip, [], no_cure)
    with pytest.raises(WriteUnsettled):
        holdings.work_on(grip, lease, "converted")
    assert holdings.settled(grip, no_cure)
    assert grip.phase is Phase.HELD and holdings.leases() == [lease]


def test_an_outdated_cure_settles_nothing() -> None:
    holdings = Holdings()
    grip, lease = holding(holdings, shared=True)
    holdings.work_on(grip, lease, "converted")
    holdings.unsettle(grip, [], no_cure)
    assert not holdings.let_go(grip, lease)  # released meanwhile: now all of it is to be given up

    def other() -> Steps[None]:
        yield from sleep(0)

    holdings.unsettle(grip, [], other)
    assert not holdings.settled(grip, no_cure) and grip.phase is Phase.UNSETTLED
    assert holdings.settled(grip, other) and holdings.grips() == []


def test_only_writes_that_may_still_land_are_waited_for() -> None:
    holdings = Holdings()
    grip = holdings.begin(AREA, "acquired")
    read, write = Pending(Read("d", 0, 512, 1.0)), Pending(Write("d", 0, b"", 1.0))
    holdings.unsettle(grip, [read, write], no_cure)
    assert grip.writes_in_flight() == [write]
