"""Commands about the daemon itself: VERSION, STATUS, LOG_DUMP, SHUTDOWN, and its list of lockspaces."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from leases.daemon import texts
from leases.daemon.call import NOTHING, Call, Refused, Reply, Send, Task, Wait
from leases.daemon.numbers import ConfigCommand, StatusDepth
from leases.daemon.records_of import of_space
from leases.daemon.wire import Header, Lockspace

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon

#: records that are made in one go, before other clients get their turn
_RECORDS = 50
_MAX_LOCKSPACES = (1 << 20) // Lockspace.layout.size


def version(call: Call) -> Reply:
    """Flags and seq do not come back."""
    return Reply(0, texts.VERSION_NUMBER, header=replace(call.header, flags=0, seq=0))


def status(call: Call) -> Task[Reply]:
    """State records until the connection is closed."""
    daemon, depth = call.daemon, call.header.data
    yield Send(call.pack(Reply()) + texts.daemon_record(daemon))
    if depth == StatusDepth.DAEMON:
        return NOTHING
    yield Send(b"".join(texts.client_records(daemon)))
    if depth == StatusDepth.CLIENTS:
        return NOTHING
    yield Send(b"".join(texts.space_record(daemon, space) for space in daemon.spaces))
    if depth == StatusDepth.LOCKSPACES:
        return NOTHING
    tokens = list(daemon.tokens)
    for start in range(0, len(tokens), _RECORDS):
        yield Send(b"".join(map(texts.token_record, tokens[start : start + _RECORDS])))
        yield Wait(0)
    return NOTHING


def log_dump(call: Call) -> Reply:
    """The log's last MiB. The header's length stays as it was sent, its data is the number of bytes."""
    text = call.daemon.journal.dump()
    return Reply(len(text), payload=text, length=call.header.length)


def shutdown(call: Call) -> Reply:
    """Never answered. Without force, and with lockspaces, nothing happens."""
    daemon = call.daemon
    daemon.journal.info("asked to shut down", pid=call.client.credentials.pid, force=call.header.data)
    if call.header.data:
        daemon.server.spawn(_by_force(daemon), "shutting down")
    else:
        daemon.asked_to_end("SHUTDOWN")
    return NOTHING


def _by_force(daemon: Daemon) -> Task[None]:
    yield from daemon.end_by_force()
    daemon.stop()


def shutdown_wait(call: Call) -> Task[Reply]:
    """Answered when the end has come, by a header without a command."""
    daemon = call.daemon
    if not call.header.data and len(daemon.spaces):
        raise Refused(-errno.EBUSY)
    daemon.journal.info("asked to shut down", pid=call.client.credentials.pid, force=call.header.data)
    yield from _by_force(daemon)
    return Reply(header=Header(0))


def get_lockspaces(call: Call) -> Reply:
    spaces = list(call.daemon.spaces)
    fitting = spaces[:_MAX_LOCKSPACES]
    raw = b"".join(replace(space.wire, flags=int(space.flags)).pack() for space in fitting)
    return Reply(-errno.ENOSPC if len(spaces) > len(fitting) else 0, len(spaces), raw)


def set_config(call: Call) -> Reply:
    """Say whether a lockspace is used by something besides its leases (daemon.md 7.10)."""
    name, what = Lockspace.unpack(call.payload).name, call.header.data
    if what not in list(ConfigCommand):
        raise Refused(-errno.EINVAL)
    space = call.daemon.spaces.held(name)
    if what in (ConfigCommand.USED, ConfigCommand.USED_BY_ORPHANS) and not space.usable:
        raise Refused(-errno.ENOSPC)
    if what in (ConfigCommand.USED, ConfigCommand.UNUSED):
        space.external_used = what == ConfigCommand.USED
    else:
        space.used_by_orphans = what == ConfigCommand.USED_BY_ORPHANS
    if space.membership is not None:
        call.daemon.ledger.put(*of_space(space))
    call.daemon.journal.info("lockspace set", lockspace=name, config=ConfigCommand(what).name)
    return Reply()
