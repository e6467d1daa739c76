"""By which rules a simulated host acquires, converts and gives back leases: leasehold's, or the reference's."""

from __future__ import annotations

from typing import Protocol

from leases.sim import reference
from paxos import resource
from paxos.lease_area import LeaseArea
from paxos.liveness import Member
from paxos.resource import Held, Want
from paxos.steps import Steps


class Rules(Protocol):
    """What a host does with a resource lease. All raise as `paxos.resource` does."""

    #: whether this is a host of the reference
    reference: bool
    #: whether a resource is settled after an I/O error before anything else is begun on it
    settles: bool

    def acquire(self, member: Member, lease: LeaseArea, want: Want) -> Steps[Held]: ...

    def release(self, member: Member, held: Held) -> Steps[None]: ...

    def convert(self, member: Member, held: Held) -> Steps[Held]:
        """To the other mode, without waiting."""


class Leasehold:
    """The protocols as they ship."""

    reference = False
    settles = True

    def acquire(self, member: Member, lease: LeaseArea, want: Want) -> Steps[Held]:
        return (yield from resource.acquire(member, lease, want))

    def release(self, member: Member, held: Held) -> Steps[None]:
        yield from resource.release(member, held)

    def convert(self, member: Member, held: Held) -> Steps[Held]:
        if held.shared:
            return (yield from resource.convert_to_exclusive(member, held, nowait=True))
        return (yield from resource.convert_to_shared(member, held))


class Reference:
    """The reference's documented choices. An I/O that timed out holds nothing back.

    Its clean-ups run before the acquire or release that needs them has ended, here as there: meanwhile this host
    answers others of its own clients that the resource is busy.
    """

    reference = True
    settles = False

    def acquire(self, member: Member, lease: LeaseArea, want: Want) -> Steps[Held]:
        return (yield from reference.acquire(member, lease, want))

    def release(self, member: Member, held: Held) -> Steps[None]:
        yield from reference.release(member, held)

    def convert(self, member: Member, held: Held) -> Steps[Held]:
        if held.shared:
            return (yield from reference.convert_to_exclusive(member, held))
        return (yield from reference.convert_to_shared(member, held))
