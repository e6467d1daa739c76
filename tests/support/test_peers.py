"""The fixtures themselves: real daemons come up, hold leases, crash, and see each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.peers import (
    MIB,
    PeerError,
    SanlockDaemon,
    direct_dump,
    direct_init,
    read_leader,
    zeroed_image,
)

pytestmark = [pytest.mark.peers, pytest.mark.slow]


def test_a_real_daemon_holds_a_lease_for_its_client_and_releases_it_on_exit(
    sanlock_daemon: SanlockDaemon, images: Path
) -> None:
    volume = zeroed_image(images / "v.img", 4)
    resource = f"LS:RA:{volume}:{MIB}"
    direct_init(f"LS:0:{volume}:0")
    direct_init(resource)
    sanlock_daemon.add_lockspace("LS", 1, volume)
    holder = sanlock_daemon.acquire_with(resource)
    leader = read_leader(resource)
    assert (leader["owner_id"], leader["lver"], leader["space_name"]) == (1, 1, "LS")
    assert holder.inquire()[0]["resource"] == b"RA"
    with pytest.raises(PeerError) as refused:
        sanlock_daemon.acquire_with(resource)
    assert refused.value.details == (17, "Sanlock resource not acquired", "File exists")
    holder.exit()
    sanlock_daemon.rem_lockspace("LS", 1, volume)
    assert "RA" in direct_dump(volume, MIB, MIB)


def test_two_daemons_are_two_hosts_and_one_may_crash(
    sanlock_daemons: Callable[..., SanlockDaemon], images: Path
) -> None:
    volume = zeroed_image(images / "v.img", 2)
    direct_init(f"LS:0:{volume}:0")
    direct_init(f"LS:RA:{volume}:{MIB}")
    a, b = sanlock_daemons("hostA"), sanlock_daemons("hostB")
    a.add_lockspace("LS", 1, volume)
    b.add_lockspace("LS", 2, volume)
    holder = a.acquire_with(f"LS:RA:{volume}:{MIB}")
    with pytest.raises(PeerError) as refused:
        b.acquire_with(f"LS:RA:{volume}:{MIB}")
    assert refused.value.details[0] == -243
    a.kill()
    assert holder.alive and not a.running
    assert read_leader(f"LS:1:{volume}:0")["timestamp"] != 0  # nothing was released
