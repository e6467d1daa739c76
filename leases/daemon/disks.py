"""Reading and writing disks without being a member of anything, each time opened anew: paths may change meaning."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from leases.daemon.call import Refused, Task, work
from leases.daemon.wire import BadMessage, Disk, geometry_of
from leases.engines import Engines
from paxos.disk.device import Device, Devices
from paxos.errors import CannotOpen
from paxos.geometry import Geometry, Place
from paxos.steps import Steps

T = TypeVar("T")

#: seconds that opening a disk may take
OPENING = 10.0
#: for their memory, which is not cheap to come by; each is given the devices of what it does
_ENGINES = Engines()


def place_of(disk: Disk) -> Place:
    return Place(disk.path, disk.offset)


def opened(disk: Disk, use: Callable[[Device], Steps[T]]) -> Task[T]:
    """Drive the protocol that `use` makes for a disk, in a worker. Raises as the protocol, and CannotOpen."""

    def job() -> T:
        with Devices() as devices, _ENGINES.engine() as engine:
            engine.devices = devices
            return engine.run(use(devices.open(disk.path, OPENING)))

    return work(job)


def opened_or_nodev(disk: Disk, use: Callable[[Device], Steps[T]]) -> Task[T]:
    """The same for lockspaces, where no path and one that can't be opened are both ENODEV."""
    if not disk.path:
        raise Refused(-errno.ENODEV)
    try:
        return (yield from opened(disk, use))
    except CannotOpen:
        raise Refused(-errno.ENODEV) from None


def stated_sizes(flags: int) -> Geometry | None:
    """What a request's flags say of the sizes, if anything. Raises Refused for what can't be."""
    try:
        return geometry_of(flags)
    except BadMessage:
        raise Refused(-errno.EPERM) from None
