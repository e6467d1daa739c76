"""Who holds a lease right now, as far as the disk says (ondisk.md 6.6): for owners' lists, `explain` and `show`."""

from __future__ import annotations

from dataclasses import dataclass

from paxos.lease_area import Scene


@dataclass(frozen=True, slots=True)
class Owner:
    """A holder: its host id, its generation when it took the lease, and for an exclusive one its timestamp."""

    host_id: int
    generation: int
    timestamp: int
    shared: bool


def owners(scene: Scene) -> list[Owner]:
    """The exclusive owner if there is one, then the shared holders by host id.

    Better than the reference: an owner whose own block says that it released this version, or went on to a later one,
    is none. Under contention a competitor's copy of the leader often lands after that.
    """
    leader = scene.leader
    found = []
    given_up = scene.released_by_owner() or scene.owner_went_on()
    exclusive = not leader.free and leader.owner_id != 0 and not given_up
    if exclusive:
        found.append(Owner(leader.owner_id, leader.owner_generation, leader.timestamp, shared=False))
    for host_id, block in sorted(scene.blocks.items()):
        if block.shared and not (exclusive and host_id == leader.owner_id):
            found.append(Owner(host_id, block.mode_generation, 0, shared=True))
    return found
