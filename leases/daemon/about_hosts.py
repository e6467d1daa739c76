"""Commands about the hosts of a joined lockspace: who they are, how this one renews, and events between them.

(daemon.md 7.10, 7.11 and 8.)
"""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

from leases.daemon import texts
from leases.daemon.call import NOTHING, Call, Refused, Reply, Send, Task
from leases.daemon.clock import boot_time
from leases.daemon.numbers import EventFlag
from leases.daemon.spaces import OwnEvent, Space
from leases.daemon.wire import EventMessage, Host, HostEvent, Lockspace

#: event connections of one lockspace
MAX_LISTENERS = 32
_END = (1).to_bytes(4, "little")


def get_hosts(call: Call) -> Reply:
    wanted = Lockspace.unpack(call.payload)
    space = call.daemon.spaces.held(wanted.name)
    table = space.joined.hosts
    if not table.examined:
        raise Refused(-errno.EAGAIN)
    now = boot_time()
    if wanted.host_id:
        one = table.get(wanted.host_id)
        found = [one] if one is not None else []
    else:
        found = table.used()
    hosts = [
        Host(host.host_id, host.generation, host.timestamp, int(host.io_timeout), table.state(host.host_id, now))
        for host in found
    ]
    hosts = [host if host.timestamp else replace(host, generation=0, io_timeout=0) for host in hosts]
    return Reply(0, len(hosts), b"".join(host.pack() for host in hosts))


def host_status(call: Call) -> Task[Reply]:
    space = call.daemon.spaces.held(Lockspace.unpack(call.payload).name, missing=-errno.ENOSPC)
    yield Send(replace(call.header, length=Host.layout.size).reply(0).pack())
    for host in space.joined.hosts.used():
        yield Send(texts.host_record(host, space.requests.get(host.host_id, 0)))
    return NOTHING


def renewal(call: Call) -> Reply:
    """The latest renewals, the oldest first; the first of all is the joining itself."""
    space = call.daemon.spaces.held(Lockspace.unpack(call.payload).name, missing=-errno.ENOSPC)
    records = b"".join(map(texts.renewal_record, space.history))
    return Reply(0, space.io_timeout, records, length=32)


# ------------------------------------------------------------------------------------------------------- events


def reg_event(call: Call) -> Reply:
    """From now on the connection carries events; the daemon keeps a descriptor of its own for it."""
    name = Lockspace.unpack(call.payload).name
    if not name:
        raise Refused(-errno.EINVAL)
    space = call.daemon.spaces.held(name)
    space.listeners = [listener for listener in space.listeners if not _ended(listener)]
    if len(space.listeners) >= MAX_LISTENERS:
        raise Refused(-errno.ENOCSI)
    space.listeners.append(call.client.socket.dup())
    return Reply()


def end_event(call: Call) -> Reply:
    """Forget the connections that say so, or are closed."""
    space = call.daemon.spaces.held(Lockspace.unpack(call.payload).name)
    space.listeners = [listener for listener in space.listeners if not _ended(listener)]
    return Reply()


def _ended(listener: socket.socket) -> bool:
    """Whether it was closed or marked as ended; then it is closed here too."""
    try:
        said = listener.recv(len(_END), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        said = b""
    if said and said != _END:
        return False
    listener.close()
    return True


def deliver(space: Space, message: EventMessage) -> None:
    """To every registered connection; who does not take it loses its registration."""
    raw = message.pack()
    for listener in list(space.listeners):
        try:
            complete = listener.send(raw, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(raw)
        except OSError:
            complete = False
        if not complete:
            space.listeners.remove(listener)
            listener.close()


def set_event(call: Call) -> Reply:
    """Tell another host, or all of them, something with the next renewals."""
    flags = EventFlag(call.header.flags & 0x1F)
    name = Lockspace.unpack(call.payload).name
    event = HostEvent.unpack(call.payload, Lockspace.layout.size)
    if not name or not event.host_id:
        raise Refused(-errno.EINVAL)
    space = call.daemon.spaces.held(name)
    membership = space.joined.membership
    if event.host_id > membership.area.geometry.max_hosts:
        raise Refused(-errno.EINVAL)
    generation = event.generation
    if not generation and flags & EventFlag.CUR_GENERATION:
        host = membership.hosts.get(event.host_id)
        generation = host.generation if host is not None else 0
    last, now = space.event, boot_time()
    if flags & EventFlag.CLEAR_EVENT:
        space.event = OwnEvent()
    elif not flags & EventFlag.CLEAR_HOSTID:
        wanted = OwnEvent(generation, event.event, event.data, now)
        busy = last.event and last.event != event.event and now - last.set_at < membership.timing.bitmap_life
        if busy and not flags & EventFlag.REPLACE_EVENT:
            raise Refused(-errno.EBUSY)
        space.event = wanted
    told = (space.event.generation, space.event.event, space.event.data)
    for host_id in _addressed(space, event.host_id, flags):
        if flags & EventFlag.CLEAR_HOSTID:
            membership.hands.forget(told, host_id)
        else:
            membership.hands.send(told, host_id)
    return Reply()


def _addressed(space: Space, host_id: int, flags: EventFlag) -> list[int]:
    if flags & EventFlag.ALL_HOSTS:
        return [host.host_id for host in space.joined.hosts.used()]
    return [host_id]
