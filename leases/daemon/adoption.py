"""Going on where an earlier daemon was killed: its keeper process still renews, its clients still live.

Nothing of what it wrote down is believed as such. A lockspace is taken up if the keeper has it and renews it; a lease
if the disk says that this host holds it, in the generation that is renewed; a client if the very process that
registered is still there. What is left over is given up: leases of dead clients, and those that were just being
taken or given back when the daemon died (paxos/settle.py finds out what of that is on the disk).

A client's connection is gone for good. Its process is watched instead; when it registers again, it gets its leases.
"""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from leases.daemon import records_of
from leases.daemon.about_leases import lease_area
from leases.daemon.about_lockspaces import DaemonTiming, happened
from leases.daemon.call import Task, work
from leases.daemon.clients import Client
from leases.daemon.keeper_link import KeeperLink
from leases.daemon.kept_membership import KeptMembership
from leases.daemon.ledger import Value
from leases.daemon.numbers import ResourceFlag
from leases.daemon.spaces import OK, Space, SpaceState
from leases.daemon.tokens import TokenState
from leases.daemon.users import ClientUsers
from leases.lease import Lease
from leases.lockspace import Lockspace
from paxos.errors import LeaseholdError, ReleaseOwner
from paxos.geometry import Geometry, Place
from paxos.lease_area import LeaseArea, read_block, survey
from paxos.liveness import Member
from paxos.lockspace_area import LockspaceArea
from paxos.resource import Held, verify_held
from paxos.settle import settle
from paxos.steps import Steps

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon


#: leases that are looked at on their disks at the same time
_AT_ONCE = 16


def adopt(daemon: Daemon, ledger: dict[str, Value]) -> Task[None]:
    """Take up what an earlier daemon held. Nothing is served meanwhile."""
    spaces = [value for key, value in ledger.items() if key.startswith("space ")]
    clients = {value["slot"]: value for key, value in ledger.items() if key.startswith("client ")}
    leases = [value for key, value in ledger.items() if key.startswith("lease ")]
    link = yield from work(lambda: _attach(daemon))
    if link is None:
        if spaces:
            daemon.journal.warning("an earlier daemon's lockspaces are lost", lockspaces=len(spaces))
        return
    daemon.journal.info("going on with an earlier daemon's keeper process", spaces=len(spaces), leases=len(leases))
    for value in spaces:
        yield from _take_up_space(daemon, link, value)
    yield from work(lambda: link.call("keep_only", spaces=[value["number"] for value in spaces]))
    living = {slot: client for slot, value in clients.items() if (client := _take_up_client(daemon, value))}
    claims = [
        _Claim(space, value, living.get(value["client"]), _is_wanted(value, living))
        for value in leases
        if (space := daemon.spaces.get(value["space"].encode("latin-1"))) is not None and space.usable
    ]
    # what is given up comes last: a shared lease may be somebody else's too
    for wanted in (True, False):
        yield from _take_up_leases(daemon, [claim for claim in claims if claim.wanted is wanted])


def _attach(daemon: Daemon) -> KeeperLink | None:
    try:
        return daemon.attach_to_keeper()
    except (OSError, LeaseholdError):
        return None


# ---------------------------------------------------------------------------------------------------- lockspaces


def _take_up_space(daemon: Daemon, link: KeeperLink, value: Value) -> Task[None]:
    space = daemon.spaces.begin(records_of.wire_of_space(value), value["io_timeout"])
    try:
        yield from work(partial(_rejoin, daemon, link, space, value))
    except LeaseholdError as failure:
        daemon.spaces.remove(space)
        daemon.journal.error("lockspace not taken up", lockspace=space.name, reason=failure)
        yield from work(partial(_let_expire, link, value["number"]))
        return
    space.state = SpaceState.HELD
    space.external_used, space.used_by_orphans = value["used"], value["used_by_orphans"]
    space.acquiring.result = space.renewing.result = OK
    daemon.ledger.put(*records_of.of_space(space))
    daemon.journal.info("lockspace taken up", lockspace=space.name, generation=space.joined.generation)


def _let_expire(link: KeeperLink, number: int) -> None:
    """Nobody can stop its users any more but its watchdog: it is not renewed, and stays armed."""
    with suppress(LeaseholdError):
        link.call("abort", space=number, reason="no daemon could take it up")


def _rejoin(daemon: Daemon, link: KeeperLink, space: Space, value: Value) -> None:
    settings = daemon.settings
    timing = DaemonTiming(
        space.io_timeout,
        settings.watchdog_fire_timeout,
        daemon.kill_grace,
        settings.bitmap_seconds,
        settings.renewal_read_extend_sec,
    )
    geometry = Geometry(value["sector_size"], value["align_size"])
    area = LockspaceArea(space.name, Place(space.wire.disk.path, space.wire.disk.offset), geometry)
    _, watchdog = daemon.keeper()
    watchdog.adopted = value["number"]
    owner_name = value["owner_name"].encode("latin-1")
    membership = KeptMembership(area, space.wire.host_id, owner_name, timing, watchdog, link)
    membership.uses.users = ClientUsers(daemon, space)
    membership.announcer.hooks.append(lambda event: daemon.loop.post(partial(happened, daemon, space, event)))
    space.lockspace, space.membership = Lockspace(membership, None), membership
    membership.attach()


