"""A late write of this host's earlier life over its own block: found by the next acquire, put right, and forgotten."""

from __future__ import annotations

import os

import pytest

from leases.volume import Volume
from paxos.errors import StaleRead
from tests.support.volumes import Joiner, scribble


@pytest.mark.slow
def test_an_older_own_block_is_refused_once_and_settled(volume: Volume, join: Joiner) -> None:
    host = join(volume, 1)
    held = host.acquire("r0")
    area = held.held.lease
    at = area.place.at(area.geometry.block_offset(1))
    with open(volume.path, "rb") as disk:
        earlier = os.pread(disk.fileno(), area.geometry.sector_size, at)
    held.release()
    host.acquire("r0").release()
    scribble(volume, at, earlier)
    with pytest.raises(StaleRead):
        host.acquire("r0")
    host.acquire("r0", wait=10).release()
