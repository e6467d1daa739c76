"""The Python module `sanlock` (3.8.5) over our client: the same functions, constants, exceptions and messages.

    from leases import sanlock

Names of lockspaces and resources are bytes, paths are text, bytes or path-like, disks are lists of
`(path, offset)`; see daemon.md section 16. Arguments are checked and converted as the original's C code does
it, down to integers that wrap. On purpose different, because the original's way does harm:

- a name that fills its 48 bytes is returned as it is, without bytes of what lies behind it in memory;
- a path too long for the protocol is an error in lockspace functions too, instead of being cut;
- a kill path, or its arguments, of 127 bytes are too long, instead of losing the last byte;
- a path from the daemon that is not UTF-8 is returned as os.fsdecode would, instead of UnicodeDecodeError;
- a state string or a reply that makes no sense is an error, instead of undefined.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, TypeVar

from leases import c_arguments
from leases.c_arguments import Disks, Path
from leases.connection import Connection, socket_path
from leases.daemon import exchange
from leases.daemon.conversation import Exchange, Send
from leases.daemon.numbers import (
    KILLPATH_FIELD,
    MAX_DISKS,
    MAX_LVB,
    PATH_LENGTH,
    AcquireFlag,
    Command,
    EventFlag,
    HostState,
    LockspaceFlag,
    RequestMode,
    ResourceFlag,
)
from leases.daemon.results import SANLOCK_RESULTS
from leases.daemon.statestring import BadText
from leases.daemon.wire import BadMessage, Disk, EventMessage, Host, HostEvent, Lockspace, Resource
from leases.daemon.wire import request as wire_request
from paxos.errors import LeaseholdError
from paxos.geometry import ALIGN_FLAGS, DEFAULT_ALIGN, SECTOR_FLAGS

LSFLAG_ADD = int(LockspaceFlag.ADD)
LSFLAG_REM = int(LockspaceFlag.REM)
REQ_FORCE = int(RequestMode.FORCE)
REQ_GRACEFUL = int(RequestMode.GRACEFUL)
HOST_UNKNOWN = int(HostState.UNKNOWN)
HOST_FREE = int(HostState.FREE)
HOST_LIVE = int(HostState.LIVE)
HOST_FAIL = int(HostState.FAIL)
HOST_DEAD = int(HostState.DEAD)
SETEV_CUR_GENERATION = int(EventFlag.CUR_GENERATION)
SETEV_CLEAR_HOSTID = int(EventFlag.CLEAR_HOSTID)
SETEV_CLEAR_EVENT = int(EventFlag.CLEAR_EVENT)
SETEV_REPLACE_EVENT = int(EventFlag.REPLACE_EVENT)
SETEV_ALL_HOSTS = int(EventFlag.ALL_HOSTS)
RES_LVER = int(ResourceFlag.LVER)
RES_SHARED = int(ResourceFlag.SHARED)
SECTOR_SIZE = tuple(SECTOR_FLAGS)
ALIGN_SIZE = tuple(ALIGN_FLAGS)

T = TypeVar("T")

_UNKNOWN = "Unknown error"
#: results that the original has no text for
_UNTOLD = {-230, -231, -240, -274, -275, -276, -277, -278}
_BLKSSZGET = 0x1268


class SanlockException(Exception):
    """`args` is (errno, message, name of the errno); sanlock's own codes are negative, others positive."""

    @property
    def errno(self) -> int:
        number: int = self.args[0]
        return number


SanlockException.__module__ = "sanlock"


class LockspaceDict(TypedDict):
    lockspace: bytes
    host_id: int
    path: str
    offset: int
    flags: int


class HostDict(TypedDict):
    host_id: int
    generation: int
    timestamp: int
    io_timeout: int
    flags: int


class ResourceDict(TypedDict):
    lockspace: bytes
    resource: bytes
    flags: int
    version: int
    disks: list[tuple[str, int]]


# --------------------------------------------------------------------------------------------------- results


def _exception(result: int, message: str) -> SanlockException:
    if -200 < result < 0:
        return SanlockException(-result, message, os.strerror(-result))
    text = _UNKNOWN if result in _UNTOLD else SANLOCK_RESULTS.get(result, ("", _UNKNOWN))[1]
    return SanlockException(result, message, text)


@contextmanager
def _told(message: str) -> Iterator[None]:
    """Turn the errors of an exchange, and of the system, into a SanlockException with this message."""
    try:
        yield
    except (BadMessage, BadText):
        raise _exception(-errno.EPROTO, message) from None
    except LeaseholdError as error:
        ended = error.code == -errno.ENOTCONN
        raise _exception(-errno.EPERM if ended else error.code, message) from None
    except OSError as error:
        raise _exception(-(error.errno or errno.EIO), message) from None


