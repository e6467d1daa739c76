"""Asking another host for its lease, and honouring it (ondisk.md section 7, 10.6)."""

from __future__ import annotations

from typing import Any

import pytest

from paxos import request as request_module
from paxos.errors import (
    BadRecord,
    LeaderChecksumError,
    RequestMagicError,
    RequestOld,
    RequestSuperseded,
    RequestVersionError,
)
from paxos.geometry import MAX_HOSTS, MIB, Geometry
from paxos.records import Request
from paxos.request import Asked, Force
from paxos.resource import Held, Want
from tests.paxos.comparison import without_padding
from tests.paxos.golden import image
from tests.support.cluster import Cluster, Host

GEOMETRIES = [pytest.param(Geometry(*sizes), id=f"{sizes[0]}-{sizes[1] // MIB}M") for sizes in MAX_HOSTS]


def held_by_1(geometry: Geometry | None = None, shared: bool = False) -> tuple[Cluster, Host, Held]:
    cluster = Cluster(geometry)
    host = cluster.join(1)
    return cluster, host, host.acquire(cluster.lease, Want(shared=shared))


def ask(cluster: Cluster, lver: int | None, force: Force) -> Asked:
    asked: Asked = cluster.world.run(request_module.request(cluster.lease, lver, force, 1.0))
    return asked


def examine(cluster: Cluster, held: Held) -> Force:
    force: Force = cluster.world.run(request_module.examine(held, 1.0))
    return force


def record(cluster: Cluster) -> Request:
    return Request.unpack(cluster.bytes_of(cluster.lease.place.at(cluster.geometry.request_offset), 24))


def put(cluster: Cluster, request: Request) -> None:
    at = cluster.lease.place.at(cluster.geometry.request_offset)
    cluster.world.disks["d"][at : at + 24] = request.pack()


# --- asking ---


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_asking_reads_leader_and_request_and_writes_the_request(geometry: Geometry) -> None:
    """10.6: "R 0+512; R 512+512; W 512+512"."""
    cluster, _, _ = held_by_1(geometry)
    cluster.world.io.clear()
    assert ask(cluster, 5, Force.GRACEFUL) == Asked(owner=1, generation=1)
    at, size = cluster.lease.place.offset, geometry.sector_size
    assert cluster.world.io == [("R", at, size), ("R", at + size, size), ("W", at + size, size)]
    assert (record(cluster).lver, record(cluster).force_mode) == (5, 2)


def test_the_request_sector_is_the_reference_s_byte_for_byte() -> None:
    golden = without_padding(image("res_512_1m_request").data, 512)
    cluster, _, _ = held_by_1()
    ask(cluster, 5, Force.GRACEFUL)
    assert cluster.bytes_of(cluster.lease.place.offset + 512, 512) == golden[512:1024]


def test_nobody_is_asked_for_a_free_lease() -> None:
    """7.1 step 1: "timestamp 0 -> success, owner none, nothing written"."""
    cluster = Cluster()
    cluster.world.io.clear()
    assert ask(cluster, None, Force.FORCE) == Asked(0, 0)
    assert [io[0] for io in cluster.world.io] == ["R"]


def test_the_next_version_is_one_above_the_leader_s() -> None:
    cluster, _, held = held_by_1()
    ask(cluster, None, Force.FORCE)
    assert record(cluster).lver == held.lver + 1


@pytest.mark.parametrize("lver", [0, 1])
def test_a_version_that_is_reached_already_is_too_old_to_ask_for(lver: int) -> None:
    """7.1 step 1: "leader.lver >= lver -> -272"."""
    cluster, _, _ = held_by_1()
    with pytest.raises(RequestOld) as raised:
        ask(cluster, lver, Force.FORCE)
    assert raised.value.code == -272 and record(cluster).lver == 0


