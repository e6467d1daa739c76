"""The recorded conversations of the reference's daemon and its clients, with our daemon in its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.client import Client
from leases.daemon.numbers import Command, ResourceFlag
from leases.daemon.wire import Disk, Options, Resource, request
from tests.support import transcripts
from tests.support.leasehold_daemon import LeaseholdDaemon
from tests.support.transcripts import Replay

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
def place() -> Iterator[Path]:
    made = transcripts.directory()
    for name, size in (("ls.img", 16), ("ls2.img", 1), ("p.img", 32), ("rx.img", 64)):
        (made / name).write_bytes(bytes(size * MIB))
    yield made
    transcripts.remove(made)


Replayed = Callable[..., list[str]]


@pytest.fixture
def replayed(place: Path, leasehold_daemon: LeaseholdDaemon) -> Replayed:
    """Replay a file against a fresh daemon; what was answered otherwise than recorded."""

    def replay(
        name: str,
        different: dict[str, str],
        stage: dict[str, Callable[[Replay], None]],
        order: dict[str, list[int]] | None = None,
    ) -> list[str]:
        run = Replay(leasehold_daemon.socket_path, place, different, stage, order or {})
        try:
            run.run(transcripts.load(name))
        finally:
            run.close()
        return run.problems

    return replay


def client_of(run: Replay) -> Client:
    return Client(str(run.socket_path))


def joined(run: Replay, io_timeout: int = 1) -> None:
    """What the recordings call LS, with three leases after it."""
    client = client_of(run)
    client.write_lockspace(f"LS:0:{run.place}/ls.img:0", io_timeout=io_timeout)
    for number, name in enumerate(("RA", "RB", "RC"), 1):
        client.write_resource(f"LS:{name}:{run.place}/ls.img:{number}M")
    client.add_lockspace(f"LS:1:{run.place}/ls.img:0", io_timeout)


def test_formatting_reading_and_errors_without_a_lockspace(replayed: Replayed) -> None:
    assert_none(replayed("01-cli-format-read-errors.json", {}, {}))


def test_edge_cases_of_the_protocol(replayed: Replayed) -> None:
    different = {
        "bad_magic": "what is no message ends the connection",
        "version_major": "answered EOPNOTSUPP instead of never",
        "unknown_cmd": "answered EOPNOTSUPP instead of never",
        "cmd_0": "answered EOPNOTSUPP instead of never",
        "unknown_cmd_payload": "answered EOPNOTSUPP instead of never, its payload skipped",
        "set_lvb_4097": "the payload is skipped, so the connection stays in step",
        "get_lvb_data2_not_held": "the length counts what is sent",
    }
    stage = {"version": lambda run: joined(run, 2)}
    assert_none(replayed("06-raw-edge-cases.json", different, stage))


def test_the_resource_index(replayed: Replayed) -> None:
    assert_none(replayed("05-rindex.json", {}, {"lookup_unformatted": joined}))


def test_lockspaces_hosts_and_their_settings(replayed: Replayed) -> None:
    def prepare(run: Replay) -> None:
        client_of(run).write_lockspace(f"LS:0:{run.place}/ls.img:0", io_timeout=2)

    different = dict.fromkeys(
        ("gets", "host_status", "host_status_all", "py_get_hosts"), "a second host took part in the recording"
    )
    different["async_add_inq_rem[9]"] = "removing begins at once, not at the daemon's next look"
    assert_none(replayed("02-lockspace.json", different, {"add_lockspace_bad": prepare}))


def assert_none(problems: list[str]) -> None:
    assert not problems, "\n".join(problems)


def acquiring(run: Replay, name: str, offset_mib: int, flags: int = 0) -> bytes:
    """The request that takes a lease on the own connection."""
    disk = Disk(f"{run.place}/ls.img", offset_mib * MIB)
    payload = Resource(b"LS", name.encode(), (disk,), flags).pack_with_disks() + Options().pack()
    return request(Command.ACQUIRE, payload, data=1, data2=-1)


def test_registered_clients_and_their_leases(replayed: Replayed) -> None:
    def held_by_another(run: Replay) -> None:
        run.register(26029, acquiring(run, "RA", 1))

    def orphaned(run: Replay) -> None:
        run.register(26068, acquiring(run, "RA", 1, ResourceFlag.PERSISTENT))
        run.end(26068)
        until(lambda: states_of(run) == ["orphan"])

    def ended(run: Replay) -> None:
        run.end(26029)
        until(lambda: states_of(run) == [])

    def other_client(run: Replay) -> None:
        run.end(26073)
        run.register(26113)
        until(lambda: states_of(run) == ["orphan"])

    different = {
        "name_escaping": "a lease whose path has a space is told as any other",
        "acquire_held_other_host": "a second host took part in the recording",
        "read_owners_sh": "as above",
        "orphan_only": "a lease that is no orphan is refused",
    }
    stage = {
        "acquire_ex_cycle": lambda run: joined(run, 2),
        "inquire_pid": held_by_another,
        "inquire_dead_pid": ended,
        "status_orphan": orphaned,
        "acquire_orphan_noflag": lambda run: run.register(26073),
        "release_orphan": other_client,
        "orphan_only": lambda run: run.end(26113),
    }
    order = {
        "py_acquire_lvb": [0, 1, 2, 3, 4, 5, 0, 0, 6, 0, 7, 0, 0, 0, 8, 0, 9],
        "shared_two_pids_same_host": [0, 1, 1, 0, 1, 0],
    }
    assert_none(replayed("03-resources.json", different, stage, order))


def test_events_and_requests(replayed: Replayed) -> None:
    different = {
        "get_event": "a second host took part in the recording",
        "request": "a second host took part in the recording",
    }
    assert_none(replayed("04-events-requests.json", different, {"reg_event_errors": lambda run: joined(run, 2)}))


def test_what_lock_managers_do(replayed: Replayed) -> None:
    def lease_at_version_15(run: Replay) -> None:
        joined(run)
        with client_of(run).register() as registered:
            for _ in range(15):
                registered.acquire(f"LS:RA:{run.place}/ls.img:1M")
                registered.release(f"LS:RA:{run.place}/ls.img:1M")

    def block_left_by_others(run: Replay) -> None:
        with client_of(run).register() as registered:
            registered.acquire(f"LS:RA:{run.place}/ls.img:1M", lvb=True)
            client_of(run).set_lvb("LS:RA", b"hello")
            registered.release(f"LS:RA:{run.place}/ls.img:1M")

    different = {
        "two_disks": "leases on several disks are refused",
        "no_daemon": "nobody is there to answer",
    }
    order = {"lvm_lock_sequence": [0, 1, 1, 2, 1, 3, 4, 1, 1, 1, 5]}
    stage = {"lockmanager_sequence": lease_at_version_15, "lvm_lock_sequence": block_left_by_others}
    assert_none(replayed("07-client-sequences.json", different, stage, order))


def states_of(run: Replay) -> list[str]:
    return [record.values["list"] for record in client_of(run).status().resources]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
