"""The conformance suite of lock managers: what everybody may rely on, and what each declared in its `Promises`.

To prove a lock manager, a test module subclasses `LockManagerConformance`, and pytest finds the tests:

    class TestMyLockManager(LockManagerConformance):
        def manager(self, host): return MyManager(...)      # as that host has it: 1 or 2
        def disk(self, name): ...                            # the path of a disk both hosts see
        def lose(self, disk): ...                            # only if it promises to stop guests

Managers may be kept from one test to the next; disks must be new ones. It needs no pytest to be imported.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from uuid import UUID

from leases.manager import (
    Access,
    FailureAction,
    GuestLocks,
    LockManager,
    OnFailure,
    Owner,
    Promises,
    Reach,
    Resource,
    StateRefused,
    StateStale,
)
from paxos.errors import AlreadyHeld, HeldElsewhere, InvalidUse, LeaseholdError, NotHeld

#: how somebody is refused what somebody else has, on this host or another one
BUSY = (HeldElsewhere, AlreadyHeld)
#: seconds within which a guest that lost its locks must be stopped; override `patience` where it takes longer
PATIENCE = 60.0


def refused(action: Callable[[], object], *kinds: type[LeaseholdError]) -> LeaseholdError:
    """The error of these kinds that `action` raises; AssertionError if it does not."""
    try:
        result = action()
    except kinds as error:
        return error
    raise AssertionError(f"{' or '.join(kind.__name__ for kind in kinds)} was not raised, {result!r} came back")


class LockManagerConformance(ABC):
    """Subclass it with a name that pytest collects (`Test…`)."""

    patience = PATIENCE
    #: whether it can be told of the guest's process after the locks were taken
    adopts = True
    #: whether it runs the program of a failure action for any process, not only for this one
    runs_programs = True

    @abstractmethod
    def manager(self, host: int) -> LockManager:
        """The lock manager as host 1 or 2 has it. The same one as long as it is not closed."""

    @abstractmethod
    def disk(self, name: str) -> str:
        """The path of a disk, new in each test and the same for both hosts."""

    def lose(self, disk: str) -> None:
        """Take the lock of this disk away from its holder behind its back, or whatever else it must notice."""
        raise NotImplementedError

    def guest(
        self, name: str, *disks: str, host: int = 1, access: Access = Access.EXCLUSIVE, pid: int = 0
    ) -> GuestLocks:
        """The locks of a guest called `name` on disks of these names, not taken yet."""
        uuid = UUID(bytes=name.encode().ljust(16, b"\1")[:16])
        resources = [Resource.disk(self.disk(disk), access) for disk in disks]
        return self.manager(host).guest(Owner(uuid, name, pid), resources)

    def start_process(self) -> subprocess.Popen[bytes]:
        """A process that can be a guest; override it where such a process has to make itself known first."""
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])

    @property
    def promises(self) -> Promises:
        return self.manager(1).promises

    @property
    def excludes(self) -> bool:
        return self.promises.excludes is not Reach.NOBODY

    # --- life of one guest ---

    def test_a_guest_starts_and_ends(self) -> None:
        guest = self.guest("vm1", "a", "b")
        assert not guest.held
        guest.acquire()
        assert guest.held
        assert not guest.lost.is_set()
        guest.release()
        assert not guest.held

    def test_releasing_what_is_not_held_is_harmless(self) -> None:
        guest = self.guest("vm1", "a")
        assert guest.release() == ""
        guest.acquire()
        guest.release()
        assert guest.release() == ""

    def test_acquiring_twice_is_refused_and_loses_nothing(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            refused(guest.acquire, AlreadyHeld)
            assert guest.held
            self._expect_busy("a")

    def test_a_guest_may_start_again(self) -> None:
        guest = self.guest("vm1", "a")
        for _ in range(3):
            guest.acquire()
            guest.release()

    def test_a_guest_without_disks_is_fine(self) -> None:
        guest = self.guest("vm1")
        guest.acquire()
        guest.release()

    def test_a_resource_can_be_named_only_once(self) -> None:
        disk = Resource.disk(self.disk("a"))
        refused(lambda: self.manager(1).guest(Owner(UUID(int=1), "vm1"), [disk, disk]), InvalidUse)

    # --- exclusion, as far as it was promised ---

    def test_another_guest_of_this_host_is_kept_out(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            self._expect_busy("a", host=1)
        self._expect_free("a", host=1)

    def test_another_host_is_kept_out(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            self._expect_busy("a", host=2)
        self._expect_free("a", host=2)

    def test_the_same_guest_started_twice_is_kept_out(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            again = self.guest("vm1", "a", host=2)
            self._expect(self.excludes, again)

    def test_guests_on_different_disks_do_not_meet(self) -> None:
        with self.guest("vm1", "a") as one, self.guest("vm2", "b", host=2) as other:
            one.acquire()
            other.acquire()

    def test_all_or_nothing(self) -> None:
        if not self.excludes:
            return
        with self.guest("vm1", "b") as guest:
            guest.acquire()
            refused(self.guest("vm2", "a", "b", "c", host=2).acquire, *BUSY)
            self._expect_free("a")
            self._expect_free("c")

    def test_shared_disks_are_shared_by_hosts_and_guests(self) -> None:
        with (
            self.guest("vm1", "a", access=Access.SHARED) as one,
            self.guest("vm2", "a", access=Access.SHARED) as two,
            self.guest("vm3", "a", access=Access.SHARED, host=2) as three,
        ):
            for guest in (one, two, three):
                guest.acquire()
            one.release()
            self._expect_busy("a", host=1)
            self._expect_busy("a", host=2)

    def test_an_exclusive_guest_keeps_sharing_ones_out(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            self._expect(self.excludes, self.guest("vm2", "a", host=2, access=Access.SHARED))

    def test_read_only_disks_are_never_locked(self) -> None:
        with self.guest("vm1", "a") as guest, self.guest("vm2", "a", host=2, access=Access.READ_ONLY) as reader:
            guest.acquire()
            reader.acquire()

    # --- hot-plug ---

    def test_a_disk_plugged_in_is_locked_and_unplugged_is_free(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            disk = Resource.disk(self.disk("b"))
            guest.add(disk)
            assert disk in guest.resources
            self._expect_busy("b", host=2)
            guest.remove(disk)
            assert disk not in guest.resources
            self._expect_free("b", host=2)
            self._expect_busy("a", host=2)

    def test_a_disk_plugged_in_is_given_back_with_the_others(self) -> None:
        guest = self.guest("vm1", "a")
        guest.acquire()
        guest.add(Resource.disk(self.disk("b")))
        guest.release()
        self._expect_free("b", host=2)

    def test_a_refused_plug_leaves_everything_as_it_was(self) -> None:
        if not self.excludes:
            return
        with self.guest("vm1", "a") as guest, self.guest("vm2", "b", host=2) as other:
            guest.acquire()
            other.acquire()
            refused(lambda: guest.add(Resource.disk(self.disk("b"))), *BUSY)
            assert guest.resources == (Resource.disk(self.disk("a")),)
            assert guest.held

    def test_unplugging_what_is_not_there_is_refused(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            refused(lambda: guest.remove(Resource.disk(self.disk("b"))), NotHeld)

    def test_a_disk_added_before_the_start_is_locked_at_the_start(self) -> None:
        with self.guest("vm1") as guest:
            guest.add(Resource.disk(self.disk("a")))
            self._expect_free("a")
            guest.acquire()
            self._expect_busy("a")

    # --- pause, resume, hand-over ---

    def test_a_pause_gives_up_and_a_resume_takes_again(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            state = guest.pause()
            assert not guest.held
            assert guest.pause() == state == guest.inquire()
            guest.resume()
            assert guest.held
            self._expect_busy("a", host=2)

    def test_a_resume_is_refused_while_somebody_has_the_disk(self) -> None:
        if not self.excludes:
            return
        with self.guest("vm1", "a") as guest, self.guest("vm2", "a", host=2) as other:
            guest.acquire()
            state = guest.pause()
            other.acquire()
            refused(guest.resume, *BUSY, StateStale)
            assert not guest.held
            assert guest.inquire() == state

    def test_a_resume_after_somebody_had_the_disk(self) -> None:
        with self.guest("vm1", "a") as guest:
            guest.acquire()
            guest.pause()
            self._expect_free("a", host=2)
            if self.promises.states:
                stale = refused(guest.resume, StateStale)
                assert [resource for resource, _saved, _now in stale.changed] == [f"disk {self.disk('a')}"]
            else:
                guest.resume()

    def test_a_guest_moves_to_another_host(self) -> None:
        source, destination = self.guest("vm1", "a", "b"), self.guest("vm1", "a", "b", host=2)
        source.acquire()
        state = source.inquire()
        assert bool(state) == self.promises.states
        self._expect(self.excludes, destination)
        assert source.release() == state
        destination.acquire(state)
        try:
            self._expect_busy("a", host=1)
        finally:
            destination.release()

    def test_a_stale_state_is_refused_with_what_changed(self) -> None:
        if not self.promises.states:
            return
        source, destination = self.guest("vm1", "a", "b"), self.guest("vm1", "a", "b", host=2)
        source.acquire()
        state = source.release()
        self._expect_free("b", host=1)
        stale = refused(lambda: destination.acquire(state), StateStale)
        (resource, saved, now) = stale.changed[0]
        assert resource == f"disk {self.disk('b')}"
        assert now > saved
        assert not destination.held
        self._expect_free("a", host=1)

    def test_a_state_of_other_resources_is_refused(self) -> None:
        if not self.promises.states:
            return
        source = self.guest("vm1", "a")
        source.acquire()
        state = source.release()
        refused(lambda: self.guest("vm2", "b", host=2).acquire(state), StateRefused)
        refused(lambda: self.guest("vm1", "a", "b", host=2).acquire(state), StateRefused)

    def test_a_state_of_nonsense_is_refused(self) -> None:
        guest = self.guest("vm1", "a")
        refused(lambda: guest.acquire("not a state"), StateRefused)
        assert not guest.held
        self._expect_free("a")

    # --- failure ---

    def test_failure_actions_are_as_declared(self) -> None:
        manager = self.manager(1)
        for action in FailureAction:
            on_failure = OnFailure(action, ("/bin/true",))
            if action in self.promises.failure_actions:
                manager.guest(Owner(UUID(int=1), "vm1"), [], on_failure)
            else:
                refused(lambda how=on_failure: manager.guest(Owner(UUID(int=1), "vm1"), [], how), InvalidUse)  # type: ignore[misc]

    def test_a_guest_that_does_not_exist_gets_no_locks(self) -> None:
        if not self.promises.stops_guests:
            return
        gone = self.start_process()
        gone.kill()
        gone.wait()
        guest = self.guest("vm1", "a", pid=gone.pid)
        refused(guest.acquire, LeaseholdError)
        assert not guest.held
        self._expect_free("a")

    def test_a_guest_that_loses_its_locks_is_stopped(self) -> None:
        if not self.promises.stops_guests:
            return
        process = self.start_process()
        try:
            with self.guest("vm1", "a", pid=process.pid) as guest:
                guest.acquire()
                self.lose(self.disk("a"))
                process.wait(self.patience)
                assert guest.lost.wait(self.patience)
                assert guest.lost.reason is not None
        finally:
            process.kill()
            process.wait()

    def test_a_guest_whose_process_is_known_only_later_is_stopped_as_well(self) -> None:
        if not self.promises.stops_guests or not self.adopts:
            return
        process = self.start_process()
        try:
            with self.guest("vm1", "a") as guest:
                guest.acquire()
                guest.adopt(process.pid)
                self.lose(self.disk("a"))
                process.wait(self.patience)
        finally:
            process.kill()
            process.wait()

    def test_the_program_of_a_failure_action_is_run(self) -> None:
        if not self.promises.stops_guests or not self.runs_programs:
            return
        process = self.start_process()
        on_failure = OnFailure(FailureAction.POWEROFF, ("/bin/kill", "-USR1", str(process.pid)))
        owner = Owner(UUID(int=1), "vm1", process.pid)
        try:
            with self.manager(1).guest(owner, [Resource.disk(self.disk("a"))], on_failure) as guest:
                guest.acquire()
                self.lose(self.disk("a"))
                assert process.wait(self.patience) == -signal.SIGUSR1
        finally:
            process.kill()
            process.wait()

    # --- how somebody else fares ---

    def _expect_busy(self, disk: str, host: int = 1) -> None:
        self._expect(self.excludes, self.guest("other", disk, host=host))

    def _expect_free(self, disk: str, host: int = 1) -> None:
        self._expect(False, self.guest("other", disk, host=host))

    def _expect(self, busy: bool, guest: GuestLocks) -> None:
        if busy:
            refused(guest.acquire, *BUSY)
            assert not guest.held
        else:
            guest.acquire()
            guest.release()