def test_a_larger_version_that_was_asked_for_stays() -> None:
    """7.1 step 2: "Pending req.lver > wanted -> -273 (equal is fine ...)"."""
    cluster, _, _ = held_by_1()
    ask(cluster, 7, Force.GRACEFUL)
    with pytest.raises(RequestSuperseded) as raised:
        ask(cluster, 6, Force.FORCE)
    assert raised.value.code == -273
    ask(cluster, 7, Force.FORCE)
    assert (record(cluster).lver, record(cluster).force_mode) == (7, 1)


def test_version_0_without_force_clears_whatever_was_asked_for() -> None:
    cluster, _, _ = held_by_1()
    ask(cluster, 7, Force.FORCE)
    cluster.world.io.clear()
    assert ask(cluster, 0, Force.NONE) == Asked(0, 0)
    assert (record(cluster).lver, record(cluster).force_mode) == (0, 0)
    assert [io[0] for io in cluster.world.io] == ["R", "W"], "the leader is not read"


@pytest.mark.parametrize(
    ("bad", "error", "number"),
    [
        (Request(magic=1, lver=3), RequestMagicError, -270),
        (Request(version=0x00020001), RequestVersionError, -271),
    ],
)
def test_what_is_no_request_record_is_not_written_over(bad: Request, error: type[BadRecord], number: int) -> None:
    cluster, _, held = held_by_1()
    put(cluster, bad)
    with pytest.raises(error) as raised:
        ask(cluster, None, Force.FORCE)
    assert raised.value.code == number and record(cluster) == bad
    with pytest.raises(error):
        examine(cluster, held)


def test_a_damaged_leader_is_not_asked_about() -> None:
    cluster, _, _ = held_by_1()
    cluster.world.disks["d"][cluster.lease.place.offset + 40] ^= 1
    with pytest.raises(LeaderChecksumError):
        ask(cluster, None, Force.FORCE)
    assert record(cluster).lver == 0


def test_padding_is_undefined_when_read_and_zero_when_written() -> None:
    """2.6: "the reference leaks memory content here"."""
    cluster, _, _ = held_by_1()
    put(cluster, Request(padding=0xDEADBEEF))
    ask(cluster, None, Force.FORCE)
    assert record(cluster).padding == 0


# --- being asked ---


@pytest.mark.parametrize(
    ("fields", "force"),
    [
        ({"lver": 2, "force_mode": 1}, Force.FORCE),
        ({"lver": 9, "force_mode": 2}, Force.GRACEFUL),
        ({"lver": 2, "force_mode": 0}, Force.NONE),
        ({"lver": 2, "force_mode": 3}, Force.NONE),  # 7.3: "Other values: ignored"
        ({"lver": 0, "force_mode": 1}, Force.NONE),
        ({"lver": 1, "force_mode": 1}, Force.NONE),  # satisfied: 13 item 13, "clear or ignore satisfied requests"
    ],
)
def test_an_exclusive_holder_is_asked_only_for_a_version_above_its_own(fields: dict[str, Any], force: Force) -> None:
    cluster, _, held = held_by_1()
    put(cluster, Request(**fields))
    assert examine(cluster, held) is force


def test_a_shared_holder_is_never_asked() -> None:
    """13 item 13: the reference signalled process id 0 and died of it."""
    cluster, _, held = held_by_1(shared=True)
    put(cluster, Request(lver=99, force_mode=1))
    assert examine(cluster, held) is Force.NONE


def test_a_golden_request_is_understood() -> None:
    """res_512_1m_request: "a pending graceful request for version 5 from host 2"."""
    cluster, _, held = held_by_1()
    at = cluster.lease.place.offset + 512
    cluster.world.disks["d"][at : at + 512] = image("res_512_1m_request").data[512:1024]
    assert examine(cluster, held) is Force.GRACEFUL


def test_an_examination_is_one_read() -> None:
    cluster, _, held = held_by_1()
    cluster.world.io.clear()
    examine(cluster, held)
    assert cluster.world.io == [("R", cluster.lease.place.offset + 512, 512)]
