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
    """The exclusive owner if there is one, then the shared holders by host id."""
    exclusive = _exclusive(scene)
    found = [exclusive] if exclusive else []
    for host_id, block in sorted(scene.blocks.items()):
        if block.shared and not (exclusive and host_id == exclusive.host_id):
            found.append(Owner(host_id, block.mode_generation, 0, shared=True))
    return found


def _exclusive(scene: Scene) -> Owner | None:
    """The exclusive owner.

    Better than the reference: an owner whose own block says that it released this version, or went on to a later one,
    is none (under contention a competitor's copy of the leader often lands after that); and where a late write has set
    the leader back, the blocks tell whose the lease is.
    """
    leader = scene.leader
    top = scene.top_lver
    value = scene.accepted_at(top) if scene.leader_behind else None
    if value is not None:
        host_id, generation, timestamp = value
        block = scene.blocks.get(host_id)
        gave_up = block is not None and block.released and block.lver == top
        return None if gave_up else Owner(host_id, generation, timestamp, shared=False)
    if leader.free or leader.owner_id == 0 or scene.released_by_owner() or scene.owner_went_on():
        return None
    return Owner(leader.owner_id, leader.owner_generation, leader.timestamp, shared=False)
