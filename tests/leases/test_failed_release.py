"""Releases that fail before their first write: nobody here has the lease, so it must not stay ours on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from leases.volume import Volume
from paxos import resource
from paxos.errors import DiskError, InvalidUse
from tests.support.volumes import Joiner

pytestmark = pytest.mark.slow


def test_a_value_that_is_too_long_is_refused_and_the_lease_is_given_back(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    lease = first.acquire("r0")
    with pytest.raises(InvalidUse):
        lease.release(lvb=b"x" * (volume.index.geometry.sector_size + 1))
    second.acquire("r0", wait=10).release()
    first.acquire("r0", wait=10).release()


def test_a_shared_lease_whose_block_can_t_be_read_is_given_back(
    volume: Volume, join: Joiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = join(volume, 1), join(volume, 2)
    lease = first.acquire("r0", shared=True)

    def fail_once(*_: Any) -> Iterator[Any]:
        monkeypatch.undo()
        yield from ()
        raise DiskError(operation="read", length=512, disk=volume.path, offset=0)

    monkeypatch.setattr(resource, "read_block", fail_once)
    with pytest.raises(DiskError):
        lease.release()
    second.acquire("r0", wait=10).release()