# -------------------------------------------------------------------------------------------------------- clients


def _take_up_client(daemon: Daemon, value: Value) -> Client | None:
    """The same process, if it is still there; without a connection."""
    if records_of.started_at(value["pid"]) != value["started"]:
        return None
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = daemon.clients.add(ours)
    client.credentials = records_of.credentials_of(value)
    client.stand_in = theirs
    try:
        client.pidfd = os.pidfd_open(value["pid"])
    except OSError:
        daemon.clients.remove(client)
        return None
    if records_of.started_at(value["pid"]) != value["started"]:
        daemon.clients.remove(client)
        client.close()
        return None
    client.registered, client.started = True, value["started"]
    records_of.fill_client(client, value)
    daemon.clients.registered(client)
    daemon.watch_process(client)
    daemon.ledger.put(*records_of.of_client(client))
    return client


# --------------------------------------------------------------------------------------------------------- leases


def _is_wanted(value: Value, living: dict[int, Client]) -> bool:
    """Whether somebody has it still, or it is to stay without anybody."""
    state = TokenState(value["state"])
    if state is TokenState.HELD:
        return value["client"] in living or bool(value["flags"] & ResourceFlag.PERSISTENT)
    return state is TokenState.ORPHAN


@dataclass(frozen=True, slots=True)
class _Claim:
    """A lease that is said to be held. `wanted`: somebody has it still, or it is to stay without anybody."""

    space: Space
    value: Value
    client: Client | None
    wanted: bool


def _take_up_leases(daemon: Daemon, claims: list[_Claim]) -> Task[None]:
    for claim, lease in (yield from work(lambda: _prove_all(claims))):
        if isinstance(lease, LeaseholdError):
            daemon.journal.error(
                "lease not taken up", lockspace=claim.space.name, lease=claim.value["name"], reason=lease
            )
        elif lease is not None:
            _enter(daemon, claim, lease)


def _prove_all(claims: list[_Claim]) -> list[tuple[_Claim, Lease | LeaseholdError | None]]:
    """Many at once, since each waits for a disk; the holders of one shared lease one after the other."""
    by_lease: dict[tuple[bytes, str], list[_Claim]] = {}
    for claim in claims:
        by_lease.setdefault((claim.space.name, claim.value["name"]), []).append(claim)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda group: [(claim, _proven(claim)) for claim in group], by_lease.values())
        return [one for group in found for one in group]


def _proven(claim: _Claim) -> Lease | LeaseholdError | None:
    try:
        area = lease_area(claim.space, records_of.resource_of(claim.value))
        return _prove(claim.space, area, claim.value, claim.client, claim.wanted)
    except LeaseholdError as failure:
        return failure


def _enter(daemon: Daemon, claim: _Claim, lease: Lease) -> None:
    value, client = claim.value, claim.client
    token = daemon.tokens.add(claim.space, records_of.resource_of(value), client, value["pid"])
    token.shared, token.lease = value["shared"], lease
    token.lvb = None if value["lvb"] is None else value["lvb"].encode("latin-1")
    token.lvb_set = value["lvb_set"]
    if client is not None:
        daemon.tokens.granted(token, client, token.resource)
    else:
        daemon.tokens.orphaned(token)
    daemon.journal.debug("lease taken up", lockspace=claim.space.name, lease=token.name, pid=value["pid"])


def _prove(space: Space, area: LeaseArea, value: Value, client: Client | None, wanted: bool) -> Lease | None:
    """In a worker: the lease, if the disk says that it is ours and somebody still wants it; else it is given up."""
    membership = space.joined.membership
    grip = membership.holdings.begin(area, "taken up", value["shared"])
    if grip.held is not None:  # another holder of a shared lease has it
        if not wanted:
            return None
        lease = Lease(space.joined, grip, grip.held)
        membership.uses.begin(lease, client.pid if client is not None else None)
        membership.holdings.attach(grip, lease)
        return lease
    try:
        if not wanted:
            membership.engines.run(settle(membership.member, area, []))
            return None
        held = membership.engines.run(_found(membership.member, area, value["lver"], value["shared"]))
        lease = Lease(space.joined, grip, held)
        membership.uses.begin(lease, client.pid if client is not None else None)
        membership.holdings.grant(grip, held, lease)
        return lease
    finally:
        if not grip.leases:
            membership.holdings.drop(grip)


def _found(member: Member, area: LeaseArea, lver: int, shared: bool) -> Steps[Held]:
    """What this host holds of a lease, by the disk. Raises ReleaseOwner if that is nothing, BadRecord, DiskError."""
    scene = yield from survey(area, member.host_id, member.timing.io_timeout)
    block, sector = yield from read_block(scene.lease, member.host_id, member.timing.io_timeout)
    held = Held(
        scene.lease,
        member.host_id,
        member.generation,
        lver,
        shared,
        scene.leader,
        block,
        sector.rstrip(b"\0"),
    )
    yield from verify_held(member, held)
    if not shared and scene.leader.lver != lver:
        raise ReleaseOwner(resource=area.name, owner_host=scene.leader.owner_id, timestamp=scene.leader.timestamp)
    return held
