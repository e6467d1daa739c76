"""Commands about the leases that clients hold: ACQUIRE, RELEASE, INQUIRE, CONVERT (daemon.md 7.5 to 7.7)."""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from leases.daemon import statestring
from leases.daemon.call import Call, Refused, Reply, Task, work
from leases.daemon.clients import Client
from leases.daemon.numbers import AcquireFlag, ReleaseFlag, ResourceFlag
from leases.daemon.spaces import Space
from leases.daemon.tokens import Token, TokenState
from leases.daemon.wire import Options, Resource, geometry_of
from leases.lease import Lease
from paxos.disk.abort import AbortSignal
from paxos.errors import BadRecord, DiskError, InvalidUse, LeaseholdError
from paxos.geometry import Place
from paxos.lease_area import LeaseArea

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon

_RESOURCE = Resource.layout.size


# ------------------------------------------------------------------------------------------------------ acquiring


def acquire(call: Call) -> Task[Reply]:
    """All of the leases, or none."""
    daemon, client, flags = call.daemon, call.subject, AcquireFlag(call.header.flags & 0xF)
    wanted, at = [], 0
    for _ in range(call.header.data):
        wanted.append(Resource.unpack_with_disks(call.payload, at))
        at += wanted[-1].wire_size
    client.name = Options.unpack(call.payload, at).owner_name.decode("utf-8", "surrogateescape")
    tokens: list[Token] = []
    try:
        for one in wanted:
            tokens.append(_begin(daemon, client, one, flags))
        lvb = bool(flags & AcquireFlag.LVB)
        nowait = bool(flags & AcquireFlag.OWNER_NOWAIT)
        pid = client.credentials.pid
        yield from work(partial(_take_all, tokens, pid, lvb, nowait, call.abort))
    except (LeaseholdError, Refused):
        for token in tokens:
            if token.state is TokenState.ADDING:
                daemon.tokens.remove(token)
        raise
    for token, one in zip(tokens, wanted, strict=True):
        if token.space.usable:
            daemon.tokens.granted(token, client, one)
        else:  # it failed since: the lease is lost, and its lockspace is being cleared
            daemon.tokens.remove(token)
            raise Refused(-errno.ENOSPC)
    return Reply()


def _begin(daemon: Daemon, client: Client, wanted: Resource, flags: AcquireFlag) -> Token:
    if not wanted.disks:
        raise Refused(-errno.ERANGE)
    space = daemon.spaces.usable(wanted.lockspace)
    return daemon.tokens.begin(space, wanted, client, flags)


def _take_all(tokens: list[Token], pid: int, lvb: bool, nowait: bool, abort: AbortSignal) -> None:
    """In a worker. When one can't be had, those before it are given back."""
    taken: list[Lease] = []
    try:
        for token in tokens:
            if token.state is TokenState.ADDING:
                lease = _take(token, pid, lvb, nowait, abort)
                taken.append(lease)
                token.lvb = _first_block(lease) if lvb else None
                token.lease = lease
        for token in tokens:  # last, since they are not given back
            if token.state is TokenState.ORPHAN:
                token.held.add_holder(pid)
    except BaseException:
        for lease in taken:
            with suppress(LeaseholdError):
                lease.release()
        raise


def _take(token: Token, pid: int, lvb: bool, nowait: bool, abort: AbortSignal) -> Lease:
    wanted = token.resource
    return token.space.joined.acquire_area(
        lease_area(token.space, wanted),
        shared=wanted.shared,
        lver=wanted.lver if wanted.flags & ResourceFlag.LVER else None,
        num_hosts=wanted.num_hosts if wanted.flags & ResourceFlag.NUM_HOSTS else None,
        lvb=lvb,
        nowait=nowait,
        holder=pid,
        abort=abort,
    )


def lease_area(space: Space, wanted: Resource) -> LeaseArea:
    """Where a lease is. Its sizes are a first guess: its leader record says what they are. Raises InvalidUse."""
    if len(wanted.disks) != 1:
        raise InvalidUse(reason=f"{wanted.name!r}: leases that are kept on several disks at once are not supported")
    disk = wanted.disks[0]
    geometry = geometry_of(wanted.flags) or space.joined.membership.area.geometry
    return LeaseArea(space.name, wanted.name, Place(disk.path, disk.offset), geometry)


