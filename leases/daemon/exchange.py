"""Each command of the daemon as an exchange: what a client sends, what it must receive, what that means.

Exchanges (`leases.daemon.conversation`) open nothing and wait for nothing, so one set of them serves the blocking
client, the async client, the command line and the module `leases.sanlock`. Negative results raise the errors of
`leases.daemon.results`, bytes that are no reply raise BadMessage, and the end of the connection DaemonGone.

A connection is good for one exchange, unless it has been registered (daemon.md section 3). Where a lockspace,
a resource or an index is wanted, its text form (`leases.daemon.statestring`) will do; where a name, text will.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from leases.daemon import statestring
from leases.daemon.conversation import Exchange, Receive, Send, array, ask, receive, reply
from leases.daemon.naming import (
    EntryLike,
    IndexLike,
    LockspaceLike,
    Name,
    ResourceLike,
    as_entry,
    as_index,
    as_lockspace,
    as_name,
    as_resource,
    show,
)
from leases.daemon.numbers import (
    MAX_RESOURCES,
    OWN_CONNECTION,
    AcquireFlag,
    AddFlag,
    Command,
    ConfigCommand,
    EventFlag,
    IndexFlag,
    InquireLockspaceFlag,
    KillpathFlag,
    ReleaseFlag,
    RemoveFlag,
    RequestFlag,
    RequestMode,
    RestrictFlag,
    StateType,
    StatusDepth,
    WriteResourceFlag,
)
from leases.daemon.results import refusal
from leases.daemon.wire import (
    BadMessage,
    Disk,
    EventMessage,
    Header,
    Host,
    HostEvent,
    Index,
    IndexEntry,
    Lockspace,
    Options,
    Resource,
    State,
    pack_killpath,
    parse_state_text,
    request,
)
from paxos.errors import InvalidUse
from paxos.geometry import Geometry


@dataclass(frozen=True, slots=True)
class Version:
    """Of the daemon. `protocol` is major << 16 | minor."""

    major: int
    minor: int
    patch: int
    protocol: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of STATUS, HOST_STATUS or RENEWAL: fixed fields, the pairs of its text, what it is about."""

    state: State
    values: dict[str, str]
    about: Lockspace | Resource | None = None


@dataclass(slots=True)
class Status:
    """The records of STATUS by their type, each in the daemon's order."""

    daemon: dict[str, str] = field(default_factory=dict)
    clients: list[Record] = field(default_factory=list)
    lockspaces: list[Record] = field(default_factory=list)
    resources: list[Record] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Formatted:
    """A lockspace as its disk states it. `io_timeout` in seconds."""

    lockspace: Lockspace
    io_timeout: int


@dataclass(frozen=True, slots=True)
class Owners:
    """A resource as its disk states it, and who holds it: the exclusive owner first, then shared ones."""

    resource: Resource
    hosts: list[Host]


def _target(pid: int | None) -> int:
    """`data2`: the connection itself, or another registered process."""
    return OWN_CONNECTION if pid is None else pid


def _sized(flags: int, geometry: Geometry | None) -> int:
    return flags | geometry.wire_flags if geometry else flags


# ------------------------------------------------------------------------------------------- about the daemon


def version() -> Exchange[Version]:
    header = yield from ask(Command.VERSION, b"", "")
    packed = header.data2
    return Version(packed >> 24, packed >> 16 & 0xFF, packed >> 8 & 0xFF, header.version)


def status(depth: StatusDepth = StatusDepth.ALL) -> Exchange[Status]:
    """What the daemon knows, down to `depth`."""
    yield from ask(Command.STATUS, b"", "", data=depth)
    found = Status()
    for record in (yield from _records(Command.STATUS)):
        match record.state.type:
            case StateType.DAEMON:
                found.daemon = record.values
            case StateType.CLIENT:
                found.clients.append(record)
            case StateType.LOCKSPACE:
                found.lockspaces.append(record)
            case StateType.RESOURCE:
                found.resources.append(record)
            case other:
                raise BadMessage(what="status", reason=f"unexpected record of type {other.name}")
    return found


