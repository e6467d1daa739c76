"""Waiting for a lease that somebody else has, cheaply: a few sectors are read until it is worth another try."""

from __future__ import annotations

from paxos.errors import HeldElsewhere, LeaseHeld, LeaseholdError, OwnerMayBeDead, SharedHolders
from paxos.host_lease import read_sector
from paxos.lease_area import LeaseArea, read_block, read_leader
from paxos.liveness import Member
from paxos.steps import Steps, now, sleep
from paxos.timing import Timing, judging_io_timeout

#: seconds between two looks: at first, and at most (a share of io_timeout, within bounds)
_FIRST_PAUSE = 0.02
_PAUSE_SHARE = 0.1
_MAX_PAUSE = 1.0


def until_worth_a_try(member: Member, lease: LeaseArea, refusal: LeaseholdError, until: float) -> Steps[None]:
    """After `refusal`, wait until an acquire may succeed, or until the boot time `until`. Raises DiskError, BadRecord.

    Returns too early rather than too late: the next acquire finds out.
    """
    start = yield from now()
    if not isinstance(refusal, HeldElsewhere):  # on this host: nothing to read
        yield from sleep(max(0.0, min(0.05, until - start)))
        return
    patience = member.timing.renewal_interval + 1.0
    if isinstance(refusal, OwnerMayBeDead):
        patience = refusal.wait + 0.01
    until = min(until, start + patience)
    slowest = min(_MAX_PAUSE, max(_FIRST_PAUSE, _PAUSE_SHARE * member.timing.io_timeout))
    pause = _FIRST_PAUSE
    first: list[object] | None = None
    while (left := until - (yield from now())) > 0:
        given_back, *seen = yield from _look(member, lease, refusal)
        if given_back or (first is not None and seen != first):
            return
        first = seen
        yield from sleep(min(pause, left))
        pause = min(1.5 * pause, slowest)


def _look(member: Member, lease: LeaseArea, refusal: LeaseholdError) -> Steps[tuple[object, ...]]:
    """Whether it was given back since the refusal; and what changes when the lease may be had.

    The latter are leader, the owner's block, its host lease as last seen.
    """
    timeout = member.timing.io_timeout
    owner: int = refusal.owner_host
    block, _ = yield from read_block(lease, owner, timeout)
    if isinstance(refusal, SharedHolders):
        return not block.shared, block.mode_generation
    leader, _ = yield from read_leader(lease, timeout)
    history = member.hosts.get(owner)
    # A free leader says little while the owner's block claims a later version, or this one of another host's.
    later = block.lver > leader.lver or (block.lver == leader.lver and leader.owner_id != owner)
    given_back = leader.free and not (later and block.accepted and not block.released)
    return given_back, leader, block.flags, history and (history.generation, history.timestamp == 0)


def sharpened(member: Member, refusal: LeaseholdError) -> Steps[LeaseholdError]:
    """`refusal`, with the owner called alive where it is: shortly after joining we have not seen it renew yet.

    Takes one of its renewal intervals if it is not alive.
    """
    if not isinstance(refusal, OwnerMayBeDead):
        return refusal
    history = member.hosts.get(refusal.owner_host)
    if history is not None and history.last_check - history.first_check > 2 * history.io_timeout:
        return refusal
    timeout = member.timing.io_timeout
    first, _ = yield from read_sector(member.area, refusal.owner_host, timeout)
    interval = Timing(judging_io_timeout(first.io_timeout, timeout)).renewal_interval
    until = (yield from now()) + interval + 1.5
    while (yield from now()) < until:
        yield from sleep(min(0.25, interval / 8))
        seen, _ = yield from read_sector(member.area, refusal.owner_host, timeout)
        if seen.timestamp != first.timestamp:
            facts = {name: value for name, value in refusal.facts.items() if name != "wait"}
            return LeaseHeld(**{**facts, "renewed_ago": 0.0})
    return refusal
