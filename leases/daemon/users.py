"""The clients that use leases of one lockspace, as its recovery sees them.

Asked by the guard of the lockspace, which is another thread than the loop's: everything here is read once, and
nothing waits.

A client counts as gone as soon as its connection is, as with the reference: closing it is how a process says that it
has stopped. Kill paths are run by the daemon's process for them; signals go to the process that registered, by its
descriptor, never to whoever has its number by now.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from leases.daemon.client_facts import note
from leases.daemon.clients import Client
from leases.daemon.clock import boot_time
from leases.daemon.spaces import Space
from leases.keeper.decisions import Holder, Stop
from leases.keeper.recovery import User, Users
from paxos.errors import InvalidUse
from paxos.timing import MAX_KILLS

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon


class ClientUsers(Users):
    """Of one lockspace."""

    def __init__(self, daemon: Daemon, space: Space) -> None:
        super().__init__()
        self._daemon = daemon
        self._space = space
        # stands for whoever said that the lockspace is used: no signal reaches it, and it is not gone
        holder = Holder(0, has_kill_path=True, never_kill=True, signals=MAX_KILLS, kill_path_begun=True)
        self._somebody = User(holder, -1)

    def add(
        self,
        pid: int,
        *,
        group: bool = False,
        kill_path: Sequence[str] = (),
        never_kill: bool = False,
        never_terminate: bool = False,
    ) -> None:
        """A client uses one lease more. What else is given is ignored: the client itself says how it is stopped."""
        client = self._client(pid)
        if client is None or client.pidfd < 0:
            raise InvalidUse(reason=f"process {pid} is not registered any more")
        with self._lock:
            known = self._users.get(pid)
            if known is None or known.is_gone():
                self._users[pid] = User(Holder(pid), os.dup(client.pidfd))
            else:
                known.uses += 1
        note(self, client)

    def alive(self) -> list[User]:
        found = [user for user in super().alive() if self._client(user.pid) is not None]
        return [*found, self._somebody] if self._space.in_use else found

    def stop(self, pid: int, how: Stop) -> None:
        user, client = self.get(pid), self._client(pid)
        if user is None or client is None:
            return
        client.kill_count += 1
        client.kill_last = int(boot_time())
        if how is Stop.KILL_PATH and client.kill_path is not None:
            self._daemon.run_kill_path(client, client.kill_path.command(pid))
        else:
            super().stop(pid, Stop.TERMINATE if how is Stop.KILL_PATH else how)

    def _client(self, pid: int) -> Client | None:
        return next((client for client in self._daemon.clients.of_pid(pid) if not client.gone), None)