def _records(command: Command) -> Exchange[list[Record]]:
    """State records until the daemon closes the connection."""
    records: list[Record] = []
    while raw := (yield Receive(State.layout.size)):
        state = State.unpack(raw)
        text = yield from receive(state.text_length, command.name)
        about: Lockspace | Resource | None = None
        if state.type == StateType.LOCKSPACE:
            about = Lockspace.unpack((yield from receive(Lockspace.layout.size, command.name)))
        elif state.type == StateType.RESOURCE:
            bare = yield from receive(Resource.layout.size, command.name)
            disks = Resource.disks_size(bare)
            about = Resource.unpack_with_disks(bare + (yield from receive(disks, command.name)))
        records.append(Record(state, parse_state_text(text), about))
    return records


def log() -> Exchange[str]:
    """The last MiB of the daemon's log."""
    header = yield from ask(Command.LOG_DUMP, b"", "")
    text = yield from receive(header.result, Command.LOG_DUMP.name)
    return text.decode("utf-8", "replace")


def shutdown(force: bool = False, wait: bool = True) -> Exchange[None]:
    """End the daemon; with `force` it leaves its lockspaces first (their users are killed).

    With `wait` the answer comes at the end, and TryAgain is raised when lockspaces exist and `force` is not
    set. Without `wait` there is no answer: the daemon closes the connection, whatever it decides.
    """
    if wait:
        yield from ask(Command.SHUTDOWN_WAIT, b"", "", data=force)
        return
    yield Send(request(Command.SHUTDOWN, data=force))
    yield Receive(1)


# ------------------------------------------------------------------------------------------------- lockspaces


def add_lockspace(lockspace: LockspaceLike, io_timeout: int = 0, wait: bool = True) -> Exchange[None]:
    """Join. `io_timeout` in seconds, 0 for the daemon's default. Without `wait`, `inquire_lockspace` tells."""
    lockspace = as_lockspace(lockspace)
    flags = AddFlag(0) if wait else AddFlag.ASYNC
    yield from ask(Command.ADD_LOCKSPACE, lockspace.pack(), show(lockspace), flags=flags, data=io_timeout)


def inquire_lockspace(lockspace: LockspaceLike, wait: bool = False) -> Exchange[bool | None]:
    """True: joined. False: not. None: on its way in or out (never with `wait`). Host id 0 matches any."""
    lockspace = as_lockspace(lockspace)
    flags = InquireLockspaceFlag.WAIT if wait else InquireLockspaceFlag(0)
    yield Send(request(Command.INQ_LOCKSPACE, lockspace.pack(), flags=flags))
    header = yield from reply(Command.INQ_LOCKSPACE)
    answers = {0: True, -errno.ENOENT: False, -errno.EINPROGRESS: None}
    if header.result not in answers:
        raise refusal(Command.INQ_LOCKSPACE, header.result, show(lockspace))
    return answers[header.result]


def remove_lockspace(lockspace: LockspaceLike, wait: bool = True, unused: bool = False) -> Exchange[None]:
    """Leave. Whoever holds leases in it is killed; with `unused`, TryAgain is raised instead."""
    lockspace = as_lockspace(lockspace)
    flags = (RemoveFlag(0) if wait else RemoveFlag.ASYNC) | (RemoveFlag.UNUSED if unused else RemoveFlag(0))
    yield from ask(Command.REM_LOCKSPACE, lockspace.pack(), show(lockspace), flags=flags)


def lockspaces() -> Exchange[list[Lockspace]]:
    """All lockspaces; LockspaceFlag in `flags` tells which are being added or removed."""
    header = yield from ask(Command.GET_LOCKSPACES, b"", "")
    return (yield from array(Command.GET_LOCKSPACES, header, Lockspace.unpack, Lockspace.layout.size))


