"""A lockspace on a disk, and what one look at all of it shows. Without numpy, for whoever only renews."""

from __future__ import annotations

from dataclasses import dataclass

from paxos.geometry import Geometry, Place


@dataclass(frozen=True, slots=True)
class LockspaceArea:
    """A lockspace on a disk: its name (bytes, at most 48), where it is, its sizes."""

    name: bytes
    place: Place
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class Observation:
    """What one examination found."""

    changed: tuple[int, ...]
    #: hosts that changed and whose bitmap has our bit: "look at me"
    calling: tuple[int, ...]
    #: seconds that other hosts' clocks moved more than ours since the examination before; 0 if about alike
    paused_for: float
