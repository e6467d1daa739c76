"""The daemon's clients: one for each connection, its buffers, and what it is registered for.

A connection is anonymous until REGISTER; then it stands for the process that connected, and its end, or the end of
that process, releases what it holds (daemon.md section 3).
"""

from __future__ import annotations

import heapq
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from socket import socket as Socket
from typing import TYPE_CHECKING

from leases.daemon.numbers import RestrictFlag
from leases.daemon.policy import Credentials, credentials_of, pidfd_of

if TYPE_CHECKING:
    from leases.daemon.call import Call
    from leases.daemon.tokens import Token
    from leases.daemon.wire import Header

NO_RESTRICTION = RestrictFlag(0)
#: slots that `status` shows for the kill path process and the listener
HELPER_SLOT, LISTENER_SLOT, FIRST_SLOT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class KillPath:
    """The program that stops a client in recovery."""

    argv: Sequence[str]
    with_pid: bool

    def command(self, pid: int) -> list[str]:
        return [*self.argv, str(pid)] if self.with_pid else list(self.argv)


@dataclass(slots=True, eq=False)
class Client:
    """One connection. `slot` is its number in status texts."""

    slot: int
    socket: socket.socket
    credentials: Credentials
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)
    #: bytes of a refused message that are still to come
    discard: int = 0
    #: of a message whose payload is not all here yet
    header: Header | None = None
    #: its own command that is being carried out
    call: Call | None = None
    #: a command about this client, its own or another's, that is being carried out
    active: Call | None = None
    #: close when everything is sent
    closing: bool = False
    #: nothing will come from it any more
    gone: bool = False
    closed: bool = False
    last_command: int = 0
    name: str = ""
    registered: bool = False
    pidfd: int = -1
    #: when the registered process began (clock ticks since boot)
    started: int = 0
    #: the other end, where an earlier daemon's client has no connection any more
    stand_in: Socket | None = None
    pid_dead: bool = False
    restricted: RestrictFlag = NO_RESTRICTION
    kill_path: KillPath | None = None
    kill_count: int = 0
    kill_last: int = 0
    tokens: list[Token] = field(default_factory=list)
    #: what epoll watches it for
    events: int = 0

    @property
    def pid(self) -> int:
        """The registered process, -1 while there is none."""
        return self.credentials.pid if self.registered else -1

    @property
    def deaf(self) -> bool:
        return bool(self.restricted & RestrictFlag.ALL)

    def register(self) -> None:
        """Raises OSError if the process is gone."""
        if self.pidfd < 0:
            self.pidfd = pidfd_of(self.socket, self.credentials.pid)
        self.registered = True
        self.name = str(self.credentials.pid)

    def close(self) -> None:
        self.closed = True
        self.socket.close()
        if self.stand_in is not None:
            self.stand_in.close()
        if self.pidfd >= 0:
            with suppress(OSError):
                os.close(self.pidfd)
            self.pidfd = -1


class ClientTable:
    """By slot, and by pid in the order in which they registered. Slots are used again, the lowest first."""

    def __init__(self) -> None:
        self._clients: dict[int, Client] = {}
        self._by_pid: dict[int, list[Client]] = {}
        self._free: list[int] = []
        self._next = FIRST_SLOT

    def __iter__(self) -> Iterator[Client]:
        """In the order of slots."""
        return iter([self._clients[slot] for slot in sorted(self._clients)])

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, connection: socket.socket) -> Client:
        if self._free:
            slot = heapq.heappop(self._free)
        else:
            slot, self._next = self._next, self._next + 1
        client = self._clients[slot] = Client(slot, connection, credentials_of(connection))
        return client

    def registered(self, client: Client) -> None:
        known = self._by_pid.setdefault(client.pid, [])
        if client not in known:
            known.append(client)

    def by_pid(self, pid: int) -> Client | None:
        """The first one that registered with that pid."""
        known = self._by_pid.get(pid)
        return known[0] if known else None

    def of_pid(self, pid: int) -> list[Client]:
        return list(self._by_pid.get(pid, ()))

    def remove(self, client: Client) -> None:
        if self._clients.pop(client.slot, None) is not None:
            heapq.heappush(self._free, client.slot)
        known = self._by_pid.get(client.credentials.pid, [])
        if client in known:
            known.remove(client)
            if not known:
                del self._by_pid[client.credentials.pid]

    def oldest_idle(self) -> Client | None:
        """A connection that holds nothing and does nothing, to make room for another."""
        idle = (c for c in self._clients.values() if not c.registered and c.call is None and not c.outbox)
        return next(idle, None)