def hosts(lockspace: Name, host_id: int = 0) -> Exchange[list[Host]]:
    """The hosts of a joined lockspace that hold a host lease; with `host_id` that one, even if free."""
    asked = Lockspace(as_name(lockspace), host_id)
    header = yield from ask(Command.GET_HOSTS, asked.pack(), show(lockspace))
    return (yield from array(Command.GET_HOSTS, header, Host.unpack, Host.layout.size))


def host_status(lockspace: Name) -> Exchange[list[Record]]:
    """What the daemon knows of each host, and since when (seconds of its own clock)."""
    yield from _ask_name_only(Command.HOST_STATUS, lockspace)
    return (yield from _records(Command.HOST_STATUS))


def renewals(lockspace: Name) -> Exchange[list[Record]]:
    """The latest renewals of the daemon's own host lease, oldest first."""
    yield from _ask_name_only(Command.RENEWAL, lockspace)
    return (yield from _records(Command.RENEWAL))


def _ask_name_only(command: Command, lockspace: Name) -> Exchange[Header]:
    """HOST_STATUS and RENEWAL: clients of the reference do not count the payload in `length`; nor do we."""
    yield Send(Header(command).pack() + Lockspace(as_name(lockspace)).pack())
    header = yield from reply(command)
    if header.result < 0:
        raise refusal(command, header.result, show(lockspace))
    return header


def configure(lockspace: Name, what: ConfigCommand) -> Exchange[None]:
    """Say who uses a lockspace besides its leases: the watchdog may not be disarmed while it is used."""
    payload = Lockspace(as_name(lockspace)).pack()
    yield from ask(Command.SET_CONFIG, payload, show(lockspace), data=what)


# ------------------------------------------------------------------------------------- formatting and reading


def align(path: str) -> Exchange[int]:
    """The align size in bytes that goes with the path's sector size."""
    header = yield from ask(Command.ALIGN, Disk(path).pack(), path)
    return header.result


def write_lockspace(
    lockspace: LockspaceLike, geometry: Geometry | None = None, io_timeout: int = 0, max_hosts: int = 0
) -> Exchange[None]:
    """Format. Without `geometry` the device's sector size decides; the daemon ignores `max_hosts`."""
    lockspace = as_lockspace(lockspace)
    payload = replace(lockspace, flags=_sized(lockspace.flags, geometry)).pack()
    yield from ask(Command.WRITE_LOCKSPACE, payload, show(lockspace), data=max_hosts, data2=io_timeout)


def read_lockspace(lockspace: LockspaceLike, geometry: Geometry | None = None) -> Exchange[Formatted]:
    """What is on the disk; an empty name matches any, host id 0 counts as 1."""
    lockspace = as_lockspace(lockspace)
    payload = replace(lockspace, flags=_sized(lockspace.flags, geometry)).pack()
    header = yield from ask(Command.READ_LOCKSPACE, payload, show(lockspace))
    raw = yield from receive(Lockspace.layout.size, Command.READ_LOCKSPACE.name)
    return Formatted(Lockspace.unpack(raw), header.data2)


def write_resource(
    resource: ResourceLike,
    geometry: Geometry | None = None,
    num_hosts: int = 0,
    max_hosts: int = 0,
    clear: bool = False,
) -> Exchange[None]:
    """Format a lease, or with `clear` wipe it.

    The two numbers go where the reference's client puts them: `max_hosts` in data, from which the reference's
    daemon takes the number of hosts, `num_hosts` in data2, which it ignores (daemon.md 7.9).
    """
    resource = as_resource(resource)
    payload = replace(resource, flags=_sized(resource.flags, geometry)).pack_with_disks()
    flags = WriteResourceFlag.CLEAR if clear else WriteResourceFlag(0)
    yield from ask(Command.WRITE_RESOURCE, payload, show(resource), flags=flags, data=max_hosts, data2=num_hosts)


