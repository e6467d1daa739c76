"""The client of the lease daemon for asyncio: leases.client with `await`.

    daemon = await aconnect()
    await daemon.add_lockspace("LS:1:/dev/vg/leases:0")
    async with await daemon.register() as me:
        await me.acquire("LS:vm1:/dev/vg/leases:1M")

Methods, arguments, results and errors are those of leases.client, where they are described. A command that is
cancelled has its connection closed; the daemon may carry it out all the same. That goes for a Registration too:
cancelling one of its commands ends it, and with it all its leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self, TypeVar

from leases.client import QUICK_ANSWER, acquire_flags, mode_flags, unless_joined, versioned
from leases.connection import name_of, socket_path, unreachable
from leases.daemon import exchange
from leases.daemon.conversation import Exchange, Receive, Send
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
    ConfigCommand,
    EventFlag,
    IndexFlag,
    RequestMode,
    RestrictFlag,
    StatusDepth,
)
from leases.daemon.results import DaemonGone, DaemonSilent
from leases.daemon.wire import EventMessage, Host, HostEvent, IndexEntry, Lockspace, Resource
from paxos.errors import InvalidUse
from paxos.geometry import Geometry

T = TypeVar("T")


async def aconnect(run_dir: str | os.PathLike[str] | None = None, *, timeout: float | None = None) -> AsyncClient:
    """See leases.client.connect."""
    client = AsyncClient(socket_path(run_dir), timeout)
    await client.version()
    return client


class AsyncConnection:
    """One connected stream; carries out one exchange after the other. See leases.connection.Connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: str) -> Self:
        try:
            return cls(*await asyncio.open_unix_connection(path))
        except OSError as error:
            raise unreachable(path, error) from None

    async def wait(self, command: Exchange[T], timeout: float | None) -> T:
        """For an exchange that is one Receive: may be late or cancelled, and be run again, nothing is lost."""
        try:
            async with asyncio.timeout(timeout):
                return await self._run(command)
        except TimeoutError:
            raise DaemonSilent(command=name_of(command), timeout=timeout) from None

    async def run(self, command: Exchange[T], timeout: float | None = None) -> T:
        """The exchange's result. Cancelled or late, it closes the connection, which is in the middle of it."""
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    return await self._run(command)
            except TimeoutError:
                self.close()
                raise DaemonSilent(command=name_of(command), timeout=timeout) from None
            except ConnectionError as error:
                raise DaemonGone(command=name_of(command), reason=str(error)) from None
            except asyncio.CancelledError:
                self.close()
                raise

    async def _run(self, command: Exchange[T]) -> T:
        try:
            step = next(command)
            while True:
                step = command.send(await self._step(step))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _step(self, step: Send | Receive) -> bytes:
        if isinstance(step, Send):
            self._writer.write(step.data)
            # an answer may lie there already, and tell more than that the other end is closed
            with contextlib.suppress(BrokenPipeError):
                await self._writer.drain()
            return b""
        try:
            return await self._reader.readexactly(step.length)
        except asyncio.IncompleteReadError as short:
            return short.partial

    def fileno(self) -> int:
        descriptor: int = self._writer.get_extra_info("socket").fileno()
        return descriptor

    @property
    def closed(self) -> bool:
        return self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()


