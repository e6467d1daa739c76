"""`leases.sanlock` beside the real module: same calls, same bytes on the wire, same results and exceptions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leases import sanlock
from leases.daemon.wire import Disk, Header, Host, Lockspace
from tests.support.fake_daemon import Answer, FakeDaemon, succeed
from tests.support.leasehold_daemon import LeaseholdDaemon
from tests.support.peers import MIB, SYSTEM_PYTHON, PeerError, PeerProcess, SanlockDaemon, zeroed_image

pytestmark = pytest.mark.peers

OURS = {"module": "leases.sanlock", "python": sys.executable}
REAL: dict[str, str] = {}

DISKS = [("/p", 1)]
NAMES = (b"LS", b"RA", DISKS)
FD = "the registered descriptor"

#: Python and C count arguments in different words
_COUNTING = re.compile("takes|missing|unexpected keyword|invalid keyword|argument 3 must be list, not (bytes|int)")

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def call(function: str, *args: Any, **kwargs: Any) -> Call:
    return function, args, kwargs


def outcome(process: PeerProcess, fd: int, function: str, args: Any, kwargs: Any) -> object:
    """The result or the exception; of a TypeError of argument parsing only that it is one."""
    args = tuple(fd if arg == FD else arg for arg in args)
    kwargs = {key: fd if value == FD else value for key, value in kwargs.items()}
    try:
        return process.call(function, *args, **kwargs)
    except PeerError as error:
        return error.kind, () if _COUNTING.search(str(error.details)) else error.details


# ------------------------------------------------------------------------------ without a daemon: bytes, errors

SIZES: list[dict[str, Any]] = [
    {},
    {"align": 8 * MIB, "sector": 4096},
    {"align": 5},
    {"align": -1},
    {"align": (1 << 32) + MIB},
    {"align": 1 << 63},
    {"align": "x"},
    {"align": 3.0},
    {"sector": 5},
    {"sector": (1 << 32) + 512},
    {"sector": "x"},
]
LOCKSPACES: list[tuple[Any, ...]] = [
    (b"LS", 1, "/p"),
    (b"LS", 1, b"/p", 512),
    (b"LS", 1 << 64, "/p", -1),
    (b"L" * 60, -1, "/p", 1 << 64),
    (b"L\0S", True, "/p"),
    (b"", 0, ""),
    ("LS", 1, "/p"),
    (b"LS", "1", "/p"),
    (b"LS", 1.0, "/p"),
    (b"LS", 1, 5),
    (b"LS", 1, "/p\0q"),
    (b"LS", 1, "/p", "0"),
    (b"LS", 1, "/p", 1.5),
    (b"LS", 1),
    (b"LS", 1, "/p", 0, 1, 1, 1, 1),
]
RESOURCES: list[tuple[Any, ...]] = [
    NAMES,
    (b"LS", b"RA", [("/p", 1), (b"/q", 2), ("/r", 1 << 64), ("/s", -1)]),
    (b"L" * 60, b"R" * 48, DISKS),
    (b"", b"", DISKS),
    (b"LS", b"RA", []),
    (b"LS", b"RA", DISKS * 5),
    (b"LS", b"RA", [("", 0)]),
    (b"LS", b"RA", [("/p", 1), ("", 0)]),
    (b"LS", b"RA", [("/p",)]),
    (b"LS", b"RA", [("/p", 1, 2)]),
    (b"LS", b"RA", [["/p", 1]]),
    (b"LS", b"RA", [("/p", "1")]),
    (b"LS", b"RA", [("/p", None)]),
    (b"LS", b"RA", [(5, 5)]),
    (b"LS", b"RA", [("/p\0q", 5)]),
    (b"LS", b"RA", [("x" * 1023, 5)]),
    (b"LS", b"RA", [("x" * 1024, 5)]),
    (b"LS", b"RA", (("/p", 1),)),
    (b"LS", b"RA", None),
    ("LS", b"RA", DISKS),
    (b"LS", "RA", DISKS),
    (b"LS", b"RA"),
]
TARGETS: list[dict[str, Any]] = [
    {},
    {"slkfd": FD},
    {"pid": 1},
    {"pid": 0},
    {"pid": -5},
    {"slkfd": FD, "pid": 5},
    {"slkfd": -5},
    {"slkfd": 99},
    {"slkfd": 0},
    {"slkfd": 1 << 31},
    {"pid": -(1 << 31) - 1},
    {"slkfd": "3"},
    {"slkfd": 3.0},
    {"bogus": 1},
]
VERSIONS: list[dict[str, Any]] = [
    {"version": 0},
    {"version": 7},
    {"version": True},
    {"version": (1 << 64) + 3},
    {"version": -1},
    {"version": "x"},
    {"version": 1.0},
    {"version": None},
]
FLAGS: list[Any] = [True, 0, 5, -1, 1 << 31, "x", None, []]
NUMBERS: list[Any] = [5, -1, 1 << 32, 1 << 64, "x", 1.0]


def many_calls() -> Iterator[Call]:
    """Every function with every kind of argument, good and bad."""
    for function in ("add_lockspace", "inq_lockspace", "rem_lockspace"):
        for args in LOCKSPACES:
            yield call(function, *args)
        for flag in FLAGS:
            yield call(function, b"LS", 1, "/p", wait=flag)
    for flag in FLAGS:
        yield call("rem_lockspace", b"LS", 1, "/p", unused=flag)
        yield call("write_resource", *NAMES, clear=flag)
        yield call("acquire", *NAMES, slkfd=FD, shared=flag)
        yield call("acquire", *NAMES, slkfd=FD, lvb=flag)
    yield call("add_lockspace", b"LS", 1, "/p", 2, 3, 0)
    yield call("rem_lockspace", b"LS", 1, "/p", 2, 0, 1)
    yield call("acquire", *NAMES, FD, -1, 1, 1, 5)
    for number in NUMBERS:
        yield call("add_lockspace", b"LS", 1, "/p", iotimeout=number)
        yield call("write_lockspace", b"LS", "/p", iotimeout=number)
        yield call("write_lockspace", b"LS", "/p", max_hosts=number)
        yield call("write_resource", *NAMES, max_hosts=number)
        yield call("write_resource", *NAMES, num_hosts=number)
        yield call("get_hosts", b"LS", number)
        yield call("request", *NAMES, action=number)
        yield call("get_lvb", *NAMES, number)
        for key in ("host_id", "generation", "event", "data", "flags"):
            yield call("set_event", **{"lockspace": b"LS", "host_id": 1, "generation": 2, "event": 3, key: number})
    for sizes in SIZES:
        yield call("write_lockspace", b"LS", "/p", **sizes)
        yield call("read_lockspace", "/p", **sizes)
        yield call("write_resource", *NAMES, **sizes)
        yield call("read_resource", "/p", **sizes)
        yield call("read_resource_owners", *NAMES, **sizes)
    yield call("read_resource", "x" * 1024)
    for path in ("/p", b"/p", "", 5, "/p\0q", None):
        yield call("write_lockspace", b"LS", path)
        yield call("read_lockspace", path, 7)
        yield call("read_resource", path, 7)
    for resource in RESOURCES:
        yield call("write_resource", *resource)
        yield call("read_resource_owners", *resource)
        yield call("acquire", *resource, slkfd=FD)
        yield call("release", *resource, slkfd=FD)
        yield call("request", *resource)
        yield call("set_lvb", *resource, b"x")
        yield call("get_lvb", *resource, 5)
    for target in TARGETS:
        yield call("acquire", *NAMES, **target)
        yield call("acquire", b"LS", b"RA", [5], **target)
        yield call("acquire", *NAMES, version="x", **target)
        yield call("release", *NAMES, **target)
        yield call("inquire", **target)
    for version in VERSIONS:
        yield call("acquire", *NAMES, slkfd=FD, **version)
        yield call("request", *NAMES, **version)
    for data in (b"x", b"", b"x" * 4097, "x", None):
        yield call("set_lvb", *NAMES, data)
    for size in (0, 1, 4096, 4097):
        yield call("get_lvb", *NAMES, size)
    for name in (b"LS", b"", "LS", None, b"L" * 60):
        yield call("get_hosts", name)
        yield call("reg_event", name)
        yield call("set_event", name, 1, 1, 1)
    yield call("set_event", b"LS", 0, 1, 1)
    for fd in (0, 99, -1, "x", 1 << 31):
        yield call("get_event", fd)
        if fd != 0:  # the calling process needs that one
            yield call("end_event", fd, b"LS")
    yield call("end_event", 99, "LS")
    killpath_arguments: list[Any] = [
        ["a"],
        [b"a"],
        [],
        [""],
        ["", "", ""],
        ["", "a"],
        ["a", "", "b"],
        ["a b", "c\\d", "\\ "],
        ["a" * 126],
        ["a" * 127],
        ["a" * 63, "b" * 62],
        ["a" * 63, "b" * 64],
        [" " * 63],
        [" " * 64],
        [5],
        ["a\0b"],
        "abc",
        ("a",),
    ]
    for arguments in killpath_arguments:
        yield call("killpath", "/x", arguments, slkfd=FD)
    for path in ("/" + "x" * 125, "/" + "x" * 127, b"/x", "", 5, "/x\0"):
        yield call("killpath", path, ["a"], slkfd=FD)
    yield call("killpath", "/x", ["a"])
    yield call("killpath", "/x", ["a"], slkfd="x")
    for path in ("/dev/null", "/tmp", "/nonexistent", b"/nonexistent", 5, "/x\0"):
        yield call("get_alignment", path)
    yield call("register", 1)
    yield call("get_lockspaces")


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    with FakeDaemon() as daemon:
        yield daemon


@pytest.fixture
def modules(fake: FakeDaemon) -> Iterator[tuple[PeerProcess, PeerProcess]]:
    """Both modules, each in a process of its own, with the fake daemon as theirs."""
    real, ours = PeerProcess(fake.environment, **REAL), PeerProcess(fake.environment, **OURS)
    yield real, ours
    real.kill()
    ours.kill()


def test_every_call_sends_the_same_bytes_and_ends_the_same_way(
    fake: FakeDaemon, modules: tuple[PeerProcess, PeerProcess]
) -> None:
    descriptors = [module.call("register") for module in modules]
    fake.wait_for_requests(2)  # registering is not answered
    differences = []
    for function, args, kwargs in many_calls():
        told = []
        for module, fd in zip(modules, descriptors, strict=True):
            fake.requests.clear()
            result = outcome(module, fd, function, args, kwargs)
            told.append((result, list(fake.requests)))
        if told[0] != told[1]:
            differences.append((function, args, kwargs, told[0][0], told[1][0], told[0][1] == told[1][1]))
    assert not differences, "\n".join(map(str, differences))


def test_answers_are_understood_alike(fake: FakeDaemon, modules: tuple[PeerProcess, PeerProcess]) -> None:
    lockspace = Lockspace(b"LS", 3, Disk("/a b", 5), 1).pack()
    bodies: list[tuple[Call, int, bytes]] = [
        (call("get_lockspaces"), 2, lockspace + Lockspace(b"M", 4, Disk("/p", 6), 0x112).pack()),
        (call("get_hosts", b"LS"), 2, Host(1, 2, 3, 4, 5).pack() + Host(6, 7, 8, 9, 10).pack()),
        (call("get_lvb", *NAMES, 5), 0, b""),
        (call("get_lvb", *NAMES, 5), 0, b"abc"),
        (call("get_lvb", *NAMES, 5), 0, b"abcdefgh"),
        (call("inquire", pid=5), 0, b""),
        (call("inquire", pid=5), 1, b"LS:RA:/p:1:7\0"),
        (call("inquire", pid=5), 2, b"L\xffS:R A:/p\\ q\\:r:1:SH LS:RB:/q:5:/r:6:0x10\0"),
        (call("read_lockspace", "/p"), 7, lockspace),
    ]
    for step, data2, body in bodies:
        fake.answer = answering(0, data2, body)
        assert outcome(modules[1], -1, *step) == outcome(modules[0], -1, *step)


def answering(result: int, data2: int = 0, body: bytes = b"") -> Answer:
    def answer(header: Header, payload: bytes) -> bytes:
        return header.reply(result, data2, len(body)).pack() + body

    return answer


@pytest.mark.parametrize("result", [-1, -2, -11, -28, -115, -199, -200, *range(-201, -280, -1)])
def test_negative_results_become_the_same_exceptions(
    result: int, fake: FakeDaemon, modules: tuple[PeerProcess, PeerProcess]
) -> None:
    fake.answer = answering(result)
    for step in (
        call("acquire", *NAMES, pid=5),
        call("inq_lockspace", b"LS", 1, "/p"),
        call("read_lockspace", "/p"),
        call("get_hosts", b"LS"),
        call("inquire", pid=5),
    ):
        assert outcome(modules[1], -1, *step) == outcome(modules[0], -1, *step)


def test_a_daemon_that_hangs_up_or_is_gone_is_the_same_exception(
    fake: FakeDaemon, modules: tuple[PeerProcess, PeerProcess]
) -> None:
    calls = [
        call("get_lockspaces"),
        call("acquire", *NAMES, pid=5),
        call("read_lockspace", "/p"),
        call("reg_event", b"LS"),
        call("inq_lockspace", b"LS", 1, "/p"),
    ]
    fake.answer = lambda header, payload: None
    for step in calls:
        assert outcome(modules[1], -1, *step) == outcome(modules[0], -1, *step)
    fake.stop()
    for step in [*calls, call("register")]:
        assert outcome(modules[1], -1, *step) == outcome(modules[0], -1, *step)


def test_where_the_original_does_harm_ours_does_not(fake: FakeDaemon, modules: tuple[PeerProcess, PeerProcess]) -> None:
    real, ours = modules
    full = Lockspace(b"L" * 48, 1, Disk("/p")).pack()
    fake.answer = answering(0, 1, full)
    assert real.call("read_lockspace", "/p")["lockspace"] == b"L" * 48 + b"\x01"
    assert ours.call("read_lockspace", "/p")["lockspace"] == b"L" * 48

    fake.answer = succeed
    real_fd, our_fd = real.call("register"), ours.call("register")
    real.call("killpath", "/x", ["a" * 63, "b" * 63], slkfd=real_fd)
    assert fake.requests[-1].count(b"b") == 62
    with pytest.raises(PeerError, match="arguments are too long"):
        ours.call("killpath", "/x", ["a" * 63, "b" * 63], slkfd=our_fd)
    with pytest.raises(PeerError, match="path argument too long"):
        ours.call("killpath", "/" + "x" * 126, [], slkfd=our_fd)

    with pytest.raises(PeerError, match="No such device"):
        ours.call("read_lockspace", "/" + "x" * 1023)

    fake.answer = answering(0, 1, b"junk\0")  # of which the original dies
    with pytest.raises(PeerError, match="Error parsing inquire state string"):
        ours.call("inquire", pid=5)


# ------------------------------------------------------------------------------------------ with a real daemon


def a_life(volume: str) -> Iterator[Call]:
    """What a program does with leases, and what goes wrong on its way."""
    lockspace = (b"LS", 1, volume)
    lease = (b"LS", b"RA", [(volume, MIB)])
    other = (b"LS", b"RB", [(volume, 2 * MIB)])
    wiped = (b"LS", b"RC", [(volume, 3 * MIB)])
    yield call("get_alignment", volume)
    yield call("read_lockspace", volume)
    yield call("read_resource", volume, MIB)
    yield call("write_lockspace", b"LS", volume, iotimeout=1)
    yield call("read_lockspace", volume)
    yield call("read_lockspace", volume, sector=4096, align=8 * MIB)
    yield call("write_resource", *lease)
    yield call("write_resource", *other, max_hosts=8)
    yield call("write_resource", *wiped, clear=True)
    yield call("read_resource", volume, MIB)
    yield call("read_resource", volume, 3 * MIB)
    yield call("read_resource_owners", *lease)
    yield call("acquire", *lease, slkfd=FD)
    yield call("inq_lockspace", *lockspace)
    yield call("add_lockspace", b"XX", 1, volume)
    yield call("add_lockspace", b"LS", 2001, volume)
    yield call("add_lockspace", *lockspace, iotimeout=1, wait=False)
    yield call("inq_lockspace", *lockspace)
    yield call("inq_lockspace", *lockspace, wait=True)
    yield call("add_lockspace", *lockspace)
    yield call("get_lockspaces")
    yield call("get_hosts", b"XX")
    yield call("acquire", *lease, slkfd=FD)
    yield call("acquire", *lease, slkfd=FD)
    yield call("acquire", *other, slkfd=FD, shared=True, lvb=True)
    yield call("acquire", *wiped, slkfd=FD)
    yield call("inquire", slkfd=FD)
    yield call("inquire", pid=1)
    yield call("get_lvb", *lease, 8)
    yield call("set_lvb", *other, b"value")
    yield call("get_lvb", *other, 8)
    yield call("set_lvb", *other, b"x" * 513)
    yield call("killpath", "/bin/true", ["a b"], slkfd=FD)
    yield call("request", *lease, version=1)
    yield call("request", *other)
    yield call("rem_lockspace", *lockspace, unused=True)
    yield call("release", *lease, slkfd=FD)
    yield call("release", *lease, slkfd=FD)
    yield call("acquire", *lease, slkfd=FD, version=9)
    yield call("acquire", *lease, slkfd=FD, version=1)
    yield call("release", *lease, slkfd=FD)
    yield call("set_event", b"LS", 2, 1, 3, 4)
    yield call("set_event", b"LS", 2, 1, 5)
    yield call("set_event", b"LS", 3000, 1, 5)
    yield call("release", *other, slkfd=FD)
    yield call("rem_lockspace", *lockspace, unused=True)
    yield call("inq_lockspace", *lockspace)
    yield call("rem_lockspace", *lockspace)


@pytest.mark.slow
def test_a_life_is_the_same_with_either_module_and_either_daemon(images: Path) -> None:
    stories = []
    kinds = [(REAL, SanlockDaemon), (OURS, SanlockDaemon), (REAL, LeaseholdDaemon), (OURS, LeaseholdDaemon)]
    for number, (module, kind) in enumerate(kinds):
        volume = zeroed_image(images / f"v{number}.img", 4)
        with kind("hostA") as daemon:
            client = daemon.client(**module)
            fd = client.call("register")
            story = [f"{step[0]}: {outcome(client, fd, *step)}" for step in a_life(volume)]
        stories.append([line.replace(volume, "VOLUME") for line in story])
    assert stories[1] == stories[0]
    assert stories[2] == stories[0]
    assert stories[3] == stories[0]


@pytest.mark.slow
def test_events_travel_between_hosts(sanlock_daemons: Callable[..., SanlockDaemon], images: Path) -> None:
    volume = zeroed_image(images / "v.img", 2)
    a, b = sanlock_daemons("hostA"), sanlock_daemons("hostB")
    a.init(f"LS:0:{volume}:0")
    a.add_lockspace("LS", 1, volume)
    b.add_lockspace("LS", 2, volume)
    listeners = [a.client(**REAL), a.client(**OURS)]
    descriptors = [listener.call("reg_event", b"LS") for listener in listeners]
    b.client(**OURS).call("set_event", b"LS", 1, 1, 3, 7)
    for listener, fd in zip(listeners, descriptors, strict=True):
        while not (events := listener.call("get_event", fd)):
            time.sleep(0.2)
        assert events[0] == {
            "from_host_id": 2,
            "from_generation": 1,
            "host_id": 1,
            "generation": 1,
            "event": 3,
            "data": 7,
        }
        assert listener.call("end_event", fd, b"LS") is None


# --------------------------------------------------------------------------------------------- in this process


def test_constants_are_those_of_the_original() -> None:
    script = "import sanlock; print({k: v for k, v in vars(sanlock).items() if k.isupper()})"
    printed = subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True, text=True, check=True)
    theirs = ast.literal_eval(printed.stdout)
    assert {name: getattr(sanlock, name) for name in theirs} == theirs


def test_the_exception_has_a_read_only_errno() -> None:
    error = sanlock.SanlockException(2, "message", "No such file or directory")
    assert error.errno == 2 and error.args == (2, "message", "No such file or directory")
    assert str(error) == "(2, 'message', 'No such file or directory')"
    with pytest.raises(AttributeError):
        error.errno = 3  # type: ignore[misc]
    with pytest.raises(IndexError):
        _ = sanlock.SanlockException().errno


def test_importing_it_brings_in_no_heavy_modules() -> None:
    script = "import sys, leases.sanlock, leases.client; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "click", "rich", "asyncio"} & set(printed.stdout.split())
