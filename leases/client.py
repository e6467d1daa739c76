"""A client of the lease daemon (sanlock's, or our own): joins lockspaces, holds leases, asks and looks around.

    from leases.client import connect

    daemon = connect()
    daemon.add_lockspace("LS:1:/dev/vg/leases:0")
    with daemon.register() as me:
        me.acquire("LS:vm1:/dev/vg/leases:1M")
        ...                                     # held until released, or until this process ends
        me.release("LS:vm1:/dev/vg/leases:1M")

Each command is a connection of its own, except those of a Registration, whose connection is what the daemon
watches: when it closes, all its leases are released. Errors are the classes of paxos.errors and of
leases.daemon.results; `error.code` is the daemon's number. Lockspaces, resources and indexes are given as text
(leases.daemon.statestring) or as the structures of leases.daemon.wire, and come back as the latter.

Commands that only look something up must be answered within QUICK_ANSWER seconds. What waits for disks, other
hosts or processes may take as long as it takes, unless `connect(timeout=...)` sets a limit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

from leases.connection import Connection, socket_path
from leases.daemon import exchange
from leases.daemon.conversation import Exchange
from leases.daemon.exchange import Formatted, Owners, Record, Status, Version
from leases.daemon.naming import (
    EntryLike,
    IndexLike,
    LockspaceLike,
    Name,
    ResourceLike,
    as_entry,
    as_name,
    as_resource,
    with_flags,
)
from leases.daemon.numbers import (
    AcquireFlag,
    ConfigCommand,
    EventFlag,
    IndexFlag,
    RequestMode,
    ResourceFlag,
    RestrictFlag,
    StatusDepth,
)
from leases.daemon.results import DaemonSilent
from leases.daemon.wire import EventMessage, Host, HostEvent, IndexEntry, Lockspace, Resource
from paxos.errors import InvalidUse
from paxos.geometry import Geometry

T = TypeVar("T")

#: seconds in which the daemon must answer what it knows without asking a disk
QUICK_ANSWER = 60.0


def connect(run_dir: str | os.PathLike[str] | None = None, *, timeout: float | None = None) -> Client:
    """A client of the daemon in `run_dir` (default: $SANLOCK_RUN_DIR, else /run/sanlock), which must be there.

    `timeout` in seconds limits how long any single answer is waited for. Raises DaemonUnreachable.
    """
    client = Client(socket_path(run_dir), timeout)
    client.version()
    return client


class Client:
    """What one can ask of a daemon without being registered. Keeps no connection open."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self.path = path
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"Client({self.path!r})"

    def _do(self, command: Exchange[T]) -> T:
        with Connection(self.path) as connection:
            return connection.run(command, self._timeout)

    def _look(self, command: Exchange[T]) -> T:
        with Connection(self.path) as connection:
            return connection.run(command, self._timeout or QUICK_ANSWER)

    # --- the daemon ---

    def version(self) -> Version:
        return self._look(exchange.version())

    def status(self, depth: StatusDepth = StatusDepth.ALL) -> Status:
        """Everything it knows of itself, its clients, lockspaces and leases, down to `depth`."""
        return self._look(exchange.status(depth))

    def log(self) -> str:
        """The last MiB of its log."""
        return self._look(exchange.log())

    def shutdown(self, force: bool = False, wait: bool = True) -> None:
        """End it. With lockspaces present: TryAgain, or with `force` it leaves them, killing their users.

        Without `wait` there is no answer, and without `force` too it may have been ignored.
        """
        self._do(exchange.shutdown(force, wait))

    # --- lockspaces ---

    def add_lockspace(self, lockspace: LockspaceLike, io_timeout: int = 0, wait: bool = True) -> None:
        """Join. `io_timeout` in seconds, 0 for the daemon's default.

        Takes 2 io_timeouts when the host id is free, some 10 io_timeouts and the watchdog's 60 s after a crash.
        Without `wait`, `inquire_lockspace` tells how it goes. Raises HostIdBusy, AlreadyJoined, CannotOpen,
        LeaderMagicError and others.
        """
        self._do(exchange.add_lockspace(lockspace, io_timeout, wait))

    def inquire_lockspace(self, lockspace: LockspaceLike, wait: bool = False) -> bool | None:
        """True: joined. False: not. None: on its way in or out (never with `wait`). Host id 0 matches any."""
        return self._do(exchange.inquire_lockspace(lockspace, wait))

    def remove_lockspace(self, lockspace: LockspaceLike, wait: bool = True, unused: bool = False) -> None:
        """Leave. Whoever holds leases in it is killed; with `unused`, TryAgain is raised instead."""
        self._do(exchange.remove_lockspace(lockspace, wait, unused))

    def lockspaces(self) -> list[Lockspace]:
        """All lockspaces; LockspaceFlag in their flags tells which are being added or removed."""
        return self._look(exchange.lockspaces())

    def hosts(self, lockspace: Name, host_id: int = 0) -> list[Host]:
        """Who is in a joined lockspace. With `host_id` only that one, even if it is not.

        Raises NotJoined, and TryAgain until the first renewal after joining has been seen.
        """
        return self._look(exchange.hosts(lockspace, host_id))

    def host_status(self, lockspace: Name) -> list[Record]:
        """What the daemon knows of each host, and since when (seconds of its own clock)."""
        return self._look(exchange.host_status(lockspace))

    def renewals(self, lockspace: Name) -> list[Record]:
        """The latest renewals of the daemon's own host lease, oldest first."""
        return self._look(exchange.renewals(lockspace))

    def configure(self, lockspace: Name, what: ConfigCommand) -> None:
        """Say who uses a lockspace besides its leases: its watchdog is not disarmed while it is used."""
        self._look(exchange.configure(lockspace, what))

    # --- formatting and reading; no lockspace needed ---

    def align(self, path: str) -> int:
        """The align size in bytes that goes with the sector size of `path`."""
        return self._do(exchange.align(path))

    def write_lockspace(self, lockspace: LockspaceLike, geometry: Geometry | None = None, io_timeout: int = 0) -> None:
        """Format. Without `geometry` the device's sector size decides."""
        self._do(exchange.write_lockspace(lockspace, geometry, io_timeout))

    def read_lockspace(self, lockspace: LockspaceLike, geometry: Geometry | None = None) -> Formatted:
        """What its disk says; an empty name matches any, as in `:0:/dev/vg/leases:0`."""
        return self._do(exchange.read_lockspace(lockspace, geometry))

    def write_resource(
        self,
        resource: ResourceLike,
        geometry: Geometry | None = None,
        num_hosts: int = 0,
        clear: bool = False,
    ) -> None:
        """Format a lease for `num_hosts` hosts (0: as many as fit), or with `clear` wipe it."""
        # in both fields, since the reference's client and daemon disagree about which it is (daemon.md 7.9)
        self._do(exchange.write_resource(resource, geometry, num_hosts, num_hosts, clear))

    def read_resource(self, resource: ResourceLike, geometry: Geometry | None = None) -> Resource:
        """Names, version and sizes by its disk; empty names match any, as in `::/dev/vg/leases:1M`."""
        return self._do(exchange.read_resource(resource, geometry))

    def resource_owners(self, resource: ResourceLike, geometry: Geometry | None = None) -> Owners:
        """Who holds it, by its disk."""
        return self._do(exchange.resource_owners(resource, geometry))

    # --- leases ---

    def register(self) -> Registration:
        """Become a client that may hold leases, for as long as the returned connection is open."""
        return Registration(self.path, self._timeout)

    def process(self, pid: int) -> Process:
        """The leases of another registered process."""
        return Process(self, pid)

    @contextlib.contextmanager
    def lease(self, *resources: ResourceLike, shared: bool = False, nowait: bool = False) -> Iterator[Registration]:
        """Hold leases within a with block. See `Holder.acquire`."""
        with self.register() as registration:
            registration.acquire(*resources, shared=shared, nowait=nowait)
            try:
                yield registration
            finally:
                registration.release(*resources)

    def set_lvb(self, resource: ResourceLike, data: bytes) -> None:
        """Set the lock value block, up to a sector, of a lease held with `lvb`; written at its release."""
        self._do(exchange.set_lvb(resource, data))

    def get_lvb(self, resource: ResourceLike) -> bytes:
        """The lock value block, a sector, as read when the lease was acquired or set since."""
        return self._do(exchange.get_lvb(resource))

    def request(
        self, resource: ResourceLike, mode: RequestMode = RequestMode.GRACEFUL, lver: int | None = None
    ) -> None:
        """Ask the host that holds a lease to end its user: gracefully (kill path, SIGTERM) or by SIGKILL.

        `lver` is the version wanted, by default the one after the current. Raises RequestOld and others.
        """
        wanted = versioned(as_resource(resource), lver)
        self._do(exchange.request_resource(wanted, mode, next_lver=lver is None))

    def examine_lockspace(self, lockspace: LockspaceLike) -> None:
        """Have the daemon look at the requests for all leases it holds in a lockspace, now."""
        self._do(exchange.examine_lockspace(lockspace))

    def examine_resource(self, resource: ResourceLike) -> None:
        self._do(exchange.examine_resource(resource))

    # --- events between hosts ---

    def set_event(self, lockspace: Name, event: HostEvent, flags: EventFlag | int = 0) -> None:
        """Tell a host something with the next renewals. TryAgain while another event is being told."""
        self._do(exchange.set_event(lockspace, event, flags))

    def events(self, lockspace: Name) -> Events:
        """The events that other hosts set for this one, from now on."""
        return Events(self, lockspace)

    # --- the resource index ---

    def format_index(self, index: IndexLike, geometry: Geometry | None = None) -> None:
        self._do(exchange.format_index(index, geometry))

    def lookup(self, index: IndexLike, entry: EntryLike = b"", joined: bool = True) -> IndexEntry:
        """By name, by offset, or both; by neither, the first free offset. Raises NoSuchLease, IndexNameError.

        With `joined` the lockspace must be, which keeps the index from changing meanwhile.
        """
        return self._do(exchange.lookup(index, entry, unless_joined(joined)))

    def create_resource(self, index: IndexLike, name: EntryLike, num_hosts: int = 0) -> IndexEntry:
        """Write a lease in the first free place of the index, and return where."""
        entry = as_entry(name)
        made = self._do(exchange.create_resource(index, entry, num_hosts, num_hosts))
        return IndexEntry(entry.name, made.offset, made.flags)

    def delete_resource(self, index: IndexLike, name: EntryLike) -> None:
        self._do(exchange.delete_resource(index, name))

    def update_index(self, index: IndexLike, entry: EntryLike, remove: bool = False, joined: bool = True) -> None:
        """Add an entry, or remove it; no lease is written."""
        what = IndexFlag.REMOVE if remove else IndexFlag.ADD
        self._do(exchange.update_index(index, entry, what | unless_joined(joined)))

    def rebuild_index(self, index: IndexLike, joined: bool = True) -> None:
        """Write all entries anew from the leases on the disk."""
        self._do(exchange.rebuild_index(index, unless_joined(joined)))