def read_resource(resource: ResourceLike, geometry: Geometry | None = None) -> Exchange[Resource]:
    """Names, version and sizes on the disk; empty names match any."""
    resource = as_resource(resource)
    payload = replace(resource, flags=_sized(resource.flags, geometry)).pack_with_disks()
    yield from ask(Command.READ_RESOURCE, payload, show(resource))
    raw = yield from receive(Resource.layout.size, Command.READ_RESOURCE.name)
    return replace(Resource.unpack(raw), disks=resource.disks)


def resource_owners(resource: ResourceLike, geometry: Geometry | None = None) -> Exchange[Owners]:
    """Who holds it by what is on the disk, no lockspace needed."""
    resource = as_resource(resource)
    command = Command.READ_RESOURCE_OWNERS
    payload = replace(resource, flags=_sized(resource.flags, geometry)).pack_with_disks()
    header = yield from ask(command, payload, show(resource))
    raw = yield from receive(Resource.layout.size, command.name)
    found = replace(Resource.unpack(raw), disks=resource.disks)
    return Owners(found, (yield from array(command, header, Host.unpack, Host.layout.size)))


# ----------------------------------------------------------------------------- leases of a registered process


def register() -> Exchange[None]:
    """Make the connection that of a client that may hold leases. There is no answer."""
    yield Send(request(Command.REGISTER))


def acquire(
    resources: Iterable[ResourceLike],
    pid: int | None = None,
    flags: AcquireFlag | int = 0,
    owner_name: Name = b"",
) -> Exchange[None]:
    """Acquire all or none of up to 8 leases, for the connection's own process or the registered `pid`."""
    wanted = [as_resource(resource) for resource in resources]
    _check_count(wanted)
    payload = b"".join(resource.pack_with_disks() for resource in wanted)
    payload += Options(as_name(owner_name)).pack()
    subject = " ".join(map(show, wanted))
    yield from ask(Command.ACQUIRE, payload, subject, flags=flags, data=len(wanted), data2=_target(pid))


def release(resources: Iterable[ResourceLike], pid: int | None = None) -> Exchange[None]:
    """Release up to 8 leases. Raises NotHeld if one is not held; the others are released all the same."""
    held = [as_resource(resource) for resource in resources]
    _check_count(held)
    yield from _release(held, pid, 0)


def release_all(pid: int | None = None) -> Exchange[None]:
    yield from _release([], pid, ReleaseFlag.ALL)


def rename(old: ResourceLike, new: ResourceLike, pid: int | None = None) -> Exchange[None]:
    """Release a lease and give it another name, in one write."""
    yield from _release([as_resource(old), as_resource(new)], pid, ReleaseFlag.RENAME)


def release_orphans(which: ResourceLike, pid: int | None = None) -> Exchange[int]:
    """Have an orphan released, or without a resource's name all of a lockspace. Returns how many there were.

    A registered target is needed, though it has nothing to do with them.
    """
    return (yield from _release([as_resource(which)], pid, ReleaseFlag.ORPHAN))


def _release(resources: list[Resource], pid: int | None, flags: int) -> Exchange[int]:
    payload = b"".join(resource.pack() for resource in resources)
    subject = " ".join(map(show, resources)) or "all"
    header = yield from ask(Command.RELEASE, payload, subject, flags=flags, data=len(resources), data2=_target(pid))
    return header.result


def inquire(pid: int | None = None) -> Exchange[list[Resource]]:
    """The leases held, with disks; `lver` of exclusive ones, flag SHARED on shared ones."""
    return parse_held((yield from inquire_state(pid)))


def parse_held(state: bytes) -> list[Resource]:
    """The leases of a state string, none in an empty one. Raises BadText."""
    return statestring.parse_state(state) if state else []


