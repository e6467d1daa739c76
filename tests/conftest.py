"""Fixtures that every floor's tests may use."""

from __future__ import annotations

from tests.support.peers import images, sanlock_daemon, sanlock_daemons

__all__ = ["images", "sanlock_daemon", "sanlock_daemons"]
