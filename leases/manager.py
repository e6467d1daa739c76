"""Lock managers: what keeps two guests off one disk, behind one interface, found by name through entry points.

A lock manager is told once who the guest is and what it uses, and then follows the guest's life:

    locks = manager.guest(Owner(uuid, "vm1", pid), [Resource.disk("/images/vm1.img")])
    locks.acquire()              it starts; after a migration, with the state that the other host gave back
    locks.add(Resource.disk(…))  hot-plug, while it runs or not
    locks.pause()                it stands still: everything is given back
    locks.resume()               and taken again, if nobody had it meanwhile
    state = locks.release()      it ends, or goes to another host, which gets the state

What each lock manager does about a resource is two methods, `take` and `give_back`; the order of things, all or
nothing, and what is remembered of a pause are the same for all and written here. What a lock manager can't promise it
declares (`Promises`), and the conformance suite holds it to what it declared.

A third party's lock manager is a class named by an entry point of the group `leasehold.backends`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self
from uuid import UUID

from paxos.errors import AlreadyHeld, HeldElsewhere, InvalidUse, LeaseholdError, NotHeld

ENTRY_POINTS = "leasehold.backends"
#: what backends offer to the command line: callables by name
SERVICES = "leasehold.services"


# -------------------------------------------------------------------------------------------------- vocabulary


@dataclass(frozen=True, slots=True)
class Owner:
    """A guest. `pid` 0: this process itself uses the locks; `group`: the pid leads a process group that is the guest.

    `id` and `uri` are libvirt's running number of the guest and address of the host; 0 and "" elsewhere.
    """

    uuid: UUID
    name: str
    pid: int = 0
    group: bool = False
    id: int = 0
    uri: str = ""


class Kind(Enum):
    DISK = "disk"
    LEASE = "lease"


class Access(Enum):
    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    #: never locked
    READ_ONLY = "read-only"


@dataclass(frozen=True, slots=True)
class Resource:
    """A disk, whose `name` is its path; or a lease: `name` is its key, and `path`, `offset` (bytes) and `lockspace`
    say where it is, each lock manager reading them in its own way (lockmanager.md 2.4).
    """

    kind: Kind
    name: str
    access: Access = Access.EXCLUSIVE
    path: str = ""
    offset: int = 0
    lockspace: str = ""

    @classmethod
    def disk(cls, path: str, access: Access = Access.EXCLUSIVE) -> Resource:
        return cls(Kind.DISK, path, access)

    @classmethod
    def lease(cls, lockspace: str, key: str, path: str, offset: int = 0, access: Access = Access.EXCLUSIVE) -> Resource:
        return cls(Kind.LEASE, key, access, path, offset, lockspace)

    @property
    def identity(self) -> tuple[Kind, str, str, int, str]:
        """What makes two resources the same one, whatever the access."""
        return self.kind, self.name, self.path, self.offset, self.lockspace

    def __str__(self) -> str:
        return f"disk {self.name}" if self.kind is Kind.DISK else f"lease {self.lockspace}:{self.name}"


class FailureAction(Enum):
    """What becomes of a guest whose locks are lost."""

    POWEROFF = "poweroff"
    RESTART = "restart"
    PAUSE = "pause"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class OnFailure:
    """The action, and the program and arguments that carry it out; none: POWEROFF by SIGTERM, later SIGKILL."""

    action: FailureAction = FailureAction.POWEROFF
    program: tuple[str, ...] = ()


class Reach(Enum):
    """Whom a held resource keeps out."""

    NOBODY = "nobody"
    FILE_SYSTEM = "whoever locks files on the same file system, as far as it carries locks between hosts"
    VOLUME = "every host that reads and writes the same volume"


@dataclass(frozen=True, slots=True)
class Promises:
    """What a lock manager promises; the conformance suite tests it as declared."""

    excludes: Reach
    #: `release` returns a state, and acquiring with it is refused if anybody held a resource meanwhile
    states: bool
    #: a guest whose locks are lost is stopped, as the failure action says
    stops_guests: bool
    failure_actions: frozenset[FailureAction]


class ResourceBusy(HeldElsewhere):
    """Somebody else holds it: who, a lock manager may not be able to say."""

    code, name = -11, "EAGAIN"
    template = "{resource} is locked by somebody else"


class StateRefused(InvalidUse):
    template = "the saved lock state can't be used: {reason}"


class StateStale(StateRefused):
    """`changed`: for each resource that others held meanwhile its text, the version saved and the version now."""

    code, name = -240, "ACQUIRE_LVER"
    template = "the saved lock state is out of date: {reason}"
    advice = "others used the disk since the state was saved: start the guest anew, do not resume it"


class Loss(Protocol):
    """Set once and for good when the locks are no longer ours, or can't be kept."""

    @property
    def reason(self) -> LeaseholdError | None: ...

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...

    def acknowledge(self) -> None:
        """This process has stopped using what the locks protect."""