class AsyncClient:
    """See leases.client.Client."""

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self.path = path
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"AsyncClient({self.path!r})"

    async def _once(self, command: Exchange[T], timeout: float | None) -> T:
        connection = await AsyncConnection.open(self.path)
        try:
            return await connection.run(command, timeout)
        finally:
            connection.close()

    async def _do(self, command: Exchange[T]) -> T:
        return await self._once(command, self._timeout)

    async def _look(self, command: Exchange[T]) -> T:
        return await self._once(command, self._timeout or QUICK_ANSWER)

    # --- the daemon ---

    async def version(self) -> Version:
        return await self._look(exchange.version())

    async def status(self, depth: StatusDepth = StatusDepth.ALL) -> Status:
        return await self._look(exchange.status(depth))

    async def log(self) -> str:
        return await self._look(exchange.log())

    async def shutdown(self, force: bool = False, wait: bool = True) -> None:
        await self._do(exchange.shutdown(force, wait))

    # --- lockspaces ---

    async def add_lockspace(self, lockspace: LockspaceLike, io_timeout: int = 0, wait: bool = True) -> None:
        await self._do(exchange.add_lockspace(lockspace, io_timeout, wait))

    async def inquire_lockspace(self, lockspace: LockspaceLike, wait: bool = False) -> bool | None:
        return await self._do(exchange.inquire_lockspace(lockspace, wait))

    async def remove_lockspace(self, lockspace: LockspaceLike, wait: bool = True, unused: bool = False) -> None:
        await self._do(exchange.remove_lockspace(lockspace, wait, unused))

    async def lockspaces(self) -> list[Lockspace]:
        return await self._look(exchange.lockspaces())

    async def hosts(self, lockspace: Name, host_id: int = 0) -> list[Host]:
        return await self._look(exchange.hosts(lockspace, host_id))

    async def host_status(self, lockspace: Name) -> list[Record]:
        return await self._look(exchange.host_status(lockspace))

    async def renewals(self, lockspace: Name) -> list[Record]:
        return await self._look(exchange.renewals(lockspace))

    async def configure(self, lockspace: Name, what: ConfigCommand) -> None:
        await self._look(exchange.configure(lockspace, what))

    # --- formatting and reading; no lockspace needed ---

    async def align(self, path: str) -> int:
        return await self._do(exchange.align(path))

    async def write_lockspace(
        self, lockspace: LockspaceLike, geometry: Geometry | None = None, io_timeout: int = 0
    ) -> None:
        await self._do(exchange.write_lockspace(lockspace, geometry, io_timeout))

    async def read_lockspace(self, lockspace: LockspaceLike, geometry: Geometry | None = None) -> Formatted:
        return await self._do(exchange.read_lockspace(lockspace, geometry))

    async def write_resource(
        self,
        resource: ResourceLike,
        geometry: Geometry | None = None,
        num_hosts: int = 0,
        clear: bool = False,
    ) -> None:
        await self._do(exchange.write_resource(resource, geometry, num_hosts, num_hosts, clear))

    async def read_resource(self, resource: ResourceLike, geometry: Geometry | None = None) -> Resource:
        return await self._do(exchange.read_resource(resource, geometry))

    async def resource_owners(self, resource: ResourceLike, geometry: Geometry | None = None) -> Owners:
        return await self._do(exchange.resource_owners(resource, geometry))

    # --- leases ---

    async def register(self) -> AsyncRegistration:
        connection = await AsyncConnection.open(self.path)
        await connection.run(exchange.register(), self._timeout or QUICK_ANSWER)
        return AsyncRegistration(connection, self._timeout)

    def process(self, pid: int) -> AsyncProcess:
        if not 0 < pid < 1 << 31:
            raise InvalidUse(reason=f"{pid} is no process id")
        return AsyncProcess(self, pid)

    @contextlib.asynccontextmanager
    async def lease(
        self, *resources: ResourceLike, shared: bool = False, nowait: bool = False
    ) -> AsyncIterator[AsyncRegistration]:
        async with await self.register() as registration:
            await registration.acquire(*resources, shared=shared, nowait=nowait)
            try:
                yield registration
            finally:
                await registration.release(*resources)

    async def set_lvb(self, resource: ResourceLike, data: bytes) -> None:
        await self._do(exchange.set_lvb(resource, data))

    async def get_lvb(self, resource: ResourceLike) -> bytes:
        return await self._do(exchange.get_lvb(resource))

    async def request(
        self, resource: ResourceLike, mode: RequestMode = RequestMode.GRACEFUL, lver: int | None = None
    ) -> None:
        wanted = versioned(as_resource(resource), lver)
        await self._do(exchange.request_resource(wanted, mode, next_lver=lver is None))

    async def examine_lockspace(self, lockspace: LockspaceLike) -> None:
        await self._do(exchange.examine_lockspace(lockspace))

    async def examine_resource(self, resource: ResourceLike) -> None:
        await self._do(exchange.examine_resource(resource))

    # --- events between hosts ---

    async def set_event(self, lockspace: Name, event: HostEvent, flags: EventFlag | int = 0) -> None:
        await self._do(exchange.set_event(lockspace, event, flags))

    async def events(self, lockspace: Name) -> AsyncEvents:
        connection = await AsyncConnection.open(self.path)
        try:
            await connection.run(exchange.register_events(lockspace), QUICK_ANSWER)
        except BaseException:
            connection.close()
            raise
        return AsyncEvents(self, lockspace, connection)

    # --- the resource index ---

    async def format_index(self, index: IndexLike, geometry: Geometry | None = None) -> None:
        await self._do(exchange.format_index(index, geometry))

    async def lookup(self, index: IndexLike, entry: EntryLike = b"", joined: bool = True) -> IndexEntry:
        return await self._do(exchange.lookup(index, entry, unless_joined(joined)))

    async def create_resource(self, index: IndexLike, name: EntryLike, num_hosts: int = 0) -> IndexEntry:
        entry = as_entry(name)
        made = await self._do(exchange.create_resource(index, entry, num_hosts, num_hosts))
        return IndexEntry(entry.name, made.offset, made.flags)

    async def delete_resource(self, index: IndexLike, name: EntryLike) -> None:
        await self._do(exchange.delete_resource(index, name))

    async def update_index(self, index: IndexLike, entry: EntryLike, remove: bool = False, joined: bool = True) -> None:
        what = IndexFlag.REMOVE if remove else IndexFlag.ADD
        await self._do(exchange.update_index(index, entry, what | unless_joined(joined)))

    async def rebuild_index(self, index: IndexLike, joined: bool = True) -> None:
        await self._do(exchange.rebuild_index(index, unless_joined(joined)))


