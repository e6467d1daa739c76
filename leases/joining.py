"""Joining a lockspace: which host id, under which name, with which watchdog; again where somebody was quicker."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from leases.events import Event, Hook, RecoveryBegun
from leases.keeper.watchdog import Watchdog, open_watchdog
from leases.lockspace import Lockspace
from leases.membership import Membership
from paxos import host_lease
from paxos.area import belonging, decode_lockspace
from paxos.disk.abort import AbortSignal
from paxos.errors import HostIdBusy, HostIdInvalid, InvalidUse, LeaseholdError, NoFreeHostId
from paxos.geometry import Place
from paxos.host_lease import MAX_OWNER_NAME, Progress
from paxos.lockspace_area import LockspaceArea
from paxos.steps import Steps, read
from paxos.timing import DEFAULT_IO_TIMEOUT, MAX_IO_TIMEOUT, Timing

#: host ids that are tried when none was named, and how many free ones a host chooses from, so that hosts that
#: join at the same time seldom choose the same
_TRIES = 5
_CHOICE = 16


@dataclass(frozen=True, slots=True)
class Wish:
    """How to join. `io_timeout` None: as the host id's slot says; `usable_hosts`: the host ids that leases allow."""

    host_id: int | None = None
    owner_name: str | None = None
    io_timeout: int | None = None
    fire_timeout: int = 60
    watchdog: str | Watchdog = "auto"
    usable_hosts: int | None = None
    index_place: Place | None = None
    on_recovery: Callable[[LeaseholdError], object] | None = None


def default_owner_name() -> str:
    """Unique for each lockspace that any process joins: whoever has the same name may take an id over at once."""
    rest = f":{os.getpid()}:{secrets.token_hex(4)}"
    node = os.uname().nodename.encode()[: MAX_OWNER_NAME - len(rest)].decode(errors="ignore")
    return node + rest


def join(
    area: LockspaceArea,
    wish: Wish,
    run: Callable[[Steps[_Slots]], _Slots],
    progress: Progress,
    abort: AbortSignal | None,
) -> Lockspace:
    """A joined lockspace. Raises as Lockspace.start, and NoFreeHostId.

    `run` drives the protocol that looks at the lockspace before anything is written.
    """
    _check(wish, area)
    slots = run(_slots(area))
    if wish.host_id is not None:
        return _join_as(wish.host_id, area, wish, slots, progress, abort)
    tried: set[int] = set()
    for _ in range(_TRIES):
        host_id = _choose(slots, tried, wish.usable_hosts or area.geometry.max_hosts, area)
        tried.add(host_id)
        try:
            return _join_as(host_id, area, wish, slots, progress, abort)
        except HostIdBusy as busy:
            last = busy
            progress(f"host id {host_id} was taken by another host at the same time: trying another one", 0.0)
            slots = run(_slots(area))
    raise last


def _check(wish: Wish, area: LockspaceArea) -> None:
    if wish.host_id is not None and not 1 <= wish.host_id <= area.geometry.max_hosts:
        raise HostIdInvalid(host_id=wish.host_id, max_hosts=area.geometry.max_hosts)
    if wish.io_timeout is not None and not 1 <= wish.io_timeout <= MAX_IO_TIMEOUT:
        raise InvalidUse(reason=f"io_timeout {wish.io_timeout} is not between 1 and {MAX_IO_TIMEOUT} seconds")
    if wish.owner_name is not None and not 1 <= len(wish.owner_name.encode()) <= MAX_OWNER_NAME:
        raise InvalidUse(reason=f"an owner's name has 1 to {MAX_OWNER_NAME} bytes")


@dataclass(frozen=True, slots=True)
class _Slots:
    """Of the host ids of a lockspace: the free ones, and the io_timeout (s) in each slot."""

    free: tuple[int, ...]
    io_timeouts: tuple[int, ...]

    def io_timeout(self, host_id: int) -> int:
        stored = self.io_timeouts[host_id - 1]
        return stored if 1 <= stored <= MAX_IO_TIMEOUT else DEFAULT_IO_TIMEOUT


def _slots(area: LockspaceArea) -> Steps[_Slots]:
    # the first slot says what is wrong, if this is no lockspace
    yield from host_lease.read_sector(area, 1, DEFAULT_IO_TIMEOUT)
    view = yield from read(area.place.disk, area.place.offset, area.geometry.align_size, DEFAULT_IO_TIMEOUT)
    rows = decode_lockspace(view, area.geometry)
    good = belonging(rows, area.name) & rows["checksum_ok"] & (rows["timestamp"] == 0)
    return _Slots(tuple((good.nonzero()[0] + 1).tolist()), tuple(rows["io_timeout"].tolist()))


def _choose(slots: _Slots, tried: Iterable[int], usable: int, area: LockspaceArea) -> int:
    free = [host_id for host_id in slots.free if host_id <= usable and host_id not in tried]
    if not free:
        raise NoFreeHostId(lockspace=area.name, hosts=usable)
    return random.choice(free[:_CHOICE])


def _join_as(
    host_id: int,
    area: LockspaceArea,
    wish: Wish,
    slots: _Slots,
    progress: Progress,
    abort: AbortSignal | None,
) -> Lockspace:
    timing = Timing(wish.io_timeout or slots.io_timeout(host_id), wish.fire_timeout)
    given = wish.watchdog
    watchdog = open_watchdog(given, wish.fire_timeout) if isinstance(given, str) else given
    try:
        if watchdog.fire_timeout != wish.fire_timeout:
            raise InvalidUse(reason=f"the watchdog fires after {watchdog.fire_timeout} s, not {wish.fire_timeout} s")
        name = (wish.owner_name or default_owner_name()).encode()
        membership = Membership(area, host_id, name, timing, watchdog, own_watchdog=watchdog is not given)
    except BaseException:
        if watchdog is not given:
            watchdog.close()
        raise
    if wish.on_recovery is not None:
        membership.announcer.hooks.append(_recovery_hook(wish.on_recovery))
    membership.start(progress, abort or AbortSignal())
    return Lockspace(membership, wish.index_place)


def _recovery_hook(tell: Callable[[LeaseholdError], object]) -> Hook:
    def hook(event: Event) -> None:
        if isinstance(event, RecoveryBegun):
            tell(event.reason)

    return hook