# --------------------------------------------------------------------------------------------------- one guest


class GuestLocks(ABC):
    """The locks of one guest. Made by `LockManager.guest`; a context manager that gives them back at its end.

    Its methods may be called by any thread, one at a time; they may take as long as the storage does.
    """

    def __init__(self, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure) -> None:
        self.owner = owner
        self.on_failure = on_failure
        self.held = False
        self._resources: list[Resource] = []
        self._saved = ""
        self._lock = threading.RLock()
        for resource in resources:
            self._append(resource)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.owner.name} {'held' if self.held else 'not held'}>"

    # --- what a lock manager adds ---

    @abstractmethod
    def take(self, resource: Resource, version: int | None) -> None:
        """Lock one resource, never a read-only one; with `version`, only if nobody held it since.

        Raises HeldElsewhere (ResourceBusy), StateStale, InvalidUse, DiskError; then nothing is left locked.
        """

    @abstractmethod
    def give_back(self, resource: Resource) -> None:
        """Unlock one resource that `take` locked. When it raises, it is no longer held all the same."""

    @property
    @abstractmethod
    def lost(self) -> Loss:
        """The news that the locks are not ours any more; the guest is stopped then, if that is promised."""

    # Some lock managers have nothing to do at these moments.

    def begin(self) -> None:  # noqa: B027
        """Called before the first resource is taken: be ready to be renewed. Raises WatchdogUnavailable."""

    def taken(self) -> None:  # noqa: B027
        """Called when all are taken, and again after a hot-plug: from now on they must be kept."""

    def end(self) -> None:  # noqa: B027
        """Called when all were given back, or none could be taken."""

    def adopt(self, pid: int) -> None:
        """The guest's process is known now: it uses the locks instead of this process, and is stopped when they are
        lost. Raises NotHeld, InvalidUse if there is no such process, WatchdogUnavailable.
        """
        with self._lock:
            if not self.held:
                raise NotHeld(resource=f"what {self.owner.name} uses")
            self.adopted(pid)
            self.owner = replace(self.owner, pid=pid)

    def adopted(self, pid: int) -> None:  # noqa: B027
        """See `adopt`; for lock managers that stop guests."""

    def foreseen(self) -> str:
        """The state that whoever holds the resources now would give back: for who is to take over from them and has
        no other way to learn it. "" where the lock manager has none. Raises as `acquire`.
        """
        return ""

    def state_of(self, resources: Sequence[Resource]) -> str:
        """The state to hand over for resources that are held now; "" where the lock manager has none."""
        return ""

    def versions(self, state: str) -> dict[Resource, int]:
        """What a saved state says of each of our resources. Raises StateRefused."""
        raise StateRefused(reason="this lock manager knows no states")

    # --- the life of a guest ---

    @property
    def resources(self) -> tuple[Resource, ...]:
        return tuple(self._resources)

    def acquire(self, state: str = "") -> None:
        """Lock everything, or nothing. With a `state`, only if nobody held any of it since that was saved.

        Raises HeldElsewhere (somebody has one of them), StateStale, StateRefused, AlreadyHeld, InvalidUse,
        DiskError, WatchdogUnavailable.
        """
        with self._lock:
            if self.held:
                raise AlreadyHeld(resource=f"what {self.owner.name} uses")
            versions = self.versions(state) if state else {}
            lockable = self._lockable()
            self.begin()
            done: list[Resource] = []
            try:
                for resource in lockable:
                    self.take(resource, versions.get(resource))
                    done.append(resource)
                self.taken()
            except BaseException:
                self._undo(done)
                self.end()
                raise
            self.held = True
            self._saved = ""

    def release(self) -> str:
        """Give everything back; the state to hand over. Nothing happens, and the state is "", when nothing is held.

        Raises DiskError if the storage did not take it; then it is given up all the same.
        """
        with self._lock:
            if not self.held:
                return ""
            state = self.state_of(self._lockable())
            self.held = False
            failure: LeaseholdError | None = None
            for resource in reversed(self._lockable()):
                try:
                    self.give_back(resource)
                except LeaseholdError as error:
                    failure = failure or error
            self.end()
            if failure is not None:
                raise failure
            return state

    def inquire(self) -> str:
        """The state that `release` would return now, or that a pause left. Changes nothing."""
        with self._lock:
            return self.state_of(self._lockable()) if self.held else self._saved

    def pause(self) -> str:
        """The guest stands still: give everything back, and remember the state. Harmless when repeated."""
        with self._lock:
            if self.held:
                self._saved = self.release()
            return self._saved

    def resume(self, state: str | None = None) -> None:
        """As `acquire`, with what the last pause left unless another `state` is given.

        When it raises, the guest stays paused and the state stays saved.
        """
        with self._lock:
            self.acquire(self._saved if state is None else state)

    def add(self, resource: Resource) -> None:
        """Hot-plug. When everything is held, it is locked at once; what `acquire` raises, InvalidUse if it is there."""
        with self._lock:
            self._append(resource)
            if self.held and resource.access is not Access.READ_ONLY:
                try:
                    self.take(resource, None)
                    self.taken()
                except BaseException:
                    self._resources.remove(resource)
                    raise

    def remove(self, resource: Resource) -> None:
        """Unplug. Raises NotHeld if it is not one of ours, DiskError if the storage did not take it back."""
        with self._lock:
            known = self._find(resource)
            if known is None:
                raise NotHeld(resource=str(resource))
            self._resources.remove(known)
            if self.held and known.access is not Access.READ_ONLY:
                self.give_back(known)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _append(self, resource: Resource) -> None:
        if self._find(resource) is not None:
            raise InvalidUse(reason=f"{resource} is named twice for {self.owner.name}")
        self._resources.append(resource)

    def _find(self, resource: Resource) -> Resource | None:
        return next((known for known in self._resources if known.identity == resource.identity), None)

    def _lockable(self) -> list[Resource]:
        return [resource for resource in self._resources if resource.access is not Access.READ_ONLY]

    def _undo(self, taken: Sequence[Resource]) -> None:
        for resource in reversed(taken):
            with suppress(LeaseholdError):
                self.give_back(resource)


