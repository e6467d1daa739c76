"""`leasehold run --lock-manager KIND --disk PATH…`: a command runs while a lock manager holds the locks of its disks.

The order is that of a command under a lease: forked first, then the locks, then the guard, then the command.
"""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from contextlib import suppress
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from leases.cli import exit_codes
from leases.cli.child import Child
from leases.cli.failure import one_line
from leases.cli.notices import say
from leases.cli.signals import Signals
from leases.cli.supervision import Supervision
from leases.keeper.watchdog import Watchdog, open_watchdog
from leases.manager import Access, GuestLocks, Loss, Owner, Resource, manager_class, open_manager
from paxos.errors import AlreadyHeld, HeldElsewhere, LeaseholdError, TryAgain

#: seconds between two tries, and between two looks for a signal
_PAUSE = 0.2
_BUSY = (HeldElsewhere, AlreadyHeld, TryAgain)


class _Locks:
    """A guest's locks as what a command is kept under."""

    def __init__(self, guest: GuestLocks) -> None:
        self._guest = guest
        self.resource = f"{guest.owner.name} ({', '.join(map(str, guest.resources))})"

    @property
    def lost(self) -> Loss:
        return self._guest.lost


def run_guest(options: Namespace, child: Child, signals: Signals) -> int:
    """Returns the exit code. LeaseholdError, CannotExecute as long as the command did not start."""
    kind = manager_class(options.lock_manager)
    watchdog = open_watchdog(options.watchdog, on_feeder_death="kill") if kind.promises.stops_guests else None
    try:
        with open_manager(options.lock_manager, **_settings(options, watchdog)) as manager:
            access = Access.SHARED if options.shared else Access.EXCLUSIVE
            owner = Owner(uuid5(NAMESPACE_OID, options.name), options.name, child.pid, group=True)
            guest = manager.guest(owner, [Resource.disk(path, access) for path in options.disk])
            try:
                acquired = _Acquisition(guest, options.wait).wait(signals)
            except _BUSY as busy:
                say(one_line(busy))
                return exit_codes.HELD
            if not acquired:
                assert signals.aborted_by is not None
                return exit_codes.SIGNALLED + signals.aborted_by
            return _run_under(guest, child, signals)
    finally:
        if watchdog is not None:
            watchdog.close()


def _settings(options: Namespace, watchdog: Watchdog | None) -> dict[str, Any]:
    """What was asked for, and nothing else: lock managers know different settings."""
    asked = {
        "directory": options.lock_dir,
        "io_timeout": options.io_timeout,
        "host_id": options.host_id,
        "watchdog": watchdog,
    }
    return {name: value for name, value in asked.items() if value is not None}


class _Acquisition(threading.Thread):
    """Takes the locks, trying for `patience` seconds, while the main thread looks for signals."""

    def __init__(self, guest: GuestLocks, patience: float) -> None:
        super().__init__(name="locks", daemon=True)
        self._guest = guest
        self._until = time.monotonic() + patience
        self._failure: BaseException | None = None
        self._given_up = False

    def run(self) -> None:
        while not self._given_up:
            try:
                self._guest.acquire()
            except _BUSY as busy:
                self._failure = busy
                if time.monotonic() >= self._until:
                    return
                time.sleep(_PAUSE)
            except BaseException as failure:
                self._failure = failure
                return
            else:
                self._failure = None
                return

    def wait(self, signals: Signals) -> bool:
        """Whether they are taken; False if a signal came first. Raises what they were refused with."""
        self.start()
        while self.is_alive():
            signals.wait(_PAUSE)
            if signals.aborted_by is not None:
                self._given_up = True
                self.join(_PAUSE)
                with suppress(LeaseholdError):
                    if not self.is_alive():
                        self._guest.release()
                return False
        if self._failure is not None:
            raise self._failure
        return True


def _run_under(guest: GuestLocks, child: Child, signals: Signals) -> int:
    supervision = Supervision(child, _Locks(guest), signals, say)
    try:
        supervision.run({"LEASEHOLD_LOCK_MANAGER_STATE": guest.inquire()})
    finally:
        try:
            guest.release()
        except LeaseholdError as failure:
            say(one_line(failure))
    return exit_codes.LOST if supervision.lost else child.exit_code()
