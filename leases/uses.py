"""Who on this host uses leases of a lockspace: other processes that were named, else this process itself.

The guardian watchdog kills exactly these when the lockspace expires, so it is told before a use begins and after it
ended. Other watchdogs take the whole machine, or nobody. This process is never sent SIGTERM on account of its own
leases: it is told by `Lease.lost`, and stopped by force if that does not help in time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from leases.keeper.recovery import Users
from leases.keeper.watchdog import WatchdogConnection, boot_time
from leases.lease import Lease
from paxos.errors import WatchdogUnavailable

#: seconds after its last use of a lease until this process counts as no user any more
_LINGER = 1.0


class Uses:
    """Of one membership. `users`: the other processes."""

    def __init__(self, connection: WatchdogConnection) -> None:
        self.users = Users()
        self._connection = connection
        #: how many leases this process uses itself, since when none, and whether the watchdog knows it as a user
        self._own = 0
        self._last_own = 0.0
        self._told = False
        self._lock = threading.Lock()

    def begin(self, lease: Lease, holder: int | None) -> None:
        """A lease is used from now on, by process `holder` or by this one. Raises WatchdogUnavailable, InvalidUse."""
        if holder is None:
            self._add_own()
        else:
            self._add_process(lease, holder)

    def hand_over(
        self,
        lease: Lease,
        pid: int,
        *,
        group: bool = False,
        kill_path: Sequence[str] = (),
        never_kill: bool = False,
        never_terminate: bool = False,
    ) -> None:
        """See Lease.add_holder."""
        ours = not lease.pids
        self._add_process(
            lease, pid, group=group, kill_path=kill_path, never_kill=never_kill, never_terminate=never_terminate
        )
        if ours:
            self._remove_own()

    def end(self, lease: Lease) -> None:
        """A lease is not used any more."""
        if not lease.pids and not lease.lost.acknowledged:
            self._remove_own()
        for pid in lease.pids:
            if self.users.remove(pid):
                with suppress(WatchdogUnavailable):
                    self._connection.unhold(pid)

    def acknowledged(self, lease: Lease) -> None:
        """This process does not use the lost lease any more."""
        if not lease.released and not lease.pids:
            self._remove_own()

    def _add_process(
        self,
        lease: Lease,
        pid: int,
        *,
        group: bool = False,
        kill_path: Sequence[str] = (),
        never_kill: bool = False,
        never_terminate: bool = False,
    ) -> None:
        self.users.add(pid, group=group, kill_path=kill_path, never_kill=never_kill, never_terminate=never_terminate)
        try:
            self._connection.hold(pid, group=group, terminate=not kill_path and not never_terminate)
        except BaseException:
            self.users.remove(pid)
            raise
        lease.pids.append(pid)

    def _add_own(self) -> None:
        with self._lock:
            if not self._told:
                self._connection.hold(os.getpid(), terminate=False)
                self._told = True
            self._own += 1

    def _remove_own(self) -> None:
        with self._lock:
            self._own -= 1
            self._last_own = boot_time()

    def tidy(self) -> None:
        """Tell the watchdog that this process uses nothing any more.

        Not at once: who takes one lease after the other need not ask the guardian each time.
        """
        with self._lock:
            if self._told and self._own == 0 and boot_time() - self._last_own >= _LINGER:
                with suppress(WatchdogUnavailable):
                    self._connection.unhold(os.getpid())
                self._told = False