def inquire_state(pid: int | None = None) -> Exchange[bytes]:
    """The state string as the daemon gives it, without its NUL: what a migration hands to the other side."""
    yield Send(request(Command.INQUIRE, data2=_target(pid)))
    header = yield from reply(Command.INQUIRE)
    # whatever the result: a registered connection goes on, so nothing may stay unread
    text = yield from receive(header.payload, Command.INQUIRE.name)
    if header.result < 0:
        raise refusal(Command.INQUIRE, header.result, "own leases" if pid is None else f"pid {pid}")
    return text.split(b"\0", 1)[0]


def convert(resource: ResourceLike, pid: int | None = None, flags: AcquireFlag | int = 0) -> Exchange[None]:
    """Make a held lease shared or exclusive, as the resource's flag SHARED says. It stays held if that fails."""
    resource = as_resource(resource)
    yield from ask(Command.CONVERT, resource.pack(), show(resource), flags=flags, data2=_target(pid))


def killpath(path: str, args: bytes = b"", with_pid: bool = False) -> Exchange[None]:
    """The program that the daemon runs, as root, to end this process in recovery. An empty path: SIGTERM."""
    flags = KillpathFlag.PID if with_pid else KillpathFlag(0)
    yield from ask(Command.KILLPATH, pack_killpath(path, args), path, flags=flags, data2=OWN_CONNECTION)


def escape_arguments(args: Iterable[Name]) -> bytes:
    """Arguments for `killpath` as one string: spaces and backslashes escaped, joined by spaces."""
    raw = (as_name(arg).replace(b"\\", b"\\\\").replace(b" ", b"\\ ") for arg in args)
    return b" ".join(raw)


def restrict(flags: RestrictFlag) -> Exchange[None]:
    """Which signals this process must not get, and whether the connection is to be deaf from now on."""
    yield from ask(Command.RESTRICT, b"", "", flags=flags, data2=OWN_CONNECTION)


def _check_count(resources: list[Resource]) -> None:
    if len(resources) > MAX_RESOURCES:
        raise InvalidUse(reason=f"{len(resources)} resources in one call, at most {MAX_RESOURCES} are possible")


# ----------------------------------------------------------------------------- lock value blocks and requests


def set_lvb(resource: ResourceLike, data: bytes) -> Exchange[None]:
    """Set the lock value block of a lease held with LVB, up to a sector; its release writes it."""
    resource = as_resource(resource)
    yield from ask(Command.SET_LVB, resource.pack() + data, show(resource))


def get_lvb(resource: ResourceLike) -> Exchange[bytes]:
    """The lock value block, one sector, as it was read when the lease was acquired or set since."""
    resource = as_resource(resource)
    header = yield from ask(Command.GET_LVB, resource.pack(), show(resource))
    return (yield from receive(header.payload, Command.GET_LVB.name))


def request_resource(
    resource: ResourceLike, mode: RequestMode | int = RequestMode.GRACEFUL, next_lver: bool = False
) -> Exchange[None]:
    """Ask the host that holds a lease to give it up: kill path or signals, by `mode`.

    The resource's `lver` says for which version, with `next_lver` the one after the current.
    """
    resource = as_resource(resource)
    flags = RequestFlag.NEXT_LVER if next_lver else RequestFlag(0)
    yield from ask(Command.REQUEST, resource.pack_with_disks(), show(resource), flags=flags, data=mode)


def examine_lockspace(lockspace: LockspaceLike) -> Exchange[None]:
    """Look at the requests for all leases held in a lockspace, now."""
    lockspace = as_lockspace(lockspace)
    yield from ask(Command.EXAMINE_LOCKSPACE, lockspace.pack(), show(lockspace))


def examine_resource(resource: ResourceLike) -> Exchange[None]:
    resource = as_resource(resource)
    yield from ask(Command.EXAMINE_RESOURCE, resource.pack(), show(resource))


# ------------------------------------------------------------------------------------------------ host events


def register_events(lockspace: Name) -> Exchange[None]:
    """From now on the connection carries EventMessages, see `next_event`."""
    payload = Lockspace(as_name(lockspace)).pack() + HostEvent().pack()
    yield from ask(Command.REG_EVENT, payload, show(lockspace))