def _ask(message: str, command: Exchange[T]) -> T:
    """Carry out a command on a connection of its own."""
    with _told(message), Connection(socket_path()) as connection:
        return connection.run(command)


def _ask_on(fd: int, message: str, command: Exchange[T]) -> T:
    """Carry out a command on a registered connection, whose descriptor stays open."""
    with _told(message), _socket_of(fd) as registered:
        try:
            step = next(command)
            while True:
                if isinstance(step, Send):
                    registered.sendall(step.data)
                    step = command.send(b"")
                else:
                    step = command.send(_receive(registered, step.length))
        except StopIteration as end:
            result: T = end.value
            return result


def _ask_target(slkfd: int, pid: int, message: str, command: Exchange[T]) -> T:
    return _ask(message, command) if slkfd == -1 else _ask_on(slkfd, message, command)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (part := connection.recv(length - len(data))):
        data += part
    return data


def _socket_of(fd: int) -> socket.socket:
    """A socket object for a descriptor that stays open when the object is closed."""
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


# ------------------------------------------------------------------------------------------------- arguments


def _lockspace_path(value: Path, missing: str) -> str:
    """`missing` is the message of the error, which is that of a device that does not exist."""
    raw = c_arguments.path(value)
    if len(raw) >= PATH_LENGTH:
        raise _exception(-errno.ENODEV, missing)
    return c_arguments.text(raw)


def _version(value: Any) -> int:
    number = value & 0xFFFFFFFFFFFFFFFF if isinstance(value, int) else -1
    if number in (-1, 0xFFFFFFFFFFFFFFFF):
        raise SanlockException(errno.EINVAL, "Unable to convert the version value", _UNKNOWN)
    return int(number)


def _check_writable(disks: Sequence[Disk], message: str) -> None:
    """What the original's client library refuses by itself."""
    if not 0 < len(disks) <= MAX_DISKS or not disks[0].path:
        raise _exception(-errno.EINVAL, message)


# ------------------------------------------------------------------------------------- formatting and reading


def get_alignment(path: Path) -> int:
    """The align size in bytes that goes with the sector size of `path`. Asks no daemon."""
    message = "Unable to get device alignment"
    with _told(message):
        fd = os.open(c_arguments.path(path), os.O_RDWR | os.O_DIRECT | os.O_SYNC | os.O_CLOEXEC)
        try:
            return DEFAULT_ALIGN[_sector_size(fd)]
        except KeyError:
            raise _exception(-errno.EINVAL, message) from None
        finally:
            os.close(fd)


def _sector_size(fd: int) -> int:
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return 512
    from fcntl import ioctl  # only here: most programs never ask

    answer = bytearray(4)
    ioctl(fd, _BLKSSZGET, answer)
    return int.from_bytes(answer, "little")


def write_lockspace(
    lockspace: bytes,
    path: Path,
    offset: int = 0,
    max_hosts: int = 0,
    iotimeout: int = 0,
    align: int = 1048576,
    sector: int = 512,
) -> None:
    """Format a lockspace. `iotimeout` in seconds, 0 for the daemon's default."""
    message = "Sanlock lockspace write failure"
    name, raw_path, offset = c_arguments.name(lockspace), c_arguments.path(path), c_arguments.u64(offset, 3)
    max_hosts, iotimeout, align, sector = (
        c_arguments.i32(max_hosts),
        c_arguments.u32(iotimeout),
        c_arguments.long(align),
        c_arguments.i32(sector),
    )
    flags = c_arguments.size_flags(align, sector)
    disk = Disk(_lockspace_path(raw_path, message), offset)
    _check_writable([disk], message)
    _ask(
        message,
        exchange.write_lockspace(Lockspace(name, 0, disk, flags), None, iotimeout, max_hosts),
    )


def read_lockspace(path: Path, offset: int = 0, align: int = 1048576, sector: int = 512) -> dict[str, bytes | int]:
    """{lockspace: name, iotimeout: seconds} of a formatted lockspace."""
    message = "Sanlock lockspace read failure"
    raw_path, offset, align, sector = (
        c_arguments.path(path),
        c_arguments.u64(offset, 2),
        c_arguments.long(align),
        c_arguments.i32(sector),
    )
    flags = c_arguments.size_flags(align, sector)
    disk = Disk(_lockspace_path(raw_path, message), offset)
    _check_writable([disk], message)
    found = _ask(message, exchange.read_lockspace(Lockspace(b"", 0, disk, flags)))
    return {"lockspace": found.lockspace.name, "iotimeout": found.io_timeout}


