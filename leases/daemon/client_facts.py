"""What the recovery of a lockspace must know of a client: its kill path, and the signals that it must not get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leases.daemon.clients import Client
from leases.daemon.numbers import RestrictFlag

if TYPE_CHECKING:
    from leases.keeper.recovery import Users


def note(users: Users, client: Client) -> None:
    """Put them down with the client's entry among the users of a lockspace, if it has one."""
    user = users.get(client.pid)
    if user is not None:
        user.holder.has_kill_path = client.kill_path is not None
        user.holder.never_kill = bool(client.restricted & RestrictFlag.SIGKILL)
        user.holder.never_terminate = bool(client.restricted & RestrictFlag.SIGTERM)