def unless_joined(joined: bool) -> IndexFlag:
    """The flag for index commands that must not ask for a joined lockspace."""
    return IndexFlag(0) if joined else IndexFlag.NO_LOCKSPACE


def versioned(resource: Resource, lver: int | None) -> Resource:
    """A resource at a version; None: at none in particular."""
    if lver is None:
        return Resource(resource.lockspace, resource.name, resource.disks)
    return Resource(resource.lockspace, resource.name, resource.disks, int(ResourceFlag.LVER), lver)


def mode_flags(shared: bool, persistent: bool = False) -> int:
    return (ResourceFlag.SHARED if shared else 0) | (ResourceFlag.PERSISTENT if persistent else 0)


def acquire_flags(*, lvb: bool = False, orphan: bool = False, nowait: bool = False) -> int:
    chosen = {AcquireFlag.LVB: lvb, AcquireFlag.ORPHAN: orphan, AcquireFlag.OWNER_NOWAIT: nowait}
    return sum(flag for flag, wanted in chosen.items() if wanted)


class Holder:
    """A registered process and its leases."""

    _pid: int | None

    def _run(self, command: Exchange[T]) -> T:
        raise NotImplementedError

    def acquire(
        self,
        *resources: ResourceLike,
        shared: bool = False,
        persistent: bool = False,
        lvb: bool = False,
        orphan: bool = False,
        nowait: bool = False,
        owner_name: Name = b"",
    ) -> None:
        """Acquire all of up to 8 leases, or none. A lease's version, where given, must be that on the disk.

        `shared`: with other shared holders (also `:SH` in a lease's text). `persistent`: becomes an orphan when
        the process dies, instead of being released. `lvb`: use its lock value block. `orphan`: take over an
        orphan. `nowait`: raise OwnerMayBeDead where one would have to wait for a dead host's lease to end.
        `owner_name`: what the daemon's status calls this process.

        Raises LeaseHeld, LeaseOwned, SharedRetries, TryAgain, NotJoined, AlreadyHeld, LverMismatch,
        OrphanExists, CannotOpen, and BadRecord's classes.
        """
        wanted = [with_flags(resource, mode_flags(shared, persistent)) for resource in resources]
        flags = acquire_flags(lvb=lvb, orphan=orphan, nowait=nowait)
        self._run(exchange.acquire(wanted, self._pid, flags, owner_name))

    def release(self, *resources: ResourceLike) -> None:
        """Release leases. Raises NotHeld if one is not held; the others are released all the same."""
        self._run(exchange.release(resources, self._pid))

    def release_all(self) -> None:
        self._run(exchange.release_all(self._pid))

    def rename(self, old: ResourceLike, new: ResourceLike) -> None:
        """Release a lease and give it another name, in one write."""
        self._run(exchange.rename(old, new, self._pid))

    def release_orphans(self, lockspace: Name, resource: Name = b"") -> int:
        """Have orphans of any process released: all of a lockspace, or one. Returns how many there were."""
        which = Resource(as_name(lockspace), as_name(resource))
        return self._run(exchange.release_orphans(which, self._pid))

    def convert(self, resource: ResourceLike, shared: bool = False, nowait: bool = False) -> None:
        """Make a held lease exclusive, or shared. Whatever is raised, it is still held as before.

        Raises SharedHolders, ModeUnchanged, NotHeld.
        """
        wanted = with_flags(resource, mode_flags(shared))
        self._run(exchange.convert(wanted, self._pid, acquire_flags(nowait=nowait)))

    def held(self) -> list[Resource]:
        """The leases held, with `lver` of exclusive ones and the flag SHARED on others."""
        return self._run(exchange.inquire(self._pid))

    def state(self) -> bytes:
        """The same as one string, as `acquire` on another host would take it after a migration."""
        return self._run(exchange.inquire_state(self._pid))