def write_resource(
    lockspace: bytes,
    resource: bytes,
    disks: Disks,
    max_hosts: int = 0,
    num_hosts: int = 0,
    clear: bool = False,
    align: int = 1048576,
    sector: int = 512,
) -> None:
    """Format a lease, or with `clear` wipe it. The daemon takes its number of hosts from `max_hosts`."""
    message = "Sanlock resource write failure"
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    max_hosts, num_hosts, wipe = c_arguments.i32(max_hosts), c_arguments.i32(num_hosts), c_arguments.i32(clear)
    align, sector = c_arguments.long(align), c_arguments.i32(sector)
    flags = c_arguments.size_flags(align, sector)
    places = c_arguments.disks(listed)
    _check_writable(places, message)
    wanted = Resource(*names, places, flags)
    _ask(message, exchange.write_resource(wanted, None, num_hosts, max_hosts, bool(wipe)))


def read_resource(path: Path, offset: int = 0, align: int = 1048576, sector: int = 512) -> dict[str, bytes | int]:
    """{lockspace, resource, version} of a formatted lease."""
    message = "Sanlock resource read failure"
    raw_path, offset, align, sector = (
        c_arguments.path(path),
        c_arguments.u64(offset, 2),
        c_arguments.long(align),
        c_arguments.i32(sector),
    )
    flags = c_arguments.size_flags(align, sector)
    disk = Disk(c_arguments.disk_path(raw_path), offset)
    _check_writable([disk], message)
    found = _ask(message, exchange.read_resource(Resource(b"", b"", (disk,), flags)))
    return {"lockspace": found.lockspace, "resource": found.name, "version": found.lver}


def read_resource_owners(
    lockspace: bytes, resource: bytes, disks: Disks, align: int = 1048576, sector: int = 512
) -> list[HostDict]:
    """Who holds a lease by what is on the disk; io_timeout and flags are 0."""
    message = "Unable to read resource owners"
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    align, sector = c_arguments.long(align), c_arguments.i32(sector)
    flags = c_arguments.size_flags(align, sector)
    places = c_arguments.disks(listed)
    _check_writable(places, message)
    found = _ask(message, exchange.resource_owners(Resource(*names, places, flags)))
    return [_host(host) for host in found.hosts]


def _host(host: Host) -> HostDict:
    return {
        "host_id": host.host_id,
        "generation": host.generation,
        "timestamp": host.timestamp,
        "io_timeout": host.io_timeout,
        "flags": host.flags,
    }


# ------------------------------------------------------------------------------------------------ lockspaces


def add_lockspace(
    lockspace: bytes, host_id: int, path: Path, offset: int = 0, iotimeout: int = 0, wait: bool = True
) -> None:
    """Join a lockspace; without `wait`, `inq_lockspace` tells how it goes."""
    message = "Sanlock lockspace add failure"
    asked, iotimeout, waits = (
        _asked(lockspace, host_id, path, offset, message),
        c_arguments.u32(iotimeout),
        c_arguments.i32(wait),
    )
    _ask(message, exchange.add_lockspace(asked, iotimeout, bool(waits)))


def inq_lockspace(lockspace: bytes, host_id: int, path: Path, offset: int = 0, wait: bool = False) -> bool | None:
    """True: joined. False: not. None: on its way in or out."""
    message = "Sanlock lockspace inquire failure"
    asked, waits = _asked(lockspace, host_id, path, offset, message), c_arguments.i32(wait)
    return _ask(message, exchange.inquire_lockspace(asked, bool(waits)))


def rem_lockspace(
    lockspace: bytes,
    host_id: int,
    path: Path,
    offset: int = 0,
    wait: bool = True,
    unused: bool = False,
) -> None:
    """Leave a lockspace; its users are killed, or with `unused` it is refused if there are any."""
    message = "Sanlock lockspace remove failure"
    asked, waits, spares = (
        _asked(lockspace, host_id, path, offset, message),
        c_arguments.i32(wait),
        c_arguments.i32(unused),
    )
    _ask(message, exchange.remove_lockspace(asked, bool(waits), bool(spares)))


def _asked(lockspace: bytes, host_id: int, path: Path, offset: int, message: str) -> Lockspace:
    name, host_id, raw_path, offset = (
        c_arguments.name(lockspace),
        c_arguments.u64(host_id, 2),
        c_arguments.path(path),
        c_arguments.u64(offset, 4),
    )
    return Lockspace(name, host_id, Disk(_lockspace_path(raw_path, message), offset))


