"""What a command says while it waits, on standard error: for what, how long about, and who holds the lease.

On a terminal each message replaces the one before, and nothing of them is left in the end. Elsewhere each is a line,
and what takes no time is not said.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from leases.cli.failure import plain
from leases.keeper.watchdog.base import boot_time
from paxos.errors import HeldElsewhere, LeaseholdError, OwnerMayBeDead

if TYPE_CHECKING:
    from leases.keeper.watchdog import Watchdog
    from leases.lease import Lease
    from leases.lockspace import Lockspace


def say(line: str) -> None:
    """To the user, never to the command's reader: standard output is the command's alone."""
    _write(f"leasehold: {line}\n")


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody who listens is no reason to let go of a lease
        sys.stderr.write(text)
        sys.stderr.flush()


class Notices:
    """The messages of one command."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._replacing = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False
        self._told_refusal = False

    def progress(self, what: str, seconds: float) -> None:
        """Something is waited for, for about so many seconds."""
        if self._replacing or seconds >= 1:
            self._show(f"{what} (about {seconds:.0f} s)" if seconds >= 1 else what)

    def refused(self, name: str, refusal: LeaseholdError, wait: float) -> None:
        """The lease `name` could not be had; it is tried again for `wait` seconds in all. Said once."""
        if not self._told_refusal:
            self._told_refusal = True
            holder = refusal.facts.get("owner_name")
            whom = f", held by {plain(holder)}" if holder else ""
            self._show(f"waiting up to {wait:g} s for {name}{whom}")

    def held(self, lease: Lease, watchdog: Watchdog) -> None:
        """The lease is ours: under which token, and what stops its users if it can't be kept. This line stays."""
        if not self._quiet:
            say(f"holding {lease.token}; in force: {watchdog.describe()}")

    def over(self) -> None:
        """Nothing is waited for any more."""
        if self._shown and self._replacing:
            _write("\r\x1b[K")
        self._shown = False

    def _show(self, line: str) -> None:
        if not self._quiet:
            self._shown = True
            _write(f"\r\x1b[Kleasehold: {line} …" if self._replacing else f"leasehold: {line}\n")


def held_line(name: str, held: HeldElsewhere, lockspace: Lockspace) -> str:
    """One line: who holds the lease, how long ago that host renewed, and what to do."""
    host_id = held.facts.get("owner_host", 0)
    history = lockspace.hosts.get(host_id) if host_id else None
    owner = plain(held.facts.get("owner_name") or (history.name if history else b"")) or "an unknown host"
    ago = held.facts.get("renewed_ago")
    if ago is None and history is not None and history.last_live > history.first_check:
        ago = boot_time() - history.last_live
    if isinstance(held, OwnerMayBeDead):
        seen = f"which last renewed {ago:.1f} s ago" if ago is not None else "which was not seen to renew"
        wait = f"--wait {held.wait + 5:.0f}"
        what = f"if that host is dead, the lease can be taken in {held.wait:.0f} s: {wait} waits for it"
    else:
        seen = f"which renewed {ago:.1f} s ago" if ago is not None else "which is alive"
        what = "end its holder there, or let --wait SECONDS wait for it"
    return f"{name} is held by {owner} (host id {host_id}), {seen}; {what}"
