"""nop: the lock manager that locks nothing, and says so (lockmanager.md 5). QEMU's own locks are what is left."""

from __future__ import annotations

from collections.abc import Iterable

from leases.lease import Lost
from leases.manager import FailureAction, GuestLocks, LockManager, OnFailure, Owner, Promises, Reach, Resource


class NopLocks(GuestLocks):
    def __init__(self, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure) -> None:
        super().__init__(owner, resources, on_failure)
        self._lost = Lost(lambda: None)

    @property
    def lost(self) -> Lost:
        """Never set: there is nothing to lose."""
        return self._lost

    def take(self, resource: Resource, version: int | None) -> None:
        pass

    def give_back(self, resource: Resource) -> None:
        pass


class NopManager(LockManager):
    name = "nop"
    promises = Promises(
        excludes=Reach.NOBODY, states=False, stops_guests=False, failure_actions=frozenset(FailureAction)
    )

    def locks_of(self, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure) -> NopLocks:
        return NopLocks(owner, resources, on_failure)
