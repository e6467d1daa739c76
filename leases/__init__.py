"""Keeping leases alive: lockspaces, held leases, the daemon and its clients.

The few names that programs begin with are here, each imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leases.aclient import aconnect
    from leases.client import connect

__all__ = ["aconnect", "connect"]

_HOMES = {"connect": "leases.client", "aconnect": "leases.aclient"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
