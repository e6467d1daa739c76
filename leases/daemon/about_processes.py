"""Commands about the connection's own process: REGISTER, RESTRICT, KILLPATH (daemon.md 7.1)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from leases.daemon.call import NOTHING, Call, Refused, Reply
from leases.daemon.client_facts import note
from leases.daemon.clients import Client, KillPath
from leases.daemon.helper import MAX_ARGUMENTS, split_arguments
from leases.daemon.numbers import KillpathFlag, RestrictFlag
from leases.daemon.records_of import of_client, started_at
from leases.daemon.wire import unpack_killpath

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon


def register(call: Call) -> Reply:
    """The connection stands for its process from now on. There is no answer."""
    daemon, client = call.daemon, call.client
    known = client.registered
    try:
        client.register()
    except OSError:
        raise Refused(-errno.ESRCH) from None  # it has ended already; the hang-up is on its way
    daemon.clients.registered(client)
    if not known:
        client.started = started_at(client.pid)
        daemon.watch_process(client)
        _inherit(daemon, client)
        daemon.ledger.put(*of_client(client))
        daemon.journal.debug("registered", pid=client.pid, uid=client.credentials.uid)
    return NOTHING


def _inherit(daemon: Daemon, client: Client) -> None:
    """It held leases when an earlier daemon was killed: they are its own again."""
    for other in daemon.clients.of_pid(client.pid):
        if other.stand_in is not None and other.started == client.started:
            client.kill_path, client.restricted = other.kill_path, other.restricted & ~RestrictFlag.ALL
            for token in list(other.tokens):
                other.tokens.remove(token)
                token.client = client
                client.tokens.append(token)
            daemon.server.bury(other)


def restrict(call: Call) -> Reply:
    """Which signals it must not get, and whether it is deaf from now on."""
    client = call.client
    client.restricted = RestrictFlag(call.header.flags & 0x7)
    _changed(call, client)
    return Reply()


def kill_path(call: Call) -> Reply:
    """The program that stops this process in recovery; an empty path takes it away."""
    client = call.client
    path, text = unpack_killpath(call.payload)
    keeps_pid = client.kill_path is not None and client.kill_path.with_pid
    with_pid = bool(call.header.flags & KillpathFlag.PID) or keeps_pid
    most = MAX_ARGUMENTS - 1 - int(with_pid)
    client.kill_path = KillPath([path, *split_arguments(text)[:most]], with_pid) if path else None
    _changed(call, client)
    return Reply()


def _changed(call: Call, client: Client) -> None:
    """Lockspaces in which it holds leases know how to stop it."""
    call.daemon.ledger.put(*of_client(client))
    for token in client.tokens:
        if token.lease is not None:
            note(token.lease.lockspace.membership.uses.users, client)
