"""Commands about leases that another host holds: REQUEST, and EXAMINE_* on the holder's side (daemon.md 7.12)."""

from __future__ import annotations

from functools import partial

from leases.daemon.about_leases import lease_area
from leases.daemon.call import Call, Reply, Task, work
from leases.daemon.numbers import RequestFlag
from leases.daemon.spaces import Space
from leases.daemon.wire import Lockspace, Resource
from paxos.errors import InvalidUse
from paxos.request import Force


def request(call: Call) -> Task[Reply]:
    """Ask the owner of a lease to give it up."""
    wanted = Resource.unpack_with_disks(call.payload)
    space = call.daemon.spaces.usable(wanted.lockspace)
    lver = None if call.header.flags & RequestFlag.NEXT_LVER else wanted.lver
    try:
        force = Force(call.header.data)
    except ValueError:
        raise InvalidUse(reason=f"force mode {call.header.data} does not exist") from None
    area = lease_area(space, wanted)
    yield from work(partial(space.joined.request_area, area, force, lver))
    return Reply()


def examine_lockspace(call: Call) -> Reply:
    """Look at the requests for all leases held in a lockspace. Always 0."""
    _examine(call.daemon.spaces.get(Lockspace.unpack(call.payload).name))
    return Reply()


def examine_resource(call: Call) -> Reply:
    _examine(call.daemon.spaces.get(Resource.unpack(call.payload).lockspace))
    return Reply()


def _examine(space: Space | None) -> None:
    if space is not None and space.usable:
        space.joined.membership.attendant.look_at_requests()