def _first_block(lease: Lease) -> bytes:
    """The value block as it is on the disk. That it can't be read does not undo the acquisition."""
    try:
        return lease.lvb
    except (DiskError, BadRecord):
        return bytes(lease.held.lease.geometry.sector_size)


# ------------------------------------------------------------------------------------------------------ releasing


def release(call: Call) -> Task[Reply]:
    """On the disk before the answer. What is not held is answered with -1, the others are released all the same."""
    daemon, client, flags = call.daemon, call.subject, ReleaseFlag(call.header.flags & 0x7)
    if flags & ReleaseFlag.ORPHAN:
        return Reply(_release_orphans(daemon, Resource.unpack(call.payload)))
    if flags & ReleaseFlag.RENAME:
        old, new = Resource.unpack(call.payload), Resource.unpack(call.payload, _RESOURCE)
        return (yield from _release(daemon, client, [old], new.name))
    if flags & ReleaseFlag.ALL:
        tokens = list(client.tokens)
        return (yield from _give_back(daemon, client, tokens, 0, None))
    named = [Resource.unpack(call.payload, n * _RESOURCE) for n in range(call.header.data)]
    return (yield from _release(daemon, client, named, None))


def _release(daemon: Daemon, client: Client, named: list[Resource], new_name: bytes | None) -> Task[Reply]:
    found = [daemon.tokens.held_by(client, one) for one in named]
    result = -errno.EPERM if None in found else 0
    tokens = list(dict.fromkeys(token for token in found if token is not None))
    return (yield from _give_back(daemon, client, tokens, result, new_name))


def _give_back(daemon: Daemon, client: Client, tokens: list[Token], result: int, new_name: bytes | None) -> Task[Reply]:
    for token in tokens:
        daemon.tokens.releasing(token)
    for token in tokens:
        try:
            yield from daemon.give_back(token, new_name)
        except LeaseholdError as failure:
            result = failure.code
    if client.kill_count and not client.tokens:  # it has given up everything, and may live on
        client.kill_count = client.kill_last = 0
    return Reply(result)


def _release_orphans(daemon: Daemon, named: Resource) -> int:
    """All of a lockspace, or one by its name; released in the background. How many there are."""
    orphans = [
        token
        for token in daemon.tokens
        if token.state is TokenState.ORPHAN and token.space.name == named.lockspace and named.name in (b"", token.name)
    ]
    for token in orphans:
        daemon.tokens.releasing(token)
        daemon.server.spawn(daemon.give_back_quietly(token), "releasing an orphan")
    return len(orphans)


# -------------------------------------------------------------------------------------------- asking, converting


def inquire(call: Call) -> Reply:
    """What the target holds, as a state string.

    Better than the reference, which can't tell a lease whose path has a space: the space is escaped, and every
    client's parser knows that.
    """
    tokens = call.subject.tokens
    if not tokens:
        return Reply()
    text = statestring.format_state(_shown(token) for token in tokens) + b"\0"
    return Reply(0, len(tokens), text)


def _shown(token: Token) -> Resource:
    flags = int(ResourceFlag.SHARED) if token.shared else 0
    resource = token.resource
    return Resource(resource.lockspace, resource.name, resource.disks, flags, token.lver)


def convert(call: Call) -> Task[Reply]:
    """Make a held lease shared or exclusive; when it can't be, it stays as it is."""
    daemon, wanted = call.daemon, Resource.unpack(call.payload)
    token = daemon.tokens.held_by(call.subject, wanted)
    if token is None:
        raise Refused(-errno.ENOENT)
    if token.shared == wanted.shared:
        raise Refused(-errno.EALREADY)
    if not token.space.usable:
        raise Refused(-errno.ENOSPC)
    if len(daemon.tokens.of(wanted.lockspace, wanted.name)) > 1:  # others on this host hold it too
        raise Refused(-errno.EAGAIN)
    token.converting = True
    try:
        yield from work(partial(_convert, token, wanted.shared))
    finally:
        token.converting = False
        token.shared = token.held.shared
        daemon.tokens.note(token)
    return Reply()


def _convert(token: Token, shared: bool) -> None:
    if shared and token.lvb_set and token.lvb is not None:
        token.held.lvb = token.lvb
        token.lvb_set = False
    token.held.convert(shared=shared)