def next_event() -> Exchange[EventMessage]:
    """Waits for it. The same event comes again with each renewal of its sender while it is set there."""
    return EventMessage.unpack((yield from receive(EventMessage.layout.size, "events")))


#: marks an event connection, before it is closed, for END_EVENT to find
END_OF_EVENTS = (1).to_bytes(4, sys.byteorder)


def end_of_events() -> Exchange[None]:
    yield Send(END_OF_EVENTS)


def end_events(lockspace: Name) -> Exchange[None]:
    """On another connection: have the daemon forget event connections that are marked or closed."""
    yield from ask(Command.END_EVENT, Lockspace(as_name(lockspace)).pack(), show(lockspace))


def set_event(lockspace: Name, event: HostEvent, flags: EventFlag | int = 0) -> Exchange[None]:
    payload = Lockspace(as_name(lockspace)).pack() + event.pack()
    yield from ask(Command.SET_EVENT, payload, show(lockspace), flags=flags)


# ----------------------------------------------------------------------------------------- the resource index


def format_index(index: IndexLike, geometry: Geometry | None = None) -> Exchange[None]:
    index = as_index(index)
    payload = replace(index, flags=_sized(index.flags, geometry)).pack()
    yield from ask(Command.FORMAT_RINDEX, payload, show(index))


def rebuild_index(index: IndexLike, flags: IndexFlag | int = 0) -> Exchange[None]:
    """Write all entries anew from the leases that are on the disk."""
    index = as_index(index)
    yield from ask(Command.REBUILD_RINDEX, index.pack(), show(index), flags=flags)


def lookup(index: IndexLike, entry: EntryLike = b"", flags: IndexFlag | int = 0) -> Exchange[IndexEntry]:
    """By name, by offset, or both; by neither, the first free offset."""
    index, entry = as_index(index), as_entry(entry)
    # the reference's client announces 64 bytes more than it sends
    header = Header(Command.LOOKUP_RINDEX, flags, Header.layout.size + Index.layout.size + 128)
    yield Send(header.pack() + index.pack() + entry.pack())
    return (yield from _entry_reply(Command.LOOKUP_RINDEX, f"{show(index)} {show(entry.name)}"))


def update_index(index: IndexLike, entry: EntryLike, flags: IndexFlag | int) -> Exchange[IndexEntry]:
    """Add (name and offset) or remove (offset) an entry, by IndexFlag; no lease is written."""
    return (yield from _change(Command.UPDATE_RINDEX, index, entry, flags))


def create_resource(index: IndexLike, entry: EntryLike, num_hosts: int = 0, max_hosts: int = 0) -> Exchange[IndexEntry]:
    """Write a lease in the first free place. The entry returned has its offset. Numbers: `write_resource`."""
    return (yield from _change(Command.CREATE_RESOURCE, index, entry, 0, data=max_hosts, data2=num_hosts))


def delete_resource(index: IndexLike, entry: EntryLike) -> Exchange[IndexEntry]:
    """Clear a lease and its entry."""
    return (yield from _change(Command.DELETE_RESOURCE, index, entry, 0))


def _change(
    command: Command,
    index: IndexLike,
    entry: EntryLike,
    flags: int,
    *,
    data: int = 0,
    data2: int = 0,
) -> Exchange[IndexEntry]:
    index, entry = as_index(index), as_entry(entry)
    payload = index.pack() + entry.pack()
    yield Send(request(command, payload, flags=flags, data=data, data2=data2))
    return (yield from _entry_reply(command, f"{show(index)} {show(entry.name)}"))


def _entry_reply(command: Command, subject: str) -> Exchange[IndexEntry]:
    header = yield from reply(command)
    if header.result < 0:
        raise refusal(command, header.result, subject)
    return IndexEntry.unpack((yield from receive(IndexEntry.layout.size, command.name)))