class AsyncHolder:
    """See leases.client.Holder."""

    _pid: int | None

    async def _run(self, command: Exchange[T]) -> T:
        raise NotImplementedError

    async def acquire(
        self,
        *resources: ResourceLike,
        shared: bool = False,
        persistent: bool = False,
        lvb: bool = False,
        orphan: bool = False,
        nowait: bool = False,
        owner_name: Name = b"",
    ) -> None:
        wanted = [with_flags(resource, mode_flags(shared, persistent)) for resource in resources]
        flags = acquire_flags(lvb=lvb, orphan=orphan, nowait=nowait)
        await self._run(exchange.acquire(wanted, self._pid, flags, owner_name))

    async def release(self, *resources: ResourceLike) -> None:
        await self._run(exchange.release(resources, self._pid))

    async def release_all(self) -> None:
        await self._run(exchange.release_all(self._pid))

    async def rename(self, old: ResourceLike, new: ResourceLike) -> None:
        await self._run(exchange.rename(old, new, self._pid))

    async def release_orphans(self, lockspace: Name, resource: Name = b"") -> int:
        which = Resource(as_name(lockspace), as_name(resource))
        return await self._run(exchange.release_orphans(which, self._pid))

    async def convert(self, resource: ResourceLike, shared: bool = False, nowait: bool = False) -> None:
        wanted = with_flags(resource, mode_flags(shared))
        await self._run(exchange.convert(wanted, self._pid, acquire_flags(nowait=nowait)))

    async def held(self) -> list[Resource]:
        return await self._run(exchange.inquire(self._pid))

    async def state(self) -> bytes:
        return await self._run(exchange.inquire_state(self._pid))


class AsyncProcess(AsyncHolder):
    """See leases.client.Process."""

    def __init__(self, client: AsyncClient, pid: int) -> None:
        self._client = client
        self._pid = pid

    async def _run(self, command: Exchange[T]) -> T:
        return await self._client._do(command)


class AsyncRegistration(AsyncHolder):
    """See leases.client.Registration. Commands from several tasks take turns."""

    def __init__(self, connection: AsyncConnection, timeout: float | None) -> None:
        self._pid = None
        self._connection = connection
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _run(self, command: Exchange[T]) -> T:
        return await self._connection.run(command, self._timeout)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    async def killpath(self, path: str, *args: Name, with_pid: bool = False) -> None:
        await self._run(exchange.killpath(path, exchange.escape_arguments(args), with_pid))

    async def restrict(self, flags: RestrictFlag) -> None:
        await self._run(exchange.restrict(flags))


class AsyncEvents:
    """See leases.client.Events: `async for event in events`."""

    def __init__(self, client: AsyncClient, lockspace: Name, connection: AsyncConnection) -> None:
        self._client = client
        self._lockspace = lockspace
        self._connection = connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventMessage:
        return await self.next()

    async def next(self, timeout: float | None = None) -> EventMessage:
        return await self._connection.wait(exchange.next_event(), timeout)

    async def close(self) -> None:
        if self._connection.closed:
            return
        await self._connection.run(exchange.end_of_events(), QUICK_ANSWER)
        self._connection.close()
        await self._client._look(exchange.end_events(self._lockspace))
