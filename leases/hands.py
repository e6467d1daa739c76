"""What the keeper decides about a lockspace is carried out here: watchdog, deadlines, lost leases, signals.

Everything here is called by the renewal thread or the guard, and nothing of it waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from leases import events
from leases.holdings import Phase
from leases.keeper.decisions import Holder, Paused, Stop
from leases.keeper.watchdog import boot_time
from leases.lease import Lease
from paxos.errors import LeaseholdError, WatchdogUnavailable
from paxos.host_lease import Beacon, Renewal
from paxos.lockspace_area import Observation
from paxos.records import Leader
from paxos.resource import Held

if TYPE_CHECKING:
    from leases.membership import Membership


class KeeperHands:
    """Of one membership."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        # ourselves as a user of leases: no signals, but not gone either
        self._self = Holder(os.getpid(), has_kill_path=True, kill_path_begun=True, never_kill=True)
        self._paused_for = 0.0
        #: host id -> boot time until which its attention is asked for
        self._calls: dict[int, float] = {}
        self._event = (0, 0, 0)
        #: host id -> boot time of the last request of it that was looked at
        self._answered: dict[int, float] = {}

    # --- the renewal thread ---

    def examine(self, view: memoryview, at: float) -> Observation:
        membership = self._membership
        observation = membership.hosts.observe(view, at)
        if observation.paused_for:
            self._paused_for = observation.paused_for
            membership.tell(events.Stalled, seconds=observation.paused_for)
        for host_id in observation.calling:
            self._called_by(host_id, view, at)
        return observation

    def _called_by(self, host_id: int, view: memoryview, at: float) -> None:
        """Another host has something to say (ondisk.md 7.2)."""
        membership = self._membership
        offset = membership.area.geometry.delta_offset(host_id)
        leader = Leader.unpack(view[offset : offset + membership.area.geometry.sector_size])
        if leader.write_generation:
            membership.tell(
                events.HostEvent,
                from_host=host_id,
                from_generation=leader.owner_generation,
                to_generation=leader.write_id,
                event=leader.write_generation,
                data=leader.write_timestamp,
            )
        if at - self._answered.get(host_id, float("-inf")) >= membership.timing.bitmap_life:
            self._answered[host_id] = at
            membership.attendant.look_at_requests()

    def renewed(self, renewal: Renewal, expires: float) -> None:
        membership = self._membership
        self._move_expiry()
        self.set_beacon()
        membership.tell(
            events.Renewed,
            read_seconds=renewal.read_seconds,
            write_seconds=renewal.write_seconds,
            expires=expires,
            healed=renewal.healed is not None,
        )

    def renewal_failed(self, error: LeaseholdError) -> None:
        membership = self._membership
        membership.tell(events.RenewalFailed, error=error)
        if membership.vitals.failure is not None:
            self._move_expiry()
            membership.wake_guard()

    def _move_expiry(self) -> None:
        membership = self._membership
        try:
            membership.connection.renew(membership.vitals.last_success, membership.vitals.expires)
        except WatchdogUnavailable as trouble:
            membership.tell(events.RenewalFailed, error=trouble)

    def held(self) -> Iterable[Held]:
        """Asked when we stood still: operations that are under way may rest on what they read before that."""
        found = []
        for grip in self._membership.holdings.grips():
            if grip.phase is Phase.BUSY:
                grip.suspect = Paused(seconds=self._paused_for, cause="an operation on the lease was under way")
            elif grip.held is not None and not all(lease.lost.is_set() for lease in grip.leases):
                found.append(grip.held)
        return found

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        for grip in self._membership.holdings.grips():
            if grip.held is held:
                for lease in list(grip.leases):
                    self._lose(lease, reason)
                    self.stop_users_of(lease)

    def _lose(self, lease: Lease, reason: LeaseholdError) -> None:
        if not lease.lost.is_set():
            lease.lost.set(reason)
            self._membership.tell(events.LeaseGone, resource=lease.resource, reason=reason)

    def stop_users_of(self, lease: Lease) -> None:
        """Without grace: others have the lease."""
        for pid in lease.holders:
            self._stop(pid, Stop.KILL)

    def _stop(self, pid: int, how: Stop) -> None:
        self._membership.uses.users.stop(pid, how)
        self._membership.tell(events.HolderStopped, pid=pid, how=how.value)

    # --- the guard ---

    def warn(self, seconds: float) -> None:
        self._membership.tell(events.RenewalLate, seconds=seconds)

    def recovery(self, reason: LeaseholdError) -> None:
        membership = self._membership
        membership.closing.set("the lockspace has failed")
        for lease in membership.holdings.leases():
            self._lose(lease, reason)
        membership.tell(events.RecoveryBegun, reason=reason)

    def holders(self) -> list[Holder]:
        found = [user.holder for user in self._membership.uses.users.alive()]
        if self._in_own_use():
            found.append(self._self)
        return found

    def _in_own_use(self) -> bool:
        grips = self._membership.holdings.grips()
        if any(grip.phase is Phase.BUSY for grip in grips):
            return True
        return any(not lease.holders and not lease.lost.acknowledged for grip in grips for lease in grip.leases)

    def stop(self, holder: Holder, how: Stop) -> None:
        if holder is not self._self:
            self._stop(holder.pid, how)

    # --- what goes out with the next renewal ---

    def call(self, host_id: int) -> None:
        """Ask for the attention of a host, for a while."""
        self._calls[host_id] = boot_time() + self._membership.timing.bitmap_life
        self.set_beacon()

    def send(self, event: tuple[int, int, int], host_id: int) -> None:
        self._event = event
        self.call(host_id)

    def forget(self, event: tuple[int, int, int], host_id: int) -> None:
        """Do not ask for the attention of a host any more, and tell the others this."""
        self._event = event
        self._calls.pop(host_id, None)
        self.set_beacon()

    def set_beacon(self) -> None:
        """What goes out with the next renewal: whom we still call, and the event."""
        at = boot_time()
        called = frozenset(host_id for host_id, until in list(self._calls.items()) if until > at)
        self._membership.vitals.beacon = Beacon(called, self._event)

    def for_processes_only(self) -> KeeperHands:
        """For leaving by force: who leaves is no user any more, whatever it holds."""
        return _OnlyProcesses(self._membership)


class _OnlyProcesses(KeeperHands):
    def _in_own_use(self) -> bool:
        return False
