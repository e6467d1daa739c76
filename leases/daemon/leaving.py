"""Leaving a lockspace, by command or because the daemon ends: its users are killed, its host id is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leases.daemon.call import Task, Wait, work
from leases.daemon.spaces import Space, SpaceState

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon

#: seconds between two looks whether it is over
_LOOK = 0.05


def leave(daemon: Daemon, space: Space) -> Task[None]:
    """Returns when the space is gone. Whoever is already at it is joined."""
    if space.state is SpaceState.ADDING:
        space.abort.set("it is being removed")
    elif space.state is SpaceState.HELD:
        space.state = SpaceState.REMOVING
        daemon.journal.info("leaving lockspace", lockspace=space.name)
        lockspace = space.joined
        yield from work(lambda: lockspace.leave(force=True), own_thread=f"leave {space.text}")
    while daemon.spaces.get(space.name) is space:
        yield Wait(_LOOK)
