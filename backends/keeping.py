"""Keeping locks that are not leases on a volume: the keeper of leases/keeper, with a proof in the place of a renewal.

A lease is renewed by a write that others see. A lock needs no renewal, but it can be lost without notice, and the
file system that carries it can stop answering, while the guest runs on. So here a thread asks at every renewal
interval for a proof that the locks are still there. The rest is the keeper's: a proof moves the watchdog's expiry;
without one for 8 io_timeouts, or at once when a lock is proven lost, the guard stops the guest, and the watchdog is
let go only when the guest is gone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from backends.patience import Call
from leases.keeper.decisions import Holder, Stop, Vitals, stand_guard
from leases.keeper.recovery import Guard, Users
from leases.keeper.watchdog import Watchdog, WatchdogConnection, boot_time
from leases.lease import Lost
from leases.manager import FailureAction, OnFailure, Owner
from paxos.errors import DiskError, LeaseholdError, LeaseLost, WatchdogUnavailable
from paxos.timing import RENEWAL_PAUSE, Timing

_log = logging.getLogger("leasehold")


class LockKeeper:
    """Of one guest, from the first lock taken until the last is given back.

    `prove` raises LeaseLost if a lock is not ours any more, DiskError if that can't be told now; it may hang.
    """

    def __init__(
        self, owner: Owner, on_failure: OnFailure, timing: Timing, watchdog: Watchdog, prove: Callable[[], None]
    ) -> None:
        self.owner = owner
        self.lost = Lost(self._acknowledged)
        self.vitals = Vitals(timing, boot_time())
        self._on_failure = on_failure
        self._prove = prove
        self._users = Users()
        # ourselves as the user: no signals, but not gone either
        self._self = Holder(os.getpid(), has_kill_path=True, kill_path_begun=True, never_kill=True)
        self._ended = threading.Event()
        self._closed = threading.Lock()
        self._guard: Guard | None = None
        self._connection: WatchdogConnection | None = None
        if self._stops_guest:
            self._connection = watchdog.open(f"leasehold_{owner.name}:{owner.uuid}")

    @property
    def _stops_guest(self) -> bool:
        return self._on_failure.action is not FailureAction.IGNORE

    def start(self) -> None:
        """The locks are taken: prove them once, arm the watchdog, and go on proving.

        Raises WatchdogUnavailable, InvalidUse if there is no such guest, LeaseLost, DiskError.
        """
        asked_at = boot_time()
        self._ask().result(self.vitals.timing.io_timeout)
        self.vitals.last_success = asked_at
        if self._connection is not None:
            self._hold()
            self._connection.arm(asked_at, self.vitals.expires)
        self._guard = Guard(self.owner.name, stand_guard(self.vitals, _Hands(self)), self._guard_ended)
        self._guard.start()
        threading.Thread(target=self._keep, name=f"proofs {self.owner.name}", daemon=True).start()

    def stop(self) -> None:
        """Everything was given back. Nobody is stopped on our account from now on."""
        self.vitals.leaving = True
        self._ended.set()
        if self._guard is not None:
            self._guard.wake()
        self._let_go()

    def _hold(self) -> None:
        assert self._connection is not None
        owner, program = self.owner, self._on_failure.program
        if owner.pid:
            self._users.add(owner.pid, group=owner.group, kill_path=program)
            self._connection.hold(owner.pid, group=owner.group, terminate=not program)
        else:
            self._connection.hold(os.getpid(), terminate=False)

    def adopt(self, pid: int) -> None:
        """Process `pid` is the guest, from now on instead of this process. Raises InvalidUse, WatchdogUnavailable."""
        if self._connection is not None:
            before = self.owner
            self.owner = replace(before, pid=pid)
            try:
                self._hold()
            except BaseException:
                self.owner = before
                raise
            if not before.pid:
                self._connection.unhold(os.getpid())

    def _let_go(self) -> None:
        with self._closed:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(WatchdogUnavailable):
                    connection.unhold(self.owner.pid or os.getpid())
                with suppress(WatchdogUnavailable):
                    connection.disarm()
                connection.close()

    # --- the proofs ---

    def _ask(self) -> Call[None]:
        return Call("proof of the locks", self.owner.name, self._prove, lambda _nothing: None)

    def _keep(self) -> None:
        vitals, timing = self.vitals, self.vitals.timing
        while not self._ended.is_set() and vitals.failure is None:
            due = vitals.last_success + timing.renewal_interval if vitals.trouble is None else 0.0
            if self._ended.wait(max(RENEWAL_PAUSE, due - boot_time())):
                return
            asked_at = boot_time()
            call = self._ask()
            while not call.wait(timing.io_timeout) and not self._ended.is_set() and vitals.failure is None:
                vitals.trouble = call.no_answer(boot_time() - asked_at)
            if not self._ended.is_set():
                self._judge(call, asked_at)

    def _judge(self, call: Call[None], asked_at: float) -> None:
        vitals = self.vitals
        try:
            call.result(0.0)
        except LeaseLost as lost:
            vitals.trouble = lost
            vitals.fail(lost)
            if self._guard is not None:
                self._guard.wake()
        except DiskError as trouble:
            vitals.trouble = trouble
        else:
            vitals.check_late(asked_at)
            vitals.trouble = None
            vitals.last_success = asked_at
            with self._closed:
                if self._connection is not None:
                    with suppress(WatchdogUnavailable):  # what it was told before stays in force
                        self._connection.renew(asked_at, vitals.expires)

    def _guard_ended(self, failure: LeaseholdError | None) -> None:
        if failure is not None:
            self._ended.set()
            self._let_go()

    def _acknowledged(self) -> None:
        if self._guard is not None:
            self._guard.wake()

    # --- what the guard asks ---

    def users(self) -> list[Holder]:
        """Who uses the locks and has to be stopped when they are lost."""
        if self._ended.is_set() or not self._stops_guest:
            return []
        if self.owner.pid:
            return [user.holder for user in self._users.alive()]
        return [] if self.lost.acknowledged else [self._self]

    def stop_user(self, holder: Holder, how: Stop) -> None:
        if holder is not self._self:
            self._users.stop(holder.pid, how)


class _Hands:
    """What the guard decides is carried out here."""

    def __init__(self, keeper: LockKeeper) -> None:
        self._keeper = keeper

    def warn(self, seconds: float) -> None:
        _log.warning(
            "%s: the locks could not be proven for %.0f s (%s)",
            self._keeper.owner.name,
            seconds,
            self._keeper.vitals.trouble,
        )

    def recovery(self, reason: LeaseholdError) -> None:
        self._keeper.lost.set(reason)

    def holders(self) -> list[Holder]:
        return self._keeper.users()

    def stop(self, holder: Holder, how: Stop) -> None:
        self._keeper.stop_user(holder, how)
