"""Leases on shared storage: taking them, keeping them alive, and stopping who uses them when they are lost.

    from leases import Volume

    with Volume("/dev/vg/leases").join() as lockspace, lockspace.acquire("vm1") as lease:
        ...

The names here are imported when they are first used: a program that only talks to a daemon loads no disk engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leases.aclient import aconnect
    from leases.client import connect
    from leases.lease import FencingToken, Lease
    from leases.lockspace import Lockspace
    from leases.volume import Volume

__all__ = ["FencingToken", "Lease", "Lockspace", "Volume", "aconnect", "connect"]

_HOMES = {
    "FencingToken": "leases.lease",
    "Lease": "leases.lease",
    "Lockspace": "leases.lockspace",
    "Volume": "leases.volume",
    "aconnect": "leases.aclient",
    "connect": "leases.client",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