class LockManager(ABC):
    """One way of keeping guests apart on this host. Settings are keyword arguments of the class."""

    name: ClassVar[str]
    promises: ClassVar[Promises]

    def guest(
        self,
        owner: Owner,
        resources: Iterable[Resource] = (),
        on_failure: OnFailure | None = None,
    ) -> GuestLocks:
        """The locks of a guest, none of them taken yet. Raises InvalidUse for what this lock manager can't do."""
        on_failure = on_failure or OnFailure()
        action = on_failure.action
        if action not in self.promises.failure_actions:
            raise InvalidUse(reason=f"the lock manager {self.name} can't promise the failure action {action.value}")
        if self.promises.stops_guests and not on_failure.program and action in _NEED_A_PROGRAM:
            raise InvalidUse(reason=f"the failure action {action.value} needs a program that carries it out")
        return self.locks_of(owner, resources, on_failure)

    @abstractmethod
    def locks_of(self, owner: Owner, resources: Iterable[Resource], on_failure: OnFailure) -> GuestLocks:
        """As `guest`, which has checked `on_failure`."""

    def close(self) -> None:  # noqa: B027
        """Let go of what all guests share. What guests hold must have been given back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_NEED_A_PROGRAM = frozenset({FailureAction.PAUSE, FailureAction.RESTART})


# -------------------------------------------------------------------------------------------------- the registry


def registered() -> dict[str, EntryPoint]:
    """The lock managers that are installed, by name. None of them is imported."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def manager_class(name: str) -> type[LockManager]:
    """The class of the lock manager called `name`. Raises InvalidUse if there is none."""
    points = registered()
    if name not in points:
        raise InvalidUse(reason=f"no lock manager is called {name!r}; there are {', '.join(sorted(points))}")
    kind: type[LockManager] = points[name].load()
    return kind


def open_manager(name: str, **settings: Any) -> LockManager:
    """The lock manager called `name`, with its settings. Raises InvalidUse if there is none, or for a bad setting."""
    kind = manager_class(name)
    try:
        return kind(**settings)
    except TypeError as error:
        raise InvalidUse(reason=f"the lock manager {name} can't be set up so: {error}") from error


def service(name: str) -> Callable[..., Any]:
    """What a backend offers to the command line under this name. Raises InvalidUse if it is not installed."""
    for point in entry_points(group=SERVICES, name=name):
        found: Callable[..., Any] = point.load()
        return found
    raise InvalidUse(reason=f"nothing that is installed offers {name}")
