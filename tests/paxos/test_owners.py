"""Who holds a lease right now, as owners' lists, `explain` and `show` must say it (ondisk.md 6.6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paxos.area import blocks
from paxos.geometry import Place
from paxos.lease_area import LeaseArea, Scene
from paxos.owners import Owner, owners
from paxos.records import RELEASED, SHARED, Block, Leader
from paxos.resource import Want
from tests.paxos.golden import image
from tests.paxos.test_resource import put_block, put_leader
from tests.support.cluster import Cluster


def scene_of(name: str) -> Scene:
    """A golden area as one read of it shows it."""
    golden = image(name)
    leader = Leader.unpack(golden.data)
    lease = LeaseArea(leader.space_name, leader.resource_name, Place("d"), golden.geometry)
    used = dict(blocks(golden.data, golden.geometry, golden.geometry.max_hosts, "d"))
    return Scene(lease, leader, golden.data[:512], used, bytes(512), leader.num_hosts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("res_512_1m_fresh", []),
        ("res_512_1m_ex_host1", [Owner(1, 1, 1079, shared=False)]),
        ("res_512_1m_released", []),
        ("res_512_1m_sh_host1", [Owner(1, 1, 0, shared=True)]),
        ("res_512_1m_sh_two", [Owner(1, 1, 0, shared=True), Owner(2, 1, 0, shared=True)]),
        ("res_512_1m_converted_ex", [Owner(1, 1, 1081, shared=False)]),
        ("res_512_1m_converted_sh", [Owner(1, 1, 0, shared=True)]),
        ("res_512_1m_sh_released", []),
        ("res_512_1m_takeover", [Owner(1, 1, 1314, shared=False)]),
        ("res_512_1m_contended_other_writer_held", []),
    ],
)
def test_the_reference_s_leases_are_read_rightly(name: str, expected: list[Owner]) -> None:
    """The last: "leader owner is host 2 but it was committed (written) by host 1; host 2 already released"."""
    assert owners(scene_of(name)) == expected


def test_after_contention_a_free_lease_is_not_called_owned() -> None:
    """late-writes.md: "read_resource_owners of the reference reports an owner for a free lease"."""
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    by_another = cluster.leader().changed(write_id=2)
    assert [owner.host_id for owner in cluster.owners()] == [1]
    host.release(held)
    put_leader(cluster, by_another)
    assert cluster.owners() == []


def test_a_release_of_another_version_or_instance_does_not_count() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    host.acquire(cluster.lease)
    block = cluster.block(1)
    for changes in ({"inp2": 7}, {"lver": 0}, {"inp": 9}):
        put_block(cluster, 1, block.changed(flags=RELEASED, **changes))
        assert [owner.host_id for owner in cluster.owners()] == [1], changes


def test_an_owner_that_marks_itself_shared_is_told_once() -> None:
    """6.6: "each host with SHARED (unless it is that owner)"."""
    cluster = Cluster()
    host = cluster.join(1)
    host.acquire(cluster.lease)
    put_block(cluster, 1, replace(cluster.block(1), mode_flags=SHARED, mode_generation=1))
    assert cluster.owners() == [Owner(1, 1, cluster.leader().timestamp, shared=False)]


def test_sharers_are_told_in_the_order_of_host_ids_with_their_generation() -> None:
    cluster = Cluster()
    for host_id in (9, 4):
        cluster.join(host_id).acquire(cluster.lease, Want(shared=True))
    cluster.join(4)
    assert cluster.owners() == [Owner(4, 1, 0, shared=True), Owner(9, 1, 0, shared=True)]


def test_a_timestamp_without_an_owner_is_nobody() -> None:
    cluster = Cluster()
    put_leader(cluster, cluster.leader().changed(timestamp=5, owner_id=0))
    assert cluster.owners() == []


def test_marks_beyond_num_hosts_are_seen() -> None:
    cluster = Cluster(num_hosts=2)
    put_block(cluster, 50, Block().changed(mode_flags=SHARED, mode_generation=3))
    assert cluster.owners() == [Owner(50, 3, 0, shared=True)]