class Process(Holder):
    """Another process, registered with the daemon, by its pid. UnknownClient is raised when it is not."""

    def __init__(self, client: Client, pid: int) -> None:
        if not 0 < pid < 1 << 31:
            raise InvalidUse(reason=f"{pid} is no process id")
        self._client = client
        self._pid = pid

    def _run(self, command: Exchange[T]) -> T:
        return self._client._do(command)

    @property
    def pid(self) -> int:
        assert self._pid is not None
        return self._pid


class Registration(Holder):
    """This process as a client that may hold leases: a connection, whose end releases all of them.

    The descriptor is inherited by a child if one passes it on; then the leases last until both are closed.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._pid = None
        self._timeout = timeout
        self._connection = Connection(path)
        self._connection.run(exchange.register(), timeout or QUICK_ANSWER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, command: Exchange[T]) -> T:
        return self._connection.run(command, self._timeout)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        """Give up all leases. The daemon releases them soon, not before this returns."""
        self._connection.close()

    def killpath(self, path: str, *args: Name, with_pid: bool = False) -> None:
        """The program that is to end this process in recovery. The daemon runs it as root, with `args`.

        `with_pid` appends the process id. An empty path goes back to SIGTERM.
        """
        self._run(exchange.killpath(path, exchange.escape_arguments(args), with_pid))

    def restrict(self, flags: RestrictFlag) -> None:
        """Never get SIGKILL or SIGTERM from the daemon; ALL: no more commands on this connection."""
        self._run(exchange.restrict(flags))


class Events:
    """Events that other hosts set for this one: an iterator that waits, and a context manager.

    The same event comes again with each renewal of its sender for as long as it is set there.
    """

    def __init__(self, client: Client, lockspace: Name) -> None:
        self._client = client
        self._lockspace = lockspace
        self._connection = Connection(client.path)
        try:
            self._connection.run(exchange.register_events(lockspace), QUICK_ANSWER)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EventMessage:
        return self.next()

    def next(self, timeout: float | None = None) -> EventMessage:
        """The next event. Raises DaemonSilent after `timeout` seconds; one may go on after that."""
        if not self._connection.readable(timeout):
            raise DaemonSilent(command="events", timeout=timeout)
        return self._connection.run(exchange.next_event(), QUICK_ANSWER)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        """Have the daemon forget this connection."""
        if self._connection.fileno() < 0:
            return
        self._connection.run(exchange.end_of_events(), QUICK_ANSWER)
        self._connection.close()
        self._client._look(exchange.end_events(self._lockspace))
