"""Commands about lease value blocks: SET_LVB, GET_LVB (daemon.md 7.8). Any client may use them on any held lease."""

from __future__ import annotations

import errno

from leases.daemon.call import Call, Refused, Reply
from leases.daemon.tokens import Token
from leases.daemon.wire import Resource


def set_lvb(call: Call) -> Reply:
    """Kept in memory, written to the disk when the lease is released or becomes shared."""
    data = call.payload[Resource.layout.size :]
    token, size = _with_block(call)
    if len(data) > size:
        raise Refused(-errno.E2BIG)
    token.lvb = data.ljust(size, b"\0")
    token.lvb_set = True
    call.daemon.tokens.note(token)
    return Reply()


def get_lvb(call: Call) -> Reply:
    """`data2` bytes of it, or all."""
    token, size = _with_block(call)
    assert token.lvb is not None
    return Reply(payload=token.lvb[: call.header.data2 or size])


def _with_block(call: Call) -> tuple[Token, int]:
    """The lease, and how long its block is (a sector)."""
    token = call.daemon.tokens.held(Resource.unpack(call.payload))
    if token is None:
        raise Refused(-errno.ENOENT)
    if token.lvb is None:
        raise Refused(-errno.EINVAL)
    return token, token.held.held.lease.geometry.sector_size
