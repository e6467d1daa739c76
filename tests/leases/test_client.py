"""The client, blocking and async: what a daemon may do to it, and its life with a real one."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import leases
from leases.aclient import AsyncClient
from leases.client import Client, Registration
from leases.daemon.exchange import Owners
from leases.daemon.numbers import Command, ConfigCommand, HostState, ResourceFlag, RestrictFlag, StatusDepth
from leases.daemon.results import (
    AlreadyJoined,
    DaemonGone,
    DaemonRefused,
    DaemonSilent,
    DaemonUnreachable,
    ModeUnchanged,
    OrphanExists,
    UnknownClient,
    refusal,
)
from leases.daemon.wire import BadMessage, Disk, EventMessage, Header, HostEvent, Lockspace, State
from paxos import errors
from paxos.errors import LeaseholdError
from paxos.geometry import MIB, Geometry
from tests.support.fake_daemon import Answer, FakeDaemon
from tests.support.leasehold_daemon import DAEMONS
from tests.support.peers import SanlockDaemon, zeroed_image

LEASE = "LS:RA:/p:1M"


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    with FakeDaemon() as daemon:
        yield daemon


@pytest.fixture(params=["blocking", "async"])
def ask(request: pytest.FixtureRequest, fake: FakeDaemon) -> Callable[..., Any]:
    """Call a method of either client by its name."""

    def blocking(method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        return getattr(Client(f"{fake.run_dir}/sanlock.sock", timeout), method)(*args, **kwargs)

    def in_a_loop(method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        client = AsyncClient(f"{fake.run_dir}/sanlock.sock", timeout)
        call: Awaitable[Any] = getattr(client, method)(*args, **kwargs)

        async def main() -> Any:
            return await call

        return asyncio.run(main())

    return blocking if request.param == "blocking" else in_a_loop


def answering(result: int, data2: int = 0, body: bytes = b"", **changed: Any) -> Answer:
    def answer(header: Header, payload: bytes) -> bytes:
        reply = header.reply(result, data2, len(body))
        for field, value in changed.items():
            object.__setattr__(reply, field, value)
        return reply.pack() + body

    return answer


# ------------------------------------------------------------------------------------------------ bad daemons


def test_nobody_listening_is_a_typed_error_with_the_systems_reason(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="No such file") as missing:
        leases.connect(tmp_path)
    assert missing.value.code == -2

    async def main() -> None:
        await leases.aconnect(tmp_path)

    with pytest.raises(DaemonUnreachable, match="No such file"):
        asyncio.run(main())


@pytest.mark.parametrize("kept", [b"", b"\0" * 16, Header(Command.VERSION).pack()[:31]])
def test_a_connection_that_ends_early_is_not_an_answer(kept: bytes, fake: FakeDaemon, ask: Any) -> None:
    def answer(header: Header, payload: bytes) -> bytes | None:
        fake.answer = lambda header, payload: None
        return kept or None

    fake.answer = answer
    threading.Timer(0.3, fake.hang_up).start()
    with pytest.raises(DaemonGone):
        ask("version")


def test_a_structure_that_is_cut_off_is_not_an_answer(fake: FakeDaemon, ask: Any) -> None:
    fake.answer = answering(0, 2, Lockspace(b"LS").pack())
    threading.Timer(0.3, fake.hang_up).start()
    with pytest.raises(DaemonGone, match="GET_LOCKSPACES"):
        ask("lockspaces")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"magic": 0x12345678}, "magic 0x12345678"),
        ({"version": 0x00020000}, "version 0x20000"),
        ({"command": Command.STATUS}, "it answers command 5"),
    ],
)
def test_an_answer_to_something_else_is_refused(changed: Any, what: str, fake: FakeDaemon, ask: Any) -> None:
    fake.answer = answering(0, **changed)
    with pytest.raises(BadMessage, match=what):
        ask("align", "/p")


def test_absurd_announcements_are_refused_before_they_are_read(fake: FakeDaemon, ask: Any) -> None:
    fake.answer = answering(0, 0xFFFFFFFF)
    with pytest.raises(BadMessage, match="bytes announced"):
        ask("hosts", "LS")
    fake.answer = answering(0x7FFFFFFF)
    with pytest.raises(BadMessage, match="bytes announced"):
        ask("log")


@pytest.mark.parametrize(
    "record",
    [
        b"\0" * 80,
        b"\1" + b"\xff" * 79,
        State.layout.pack(1, 0, 0, 0, b"", 0xFFFFFFFF),
        State.layout.pack(5, 0, 0, 0, b"", 2) + b"a\0",
        State.layout.pack(4, 0, 0, 0, b"", 0) + b"\xff" * 128,
    ],
)
def test_status_records_that_make_no_sense_are_refused(record: bytes, fake: FakeDaemon, ask: Any) -> None:
    def answer(header: Header, payload: bytes) -> bytes:
        threading.Timer(0.2, fake.hang_up).start()
        return header.reply(0).pack() + record

    fake.answer = answer
    with pytest.raises(BadMessage):
        ask("status")


def test_a_daemon_that_says_nothing_is_waited_for_only_so_long(fake: FakeDaemon, ask: Any) -> None:
    fake.answer = lambda header, payload: b""
    with pytest.raises(DaemonSilent, match=r"within 0\.1 s"):
        ask("add_lockspace", "LS:1:/p:0", timeout=0.1)
    fake.answer = lambda header, payload: header.pack()[:8]
    with pytest.raises(DaemonSilent):
        ask("add_lockspace", "LS:1:/p:0", timeout=0.1)


def test_a_cancelled_registration_is_closed(fake: FakeDaemon) -> None:
    async def main() -> None:
        client = AsyncClient(f"{fake.run_dir}/sanlock.sock")
        fake.answer = lambda header, payload: b""
        async with await client.register() as me:
            call = asyncio.create_task(me.acquire(LEASE))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises((DaemonGone, RuntimeError)):
                await me.release(LEASE)

    asyncio.run(main())


def test_more_than_eight_resources_are_refused_before_anything_is_sent(fake: FakeDaemon) -> None:
    me = Client(f"{fake.run_dir}/sanlock.sock").register()
    fake.wait_for_requests(1)
    with pytest.raises(errors.InvalidUse, match="9 resources"):
        me.acquire(*[LEASE] * 9)
    with pytest.raises(errors.InvalidUse, match="9 resources"):
        me.release(*[LEASE] * 9)
    assert len(fake.requests) == 1
    me.close()


def test_an_event_may_be_waited_for_again_after_a_time_out(fake: FakeDaemon) -> None:
    client = Client(f"{fake.run_dir}/sanlock.sock")
    message = EventMessage(HostEvent(1, 2, 3, 4), 5, 6)
    with client.events("LS") as events:
        with pytest.raises(DaemonSilent):
            events.next(timeout=0.05)
        fake.say(message.pack())
        assert events.next(timeout=5) == message

    async def main() -> None:
        client = AsyncClient(f"{fake.run_dir}/sanlock.sock")
        async with await client.events("LS") as events:
            fake.say(message.pack()[:40])
            with pytest.raises(DaemonSilent):
                await events.next(timeout=0.05)
            fake.say(message.pack()[40:])
            assert await anext(events) == message

    asyncio.run(main())


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("command", "code", "kind", "message"),
    [
        (
            Command.ACQUIRE,
            -243,
            errors.LeaseHeld,
            "ACQUIRE LS:RA: Lease is held by another host (ACQUIRE_IDLIVE, -243)",
        ),
        (Command.ACQUIRE, -17, errors.AlreadyHeld, "LS:RA is already held on this host"),
        (Command.ACQUIRE, -28, errors.NotJoined, "lockspace LS:RA is not joined, or is failing"),
        (Command.ACQUIRE, -2, errors.CannotOpen, "cannot open LS:RA: No such file or directory"),
        (Command.ACQUIRE, -117, OrphanExists, "LS:RA is an orphan"),
        (Command.CONVERT, -11, errors.SharedHolders, "CONVERT LS:RA: Resource temporarily unavailable (EAGAIN, -11)"),
        (Command.CONVERT, -2, errors.NotHeld, "LS:RA is not held"),
        (Command.CONVERT, -114, ModeUnchanged, "LS:RA is in that mode already"),
        (Command.RELEASE, -1, errors.NotHeld, "LS:RA is not held"),
        (Command.ADD_LOCKSPACE, -17, AlreadyJoined, "LS:RA is joined already"),
        (Command.ADD_LOCKSPACE, -202, errors.IOTimeout, "ADD_LOCKSPACE LS:RA: IO timeout (AIO_TIMEOUT, -202)"),
        (Command.INQUIRE, -3, UnknownClient, "INQUIRE LS:RA: no such process is registered"),
        (Command.REM_LOCKSPACE, -16, errors.TryAgain, "REM_LOCKSPACE LS:RA: Device or resource busy (EBUSY, -16)"),
        (Command.ALIGN, -95, DaemonRefused, "ALIGN LS:RA: Operation not supported (ENOTSUP, -95)"),
        (Command.ALIGN, -299, DaemonRefused, "ALIGN LS:RA: unknown result (UNKNOWN, -299)"),
    ],
)
def test_a_result_becomes_the_error_of_its_meaning(
    command: Command, code: int, kind: type[LeaseholdError], message: str
) -> None:
    error = refusal(command, code, "LS:RA")
    assert type(error) is kind
    assert (error.code, str(error)) == (code, message)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.code, str(again)) == (kind, code, message)


# --------------------------------------------------------------------------------------------- with a real daemon


@pytest.fixture
def volume(images: Path) -> str:
    return zeroed_image(images / "v.img", 8)


@pytest.fixture(params=["sanlock", "leasehold"])
def daemon(request: pytest.FixtureRequest) -> Iterator[SanlockDaemon]:
    """The real daemon, and our own."""
    with DAEMONS[request.param]("hostA") as running:
        yield running


@pytest.mark.peers
@pytest.mark.slow
def test_a_life_with_a_daemon(daemon: SanlockDaemon, volume: str) -> None:
    client = leases.connect(daemon.run_dir)
    assert client.version().protocol == 1
    assert client.status(StatusDepth.DAEMON).daemon["our_host_name"] == "hostA"
    assert client.align(volume) == MIB

    client.write_lockspace(f"LS:0:{volume}:0", Geometry(512, MIB), io_timeout=1)
    client.write_resource(f"LS:RA:{volume}:1M")
    client.write_resource(f"LS:RB:{volume}:2M", num_hosts=8)
    formatted = client.read_lockspace(f":0:{volume}:0")
    assert (formatted.lockspace.name, formatted.io_timeout) == (b"LS", 1)
    assert client.read_resource(f"::{volume}:2M").name == b"RB"
    with pytest.raises(errors.LeaderMagicError):
        client.read_resource(f"::{volume}:3M")

    assert client.inquire_lockspace(f"LS:1:{volume}:0") is False
    client.add_lockspace(f"LS:1:{volume}:0", io_timeout=1, wait=False)
    assert client.inquire_lockspace(f"LS:1:{volume}:0") is None
    assert client.inquire_lockspace(f"LS:1:{volume}:0", wait=True) is True
    with pytest.raises(AlreadyJoined):
        client.add_lockspace(f"LS:1:{volume}:0")
    assert [(found.name, found.host_id, found.disk) for found in client.lockspaces()] == [(b"LS", 1, Disk(volume))]
    hosts = within_a_while(lambda: client.hosts("LS"))
    assert [(host.host_id, host.state) for host in hosts] == [(1, HostState.LIVE)]
    assert client.host_status("LS")[0].values["owner_name"] == "hostA"
    assert int(client.renewals("LS")[0].values["read_ms"]) == 0
    client.configure("LS", ConfigCommand.USED)
    client.configure("LS", ConfigCommand.UNUSED)

    held_leases(client, volume)
    index(client, volume)

    assert "LS" in client.log()
    with pytest.raises(errors.TryAgain):
        client.shutdown()
    client.remove_lockspace(f"LS:1:{volume}:0", unused=True)
    with pytest.raises(errors.NotJoined):
        client.remove_lockspace(f"LS:1:{volume}:0")
    client.shutdown()
    daemon.wait(30)


def within_a_while(ask: Callable[[], Any]) -> Any:
    while True:
        try:
            return ask()
        except errors.TryAgain:
            time.sleep(0.2)


def held_leases(client: Client, volume: str) -> None:
    first, second = f"LS:RA:{volume}:1M", f"LS:RB:{volume}:2M"
    with client.register() as me:
        me.acquire(first, lvb=True)
        client.set_lvb(first, b"hello")
        assert client.get_lvb(first)[:6] == b"hello\0"
        with pytest.raises(errors.AlreadyHeld):
            me.acquire(second, first)
        me.acquire(second, shared=True)
        assert [(held.name, held.shared) for held in me.held()] == [(b"RA", False), (b"RB", True)]
        assert client.process(os.getpid()).held() == me.held()
        owners: Owners = client.resource_owners(first)
        assert [host.host_id for host in owners.hosts] == [1]
        with pytest.raises(ModeUnchanged):
            me.convert(second, shared=True)
        me.convert(second)
        me.killpath("/bin/true", "an argument", with_pid=True)
        me.restrict(RestrictFlag.SIGKILL)
        with pytest.raises(errors.RequestOld):
            client.request(first, lver=1)
        client.examine_resource(first)
        client.examine_lockspace(f"LS:1:{volume}:0")
        records = client.status().resources
        assert {record.state.name for record in records} == {b"RA", b"RB"}
        assert all(record.about is not None for record in records)
        me.release(first)
        with pytest.raises(errors.NotHeld):
            me.release(first)
        me.release_all()
        assert me.held() == []
        me.acquire(first)
        me.rename(first, f"LS:RZ:{volume}:1M")
        me.acquire(f"LS:RZ:{volume}:1M")
        me.rename(f"LS:RZ:{volume}:1M", first)
        with pytest.raises(errors.LverMismatch):
            me.acquire(f"{first}:77")
    with client.lease(first) as lease:
        assert isinstance(lease, Registration)
        assert client.read_resource(first).name == b"RA"
    orphan(client, first)
    with pytest.raises(UnknownClient):
        client.process(1).held()


def orphan(client: Client, lease: str) -> None:
    with client.register() as me:
        me.acquire(lease, persistent=True)
    with client.register() as me:
        while not any(record.values["list"] == "orphan" for record in client.status().resources):
            time.sleep(0.05)
        with pytest.raises(OrphanExists):
            me.acquire(lease)
        me.acquire(lease, orphan=True)
        assert [held.flags for held in me.held()] == [int(ResourceFlag.LVER)]
        me.release(lease)
        assert me.release_orphans("LS") == 0


def index(client: Client, volume: str) -> None:
    place = f"LS:{volume}:4M"
    client.format_index(place, Geometry(512, MIB))
    assert client.lookup(place).offset == 6 * MIB
    made = client.create_resource(place, "V1")
    assert (made.name, made.offset) == (b"V1", 6 * MIB)
    assert client.lookup(place, "V1").offset == 6 * MIB
    assert client.lookup(place, ":6M").name == b"V1"
    with pytest.raises(errors.NoSuchLease):
        client.lookup(place, "V2")
    client.update_index(place, "V2:7M")
    client.update_index(place, "V2:7M", remove=True)
    client.delete_resource(place, "V1")
    client.rebuild_index(place)
    with pytest.raises(errors.IndexOffsetError):
        client.lookup(place, ":1000")


@pytest.mark.peers
@pytest.mark.slow
def test_a_lease_outlives_neither_its_connection_nor_two_owners(daemon: SanlockDaemon, volume: str) -> None:
    async def main() -> None:
        client = await leases.aconnect(daemon.run_dir)
        await client.write_lockspace(f"LS:0:{volume}:0", io_timeout=1)
        lease = f"LS:RA:{volume}:1M"
        await client.write_resource(lease)
        await client.add_lockspace(f"LS:1:{volume}:0", io_timeout=1)
        first, second = await client.register(), await client.register()
        await first.acquire(lease)
        with pytest.raises(errors.AlreadyHeld):
            await second.acquire(lease)
        first.close()
        while True:
            try:
                await second.acquire(lease)
                break
            except (errors.AlreadyHeld, errors.TryAgain):
                await asyncio.sleep(0.05)
        assert [held.name for held in await second.held()] == [b"RA"]
        # commands of several tasks on one registration take turns
        states = await asyncio.gather(*(second.state() for _ in range(5)))
        assert len(set(states)) == 1
        await second.release(lease)
        async with client.lease(lease) as third:
            assert [held.name for held in await third.held()] == [b"RA"]
        await client.shutdown(force=True)

    asyncio.run(main())
    daemon.wait(30)


def test_importing_the_package_or_the_client_is_light() -> None:
    script = "import sys, leases, leases.client; leases.connect; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "click", "rich", "asyncio"} & set(printed.stdout.split())