def get_lockspaces() -> list[LockspaceDict]:
    """All lockspaces of the daemon; flags LSFLAG_ADD, LSFLAG_REM."""
    return [
        {
            "lockspace": found.name,
            "host_id": found.host_id,
            "path": found.disk.path,
            "offset": found.disk.offset,
            "flags": found.flags,
        }
        for found in _ask("Sanlock get lockspaces failure", exchange.lockspaces())
    ]


def get_hosts(lockspace: bytes, host_id: int = 0) -> list[HostDict]:
    """The hosts of a lockspace, or one of them; flags HOST_LIVE and so on."""
    name, host_id = c_arguments.name(lockspace), c_arguments.u64(host_id, 2)
    return [_host(host) for host in _ask("Sanlock get hosts failure", exchange.hosts(name, host_id))]


# ----------------------------------------------------------------------------------------------------- leases


def register() -> int:
    """A connection to the daemon, as a descriptor, on which this process may hold leases until it closes."""
    with _told("Sanlock registration failed"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(socket_path())
            connection.sendall(wire_request(Command.REGISTER))
        except OSError:
            connection.close()
            raise
        # a program that replaces this one keeps its leases
        connection.set_inheritable(True)
        return connection.detach()


def acquire(
    lockspace: bytes,
    resource: bytes,
    disks: Disks,
    slkfd: int = -1,
    pid: int = -1,
    shared: bool = False,
    lvb: bool = False,
    version: int | None = None,
) -> None:
    """Acquire a lease for the registered connection `slkfd`, or for the registered process `pid`."""
    message = "Sanlock resource not acquired"
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    slkfd, pid, sharing, with_lvb = (
        c_arguments.i32(slkfd),
        c_arguments.i32(pid),
        c_arguments.i32(shared),
        c_arguments.i32(lvb),
    )
    if slkfd == -1 and pid == -1:
        raise SanlockException(errno.EINVAL, "Invalid slkfd and pid values", _UNKNOWN)
    places = c_arguments.disks(listed)
    flags, lver = RES_SHARED if sharing else 0, 0
    if version is not None:
        flags, lver = flags | RES_LVER, _version(version)
    if len(places) > MAX_DISKS:
        raise _exception(-errno.EINVAL, message)
    wanted = Resource(*names, places, flags, lver)
    how = AcquireFlag.LVB if with_lvb else 0
    _ask_target(slkfd, pid, message, exchange.acquire([wanted], _target(slkfd, pid), how))


def release(lockspace: bytes, resource: bytes, disks: Disks, slkfd: int = -1, pid: int = -1) -> None:
    """Release a lease of the registered connection `slkfd`, or of the registered process `pid`."""
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    slkfd, pid = c_arguments.i32(slkfd), c_arguments.i32(pid)
    held = Resource(*names, c_arguments.disks(listed))
    command = exchange.release([held], _target(slkfd, pid))
    _ask_target(slkfd, pid, "Sanlock resource not released", command)


def inquire(slkfd: int = -1, pid: int = -1) -> list[ResourceDict]:
    """The leases of the registered connection `slkfd`, or of the registered process `pid`."""
    slkfd, pid = c_arguments.i32(slkfd), c_arguments.i32(pid)
    if slkfd == -1 and pid == -1:
        raise _exception(-errno.EINVAL, "Invalid slkfd and pid values")
    state = _ask_target(slkfd, pid, "Inquire error", exchange.inquire_state(_target(slkfd, pid)))
    with _told("Error parsing inquire state string"):
        held = exchange.parse_held(state)
    return [
        {
            "lockspace": resource.lockspace,
            "resource": resource.name,
            "flags": resource.flags,
            "version": resource.lver,
            "disks": [(disk.path, disk.offset) for disk in resource.disks],
        }
        for resource in held
    ]


def _target(slkfd: int, pid: int) -> int | None:
    """None for the connection itself; any number counts as a pid, it is the daemon that knows them."""
    return None if slkfd != -1 or pid == -1 else pid


def request(
    lockspace: bytes,
    resource: bytes,
    disks: Disks,
    action: int = REQ_GRACEFUL,
    version: int | None = None,
) -> None:
    """Ask the host that holds a lease to give it up; `version` None means the one after the current."""
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    action = c_arguments.i32(action)
    places = c_arguments.disks(listed)
    flags, lver = 0, 0
    if version is not None:
        flags, lver = RES_LVER, _version(version)
    wanted = Resource(*names, places, flags, lver)
    command = exchange.request_resource(wanted, action, next_lver=version is None)
    _ask("Sanlock request not submitted", command)


def killpath(path: Path, args: list[Path], slkfd: int = -1) -> None:
    """The program that the daemon runs to end this process in recovery."""
    raw_path = c_arguments.path(path)
    given = c_arguments.list_at(args, 2)
    slkfd = c_arguments.i32(slkfd)
    if len(raw_path) >= KILLPATH_FIELD - 1:
        raise SanlockException(errno.EINVAL, "Killpath path argument too long", _UNKNOWN)
    # the original puts a space between two arguments only if there is something before it
    joined = exchange.escape_arguments([c_arguments.path(arg) for arg in given]).lstrip(b" ")
    if len(joined) >= KILLPATH_FIELD - 1:
        raise SanlockException(errno.EINVAL, "Killpath arguments are too long", _UNKNOWN)
    _ask_on(slkfd, "Killpath script not configured", exchange.killpath(c_arguments.text(raw_path), joined))


def set_lvb(lockspace: bytes, resource: bytes, disks: Disks, data: bytes) -> None:
    """Set the lock value block of a lease that this host holds with `lvb`."""
    message = "Unable to set lvb"
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    if not isinstance(data, bytes):
        raise TypeError(f"Argument type is not bytes: {data!r}")
    held = Resource(*names, c_arguments.disks(listed))
    if not data:
        raise _exception(-errno.EINVAL, message)
    _ask(message, exchange.set_lvb(held, data))


def get_lvb(lockspace: bytes, resource: bytes, disks: Disks, size: int) -> bytes:
    """The first `size` bytes of the lock value block, zeros beyond its end."""
    names, listed = (c_arguments.name(lockspace), c_arguments.name(resource)), c_arguments.list_at(disks, 3)
    wanted = c_arguments.u32(size)
    if not 0 < wanted <= MAX_LVB:
        signed = wanted - (1 << 32) if wanted & 0x80000000 else wanted
        raise ValueError(f"Invalid size {signed}, must be in range: 0 < size <= {MAX_LVB}")
    held = Resource(*names, c_arguments.disks(listed))
    return _ask("Unable to get lvb", exchange.get_lvb(held))[:wanted].ljust(wanted, b"\0")


# ----------------------------------------------------------------------------------------------------- events


def reg_event(lockspace: bytes) -> int:
    """A descriptor that becomes readable when another host sets an event for this one."""
    message = "Unable to register event fd"
    name = c_arguments.name(lockspace)
    with _told(message):
        connection = Connection(socket_path())
        try:
            connection.run(exchange.register_events(name))
        except BaseException:
            connection.close()
            raise
        return connection.detach()


def get_event(fd: int) -> list[dict[str, int]]:
    """The events that have come, without waiting."""
    fd = c_arguments.i32(fd)
    events: list[dict[str, int]] = []
    with _told("Unable to get events"), _socket_of(fd) as connection:
        size = EventMessage.layout.size
        while True:
            try:
                raw = connection.recv(size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return events
            if len(raw) < size:
                raise OSError(errno.EPERM, "end of events")
            events.append(_event(EventMessage.unpack(raw)))


def _event(message: EventMessage) -> dict[str, int]:
    return {
        "from_host_id": message.from_host_id,
        "from_generation": message.from_generation,
        "host_id": message.event.host_id,
        "generation": message.event.generation,
        "event": message.event.event,
        "data": message.event.data,
    }


def end_event(fd: int, lockspace: bytes) -> None:
    """Close an event descriptor and have the daemon forget it."""
    message = "Unable to unregister event fd"
    fd, name = c_arguments.i32(fd), c_arguments.name(lockspace)
    try:
        with _socket_of(fd) as connection:
            connection.sendall(exchange.END_OF_EVENTS)
    except OSError:
        raise _exception(-errno.EALREADY, message) from None
    os.close(fd)
    _ask(message, exchange.end_events(name))


def set_event(lockspace: bytes, host_id: int, generation: int, event: int, data: int = 0, flags: int = 0) -> None:
    """Tell a host something with this host's next renewals."""
    name = c_arguments.name(lockspace)
    told = HostEvent(
        c_arguments.u64(host_id, 2), c_arguments.u64(generation, 3), c_arguments.u64(event, 4), c_arguments.u64(data, 5)
    )
    flags = c_arguments.u32(flags)
    _ask("Unable to set event", exchange.set_event(name, told, flags))
