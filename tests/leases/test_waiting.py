"""Waiting for a lease of another host: it ends when the lease may be had, also if that was before the first look."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest

from leases.sim.layout import Layout
from leases.sim.world import World
from leases.waiting import until_worth_a_try
from paxos import resource
from paxos.errors import LeaseHeld, SharedHolders
from paxos.lease_area import LeaseArea
from paxos.liveness import Member
from paxos.lockspace_area import LockspaceArea
from paxos.resource import Want
from paxos.timing import Timing
from tests.support.memory import MemoryWorld

_LAYOUT = Layout(1, 8, 10)
_LEASE = LeaseArea(_LAYOUT.lockspace, _LAYOUT.name(1), _LAYOUT.place(1), _LAYOUT.geometry)
_LONG = 1e6


@pytest.fixture
def world():
    world = MemoryWorld(disk=_LAYOUT.size)
    world.disks["disk"][:] = _LAYOUT.make(World(0)).bytes
    return world


def _member(host_id):
    area = LockspaceArea(_LAYOUT.lockspace, _LAYOUT.lockspace_place, _LAYOUT.geometry)
    hosts = SimpleNamespace(get=lambda host_id: None, shared_holder_alive=lambda host_id, generation: True)
    return Member(area, host_id, 1, Timing(10), hosts, Random(1))


def _seconds_waited(world, refusal):
    start = world.time
    world.run(until_worth_a_try(_member(2), _LEASE, refusal, _LONG))
    return world.time - start


def _held_by(host_id):
    return LeaseHeld(resource=_LEASE.name, owner_host=host_id, generation=1, short_hold=False)


def test_a_lease_that_was_given_back_before_the_first_look_is_worth_a_try_at_once(world):
    held = world.run(resource.acquire(_member(1), _LEASE))
    world.run(resource.release(_member(1), held))
    assert _seconds_waited(world, _held_by(1)) == 0


def test_a_shared_mark_that_is_gone_at_the_first_look_is_worth_a_try_at_once(world):
    held = world.run(resource.acquire(_member(1), _LEASE, Want(shared=True)))
    world.run(resource.release(_member(1), held))
    refusal = SharedHolders(resource=_LEASE.name, owner_host=1, hosts=[1])
    assert _seconds_waited(world, refusal) == 0


def test_a_lease_that_stays_held_is_waited_for(world):
    world.run(resource.acquire(_member(1), _LEASE))
    assert _seconds_waited(world, _held_by(1)) > 10


def test_a_free_leader_whose_owner_decides_the_next_version_is_waited_for(world):
    held = world.run(resource.acquire(_member(1), _LEASE))
    world.run(resource.release(_member(1), held))
    again = world.start(resource.acquire(_member(1), _LEASE))
    again.until(lambda step: getattr(step, "data", None) is not None and step.offset == _LEASE.place.offset)
    assert _seconds_waited(world, _held_by(1)) > 10
