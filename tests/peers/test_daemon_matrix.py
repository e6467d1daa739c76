"""The real client and ours, against the real daemon and ours: whoever asks whom, the same is answered.

Every command of the protocol that both sides have, through the command line (`sanlock client`, `leasehold sanlock
client`) and through the Python module (`sanlock`, `leases.sanlock`). What a test expects is what the real pair does.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.leasehold_daemon import DAEMONS, ROOT
from tests.support.peers import SYSTEM_PYTHON, PeerError, PeerProcess, SanlockDaemon, zeroed_image

pytestmark = [pytest.mark.peers, pytest.mark.slow]

MIB = 1 << 20


@dataclass
class Side:
    """A client's command and module, as a test uses them on one daemon."""

    daemon: SanlockDaemon
    argv: list[str]
    module: str
    python: str

    @property
    def environment(self) -> dict[str, str]:
        return {**self.daemon.environment, "PYTHONPATH": str(ROOT)}

    def run(self, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*self.argv, "client", *words], env=self.environment, capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout

    def last_line(self, *words: str) -> str:
        return self.run(*words)[1].rstrip("\n").rpartition("\n")[2]

    def process(self) -> PeerProcess:
        return PeerProcess(self.environment, module=self.module, python=self.python)


CLIENTS = {
    "real client": (["sanlock"], "sanlock", SYSTEM_PYTHON),
    "our client": ([sys.executable, "-m", "leases.cli.main", "sanlock"], "leases.sanlock", sys.executable),
}


@pytest.fixture(params=["sanlock", "leasehold"], ids=["real daemon", "our daemon"])
def daemon(request: pytest.FixtureRequest) -> Iterator[SanlockDaemon]:
    with DAEMONS[request.param]("hostA") as started:
        yield started


@pytest.fixture(params=list(CLIENTS))
def side(request: pytest.FixtureRequest, daemon: SanlockDaemon) -> Side:
    return Side(daemon, *CLIENTS[request.param])


@dataclass
class Volume:
    """An image with a lockspace LS at its start and leases RA, RB, RC after it."""

    path: str

    @property
    def lockspace(self) -> str:
        return f"LS:1:{self.path}:0"

    def lease(self, name: str, suffix: str = "") -> str:
        return f"LS:{name}:{self.path}:{('RA', 'RB', 'RC').index(name) + 1}M{suffix}"

    def shown(self, name: str, suffix: str) -> str:
        return f"LS:{name}:{self.path}:{(('RA', 'RB', 'RC').index(name) + 1) * MIB}{suffix}"

    def disks(self, name: str) -> list[tuple[str, int]]:
        return [(self.path, (("RA", "RB", "RC").index(name) + 1) * MIB)]


@pytest.fixture
def volume(images: Path, side: Side) -> Volume:
    made = Volume(zeroed_image(images / "disk.img", 24))
    assert side.run("init", "-s", f"LS:0:{made.path}:0", "-o", "1")[0] == 0
    for name in ("RA", "RB", "RC"):
        assert side.run("init", "-r", made.lease(name))[0] == 0
    return made


@pytest.fixture
def joined(volume: Volume, side: Side) -> Volume:
    assert side.run("add_lockspace", "-s", volume.lockspace, "-o", "1")[0] == 0
    return volume


@pytest.fixture
def holder(side: Side) -> Iterator[Callable[[], PeerProcess]]:
    """Start registered processes; their registration's descriptor is what `register` returns."""
    started = []

    def start() -> PeerProcess:
        process = side.process()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def refused(call: Callable[[], Any]) -> int:
    with pytest.raises(PeerError) as error:
        call()
    number: int = error.value.details[0]
    return number


# --------------------------------------------------------------------------------------------- the command line


def test_version_and_status_of_an_idle_daemon(side: Side) -> None:
    assert side.run("version") == (
        0,
        "client version 3.8.5 (0x03080500)\ndaemon version 3.8.5 (0x03080500)\n"
        "client socket protocol 0.1\ndaemon socket protocol 0.1\n",
    )
    code, text = side.run("status")
    assert (code, text) == (0, "daemon hostA\np -1 helper\np -1 listener\np -1 status\n")
    code, text = side.run("status", "-D")
    keys = re.findall(r"^    (\w+)=", text, re.MULTILINE)
    assert keys[:4] == ["our_host_name", "use_watchdog", "high_priority", "mlock_level"]
    assert keys[-12:] == [
        "ci", "fd", "pid", "flags", "restricted", "cmd_active", "cmd_last", "pid_dead", "kill_count", "kill_last",
        "suspend", "need_free",
    ]  # fmt: skip
    assert side.run("gets", "-h", "1") == (0, "")
    assert "hostA" in side.run("log_dump")[1]


def test_formatting_and_reading(side: Side, volume: Volume, images: Path) -> None:
    assert side.run("read", "-s", f":0:{volume.path}:0", "-D") == (
        0,
        f"s LS:1:{volume.path}:0\nio_timeout 1\nsector_size 512\nalign_size 1048576\n",
    )
    assert side.run("read", "-r", volume.lease("RA"), "-D") == (
        0,
        f"r {volume.shown('RA', ':0')}\nsector_size 512\nalign_size 1048576\n",
    )
    assert side.run("read", "-r", volume.lease("RA"), "-h", "1") == (0, f"r {volume.shown('RA', ':0')}\n")
    assert side.run("read", "-r", volume.lease("RA").replace("RA", "RX")) == (1, "read error -227\n")
    assert side.run("read", "-s", f"LS:1:{images}/none.img:0") == (1, "read error -19\n")
    assert side.run("read", "-r", f"LS:RA:{images}/none.img:0") == (1, "read error -2\n")
    assert side.run("init", "-r", volume.lease("RC"), "-z", "1") == (0, "init\ninit done 0\n")
    assert side.run("read", "-r", volume.lease("RC")) == (1, "read error -223\n")
    assert side.run("align", "-s", f"x:0:{volume.path}:0") == (1, "align\nalign done 1048576\n")
    assert side.run("init", "-r", volume.lease("RC"), "-Z", "4096", "-A", "8M") == (0, "init\ninit done 0\n")


def test_joining_asking_and_leaving(side: Side, volume: Volume) -> None:
    assert side.last_line("inq_lockspace", "-s", volume.lockspace) == "inq_lockspace done -2"
    assert side.last_line("add_lockspace", "-s", f"LS:0:{volume.path}:0") == "add_lockspace done -22"
    assert side.last_line("add_lockspace", "-s", f"XX:1:{volume.path}:0") == "add_lockspace done -226"
    assert side.last_line("add_lockspace", "-s", f"LS:1:{volume.path}:9M") == "add_lockspace done -223"
    assert side.last_line("add_lockspace", "-s", f"LS:2001:{volume.path}:0") == "add_lockspace done -231"
    assert side.run("add_lockspace", "-s", volume.lockspace, "-o", "1") == (
        0,
        "add_lockspace_timeout 1\nadd_lockspace_timeout done 0\n",
    )
    assert side.last_line("add_lockspace", "-s", volume.lockspace) == "add_lockspace done -17"
    assert side.last_line("add_lockspace", "-s", f"LS:3:{volume.path}:0") == "add_lockspace done -22"
    assert side.last_line("inq_lockspace", "-s", f"LS:0:{volume.path}:0") == "inq_lockspace done 0"
    until(lambda: "h 1 gen 1 timestamp" in side.run("gets", "-h", "1")[1])
    assert side.run("gets", "-h", "1")[1].startswith(f"s LS:1:{volume.path}:0 \nh 1 gen 1 timestamp ")
    assert re.fullmatch(r"lockspace LS\n1 timestamp \d+\n", side.run("host_status")[1])
    assert re.search(r"^    owner_name=hostA$", side.run("host_status", "-s", "LS", "-D")[1], re.MULTILINE)
    renewals = side.run("renewal", "-s", "LS")[1].splitlines()
    assert re.fullmatch(r"timestamp=\d+ read_ms=0 write_ms=0 next_timeouts=0 next_errors=0", renewals[0])
    assert len(renewals) > 1
    assert side.run("set_config", "-s", "LS", "-u", "1") == (0, "set_config LS 1\nset_config done 0\n")
    assert "external_used=1" in side.run("status", "-D")[1]
    assert side.run("set_config", "-s", "LS", "-u", "0") == (0, "set_config LS 2\nset_config done 0\n")
    assert side.last_line("shutdown", "-w", "1") == "shutdown done -16"
    assert side.run("rem_lockspace", "-s", volume.lockspace) == (0, "rem_lockspace\nrem_lockspace done 0\n")
    assert side.last_line("rem_lockspace", "-s", volume.lockspace) == "rem_lockspace done -2"


def test_leases_of_another_process_by_its_pid(side: Side, joined: Volume, holder: Callable[[], PeerProcess]) -> None:
    process = holder()
    process.call("register")
    pid = str(process.pid)
    assert side.run("acquire", "-r", joined.lease("RA"), "-p", pid) == (0, f"acquire pid {pid}\nacquire done 0\n")
    assert side.run("acquire", "-r", joined.lease("RB", ":SH"), "-p", pid)[0] == 0
    assert side.run("inquire", "-p", pid) == (
        0,
        f'inquire pid {pid}\ninquire done 0 res_count 2\n"{joined.shown("RA", ":1")} {joined.shown("RB", ":SH")}"\n',
    )
    assert side.run("read", "-r", joined.lease("RB"), "-h", "1")[1] == (f"r {joined.shown('RB', ':SH')}\nh 1 gen 1\n")
    assert side.run("convert", "-r", joined.lease("RB"), "-p", pid) == (
        0,
        f"convert pid {pid}\nconvert done 0\n",
    )
    assert side.last_line("convert", "-r", joined.lease("RB"), "-p", pid) == "convert done -114"
    assert side.last_line("convert", "-r", joined.lease("RC"), "-p", pid) == "convert done -2"
    status = side.run("status", "-o", "p")[1]
    assert f"p {pid} \nr {joined.shown('RB', ':2')} p {pid}\nr {joined.shown('RA', ':1')} p {pid}\n" in status
    assert side.run("release", "-r", joined.lease("RA"), "-p", pid) == (0, f"release pid {pid}\nrelease done 0\n")
    assert side.last_line("release", "-r", joined.lease("RA"), "-p", pid) == "release done -1"
    assert side.run("release", "-a", "1", "-p", pid)[0] == 0
    assert side.run("inquire", "-p", pid)[1] == f'inquire pid {pid}\ninquire done 0 res_count 0\n"(null)"\n'
    process.exit()
    until(lambda: side.last_line("inquire", "-p", pid) == "inquire done -3 res_count 0")


def test_orphans(side: Side, joined: Volume, holder: Callable[[], PeerProcess]) -> None:
    first, second, third = holder(), holder(), holder()
    for process in (first, second, third):
        process.call("register")
    taken = side.run("acquire", "-P", "1", "-r", joined.lease("RA"), "-p", str(first.pid))
    assert taken[0] == 0
    first.exit()
    until(lambda: f"r {joined.shown('RA', ':1')} p {first.pid} ORPHAN\n" in side.run("status")[1])
    pid = str(second.pid)
    assert side.last_line("acquire", "-r", joined.lease("RA"), "-p", pid) == "acquire done -117"
    assert side.last_line("acquire", "-O", "1", "-r", joined.lease("RA", ":SH"), "-p", pid) == "acquire done -117"
    assert side.run("acquire", "-O", "1", "-P", "1", "-r", joined.lease("RA"), "-p", pid)[0] == 0
    second.exit()
    until(lambda: "ORPHAN" in side.run("status")[1])
    pid = str(third.pid)
    assert side.last_line("release", "-O", "1", "-r", joined.lease("RA"), "-p", pid) == "release done 1"
    until(lambda: "RA" not in side.run("status")[1])
    assert side.run("release", "-O", "1", "-s", "LS:0:x:0", "-p", pid) == (
        0,
        f"release pid {pid}\nrelease done 0\n",
    )


def test_a_command_holds_its_lease_until_it_ends(side: Side, joined: Volume) -> None:
    running = subprocess.Popen(
        [*side.argv, "client", "command", "-r", joined.lease("RA"), "-c", "/bin/sleep", "60"],
        env=side.environment,
    )
    try:
        until(lambda: f"p {running.pid}\n" in side.run("status")[1].replace("p -1", ""))
        assert side.run("command", "-r", joined.lease("RA"), "-c", "/bin/true")[0] == 1
    finally:
        running.kill()
        running.wait()
    until(lambda: side.run("command", "-r", joined.lease("RA"), "-c", "/bin/true")[0] == 0)


def test_the_resource_index_by_the_command_line(side: Side, joined: Volume) -> None:
    place = f"LS:{joined.path}:{8 * MIB}"
    assert side.run("lookup", "-x", place, "-e", "V1") == (1, "lookup done -274\n")
    assert side.run("format", "-x", place, "-Z", "512") == (1, "format done -1\n")
    assert side.run("format", "-x", place) == (0, "format done 0\n")
    assert side.run("lookup", "-x", place) == (0, f"lookup done 0\nname - offset {10 * MIB}\n")
    assert side.run("create", "-x", place, "-e", "V1") == (0, f"create_resource done 0\noffset {10 * MIB}\n")
    assert side.run("lookup", "-x", place, "-e", "V1") == (0, f"lookup done 0\nname V1 offset {10 * MIB}\n")
    assert side.run("update", "-x", place, "-e", f"V2:{11 * MIB}") == (0, "update done 0\n")
    assert side.run("lookup", "-x", place, "-e", f":{11 * MIB}") == (0, f"lookup done 0\nname V2 offset {11 * MIB}\n")
    assert side.run("update", "-x", place, "-e", f"V2:{11 * MIB}", "-z", "1") == (0, "update done 0\n")
    assert side.run("rebuild", "-x", place) == (0, "rebuild done 0\n")
    assert side.run("delete", "-x", place, "-e", "V1") == (0, "delete_resource done 0\n")
    assert side.run("delete", "-x", place, "-e", "V1") == (1, "delete_resource done -2\n")


def test_shutting_down_by_force(side: Side, joined: Volume, holder: Callable[[], PeerProcess]) -> None:
    process = holder()
    fd = process.call("register")
    process.call("acquire", b"LS", b"RA", joined.disks("RA"), slkfd=fd)
    assert side.run("shutdown", "-f", "1", "-w", "1") == (0, "shutdown force 1 wait 1\nshutdown done 0\n")
    assert process.wait() == -9
    until(lambda: not side.daemon.running)


# --------------------------------------------------------------------------------------------- the Python module


def test_the_module_on_lockspaces(side: Side, images: Path, holder: Callable[[], PeerProcess]) -> None:
    sanlock = holder()
    path = zeroed_image(images / "disk.img", 4)
    sanlock.call("write_lockspace", b"LS", path, iotimeout=1)
    assert sanlock.call("read_lockspace", path) == {"lockspace": b"LS", "iotimeout": 1}
    assert sanlock.call("inq_lockspace", b"LS", 1, path) is False
    sanlock.call("add_lockspace", b"LS", 1, path, iotimeout=1, wait=False)
    assert sanlock.call("inq_lockspace", b"LS", 1, path) is None
    assert refused(lambda: sanlock.call("add_lockspace", b"LS", 1, path, iotimeout=1, wait=False)) == 115
    assert sanlock.call("get_lockspaces") == [{"lockspace": b"LS", "host_id": 1, "path": path, "offset": 0, "flags": 1}]
    assert sanlock.call("inq_lockspace", b"LS", 1, path, wait=True) is True
    assert refused(lambda: sanlock.call("get_hosts", b"NO")) == 2

    def listed() -> bool:
        try:
            hosts = sanlock.call("get_hosts", b"LS")
        except PeerError as error:
            assert error.details[0] == 11
            return False
        return bool([(host["host_id"], host["flags"]) for host in hosts] == [(1, 3)])

    until(listed)
    assert sanlock.call("get_hosts", b"LS", 7)[0]["flags"] == 2
    assert sanlock.call("get_hosts", b"LS", 2001) == []
    sanlock.call("rem_lockspace", b"LS", 1, path)
    assert refused(lambda: sanlock.call("rem_lockspace", b"LS", 1, path)) == 2


def test_the_module_on_leases(side: Side, joined: Volume, holder: Callable[[], PeerProcess]) -> None:
    sanlock = holder()
    fd = sanlock.call("register")
    disks = joined.disks("RA")
    sanlock.call("acquire", b"LS", b"RA", disks, slkfd=fd)
    assert sanlock.call("inquire", slkfd=fd) == [
        {"lockspace": b"LS", "resource": b"RA", "flags": 1, "version": 1, "disks": disks}
    ]
    owners = sanlock.call("read_resource_owners", b"LS", b"RA", disks)
    assert [(owner["host_id"], owner["generation"]) for owner in owners] == [(1, 1)]
    assert refused(lambda: sanlock.call("acquire", b"LS", b"RA", disks, slkfd=fd)) == 17
    assert refused(lambda: sanlock.call("acquire", b"NO", b"RA", disks, slkfd=fd)) == 28
    assert refused(lambda: sanlock.call("acquire", b"LS", b"RX", disks, slkfd=fd)) == -227
    sanlock.call("release", b"LS", b"RA", disks, slkfd=fd)
    assert refused(lambda: sanlock.call("release", b"LS", b"RA", disks, slkfd=fd)) == 1
    assert refused(lambda: sanlock.call("acquire", b"LS", b"RA", disks, slkfd=fd, version=9)) == -240
    sanlock.call("acquire", b"LS", b"RA", disks, slkfd=fd, version=1)
    assert sanlock.call("read_resource", disks[0][0], disks[0][1])["version"] == 2
    assert refused(lambda: sanlock.call("rem_lockspace", b"LS", 1, joined.path, unused=True)) == 16
    sanlock.call("killpath", "/bin/true", ["a b"], slkfd=fd)


def test_the_module_on_shared_leases(side: Side, joined: Volume, holder: Callable[[], PeerProcess]) -> None:
    one, two = holder(), holder()
    fds = {process: process.call("register") for process in (one, two)}
    for process, fd in fds.items():
        process.call("acquire", b"LS", b"RB", joined.disks("RB"), slkfd=fd, shared=True)
    assert two.call("inquire", slkfd=fds[two])[0]["flags"] == 4
    assert refused(lambda: one.call("acquire", b"LS", b"RB", joined.disks("RB"), slkfd=fds[one])) == 17
    one.call("release", b"LS", b"RB", joined.disks("RB"), slkfd=fds[one])
    owners = two.call("read_resource_owners", b"LS", b"RB", joined.disks("RB"))
    assert [owner["host_id"] for owner in owners] == [1]


def test_the_module_on_value_blocks(side: Side, joined: Volume, holder: Callable[[], PeerProcess]) -> None:
    sanlock = holder()
    fd = sanlock.call("register")
    lease = (b"LS", b"RA", joined.disks("RA"))
    sanlock.call("acquire", *lease, slkfd=fd, lvb=True)
    assert sanlock.call("get_lvb", *lease, 8) == bytes(8)
    sanlock.call("set_lvb", *lease, b"hello")
    assert refused(lambda: sanlock.call("set_lvb", *lease, b"x" * 513)) == 7
    assert sanlock.call("get_lvb", *lease, 8) == b"hello\0\0\0"
    sanlock.call("release", *lease, slkfd=fd)
    assert refused(lambda: sanlock.call("get_lvb", *lease, 8)) == 2
    sanlock.call("acquire", *lease, slkfd=fd)
    assert refused(lambda: sanlock.call("get_lvb", *lease, 8)) == 22
    sanlock.call("release", *lease, slkfd=fd)
    sanlock.call("acquire", *lease, slkfd=fd, lvb=True)
    assert sanlock.call("get_lvb", *lease, 5) == b"hello"


def test_the_death_of_a_process_releases_what_it_held(
    side: Side, joined: Volume, holder: Callable[[], PeerProcess]
) -> None:
    first, second = holder(), holder()
    first.call("acquire", b"LS", b"RA", joined.disks("RA"), slkfd=first.call("register"))
    fd = second.call("register")
    first.kill()

    def acquired() -> bool:
        try:
            second.call("acquire", b"LS", b"RA", joined.disks("RA"), slkfd=fd)
        except PeerError as error:
            assert error.details[0] in (11, 17)
            return False
        return True

    until(acquired)
    assert second.call("inquire", slkfd=fd)[0]["version"] == 2


# ------------------------------------------------------------------------------------------ between two hosts


@pytest.fixture(params=["sanlock", "leasehold"], ids=["beside a real host", "beside our host"])
def other_host(request: pytest.FixtureRequest, joined: Volume) -> Iterator[SanlockDaemon]:
    """Another host in the same lockspace."""
    with DAEMONS[request.param]("hostB") as started:
        started.add_lockspace("LS", 2, joined.path)
        yield started


def test_a_lease_of_another_host(
    side: Side, joined: Volume, other_host: SanlockDaemon, holder: Callable[[], PeerProcess]
) -> None:
    until(lambda: side.run("gets", "-h", "1")[1].count("LIVE") == 2)
    theirs = other_host.acquire_with(
        f"LS:RA:{joined.path}:{MIB}",
    )
    shared = other_host.acquire_with(f"LS:RC:{joined.path}:{3 * MIB}", shared=True)
    ours = holder()
    fd = ours.call("register")
    assert refused(lambda: ours.call("acquire", b"LS", b"RA", joined.disks("RA"), slkfd=fd)) == -243
    assert refused(lambda: ours.call("acquire", b"LS", b"RC", joined.disks("RC"), slkfd=fd)) == 11
    ours.call("acquire", b"LS", b"RC", joined.disks("RC"), slkfd=fd, shared=True)
    owners = ours.call("read_resource_owners", b"LS", b"RC", joined.disks("RC"))
    assert sorted(owner["host_id"] for owner in owners) == [1, 2]
    assert side.last_line("convert", "-r", joined.lease("RC"), "-p", str(ours.pid)) == "convert done -11"
    shared.exit()
    until(lambda: side.last_line("convert", "-r", joined.lease("RC"), "-p", str(ours.pid)) == "convert done 0")
    theirs.exit()

    def handed_over() -> bool:
        try:
            ours.call("acquire", b"LS", b"RA", joined.disks("RA"), slkfd=fd)
        except PeerError:
            return False
        return True

    until(handed_over)


def test_a_request_stops_the_holder_on_the_other_host(
    side: Side, joined: Volume, other_host: SanlockDaemon, holder: Callable[[], PeerProcess]
) -> None:
    until(lambda: side.run("gets", "-h", "1")[1].count("LIVE") == 2)
    theirs = other_host.acquire_with(f"LS:RA:{joined.path}:{MIB}")
    ours = holder()
    assert refused(lambda: ours.call("request", b"LS", b"RA", joined.disks("RA"), version=1)) == -272
    ours.call("request", b"LS", b"RA", joined.disks("RA"), action=2)
    assert theirs.wait(60) == -15


def test_an_event_for_the_other_host(
    side: Side, joined: Volume, other_host: SanlockDaemon, holder: Callable[[], PeerProcess]
) -> None:
    until(lambda: side.run("gets", "-h", "1")[1].count("LIVE") == 2)
    listener = other_host.client()
    fd = listener.call("reg_event", b"LS")
    assert listener.call("get_event", fd) == []
    ours = holder()
    ours.call("set_event", b"LS", 2, 1, 5, 6)
    assert refused(lambda: ours.call("set_event", b"LS", 2, 1, 9)) == 16
    assert refused(lambda: ours.call("set_event", b"LS", 0, 0, 1)) == 22
    got: list[dict[str, Any]] = []
    until(lambda: bool(got.extend(listener.call("get_event", fd)) or got), 30)
    assert (got[0]["from_host_id"], got[0]["host_id"], got[0]["event"], got[0]["data"]) == (1, 2, 5, 6)
    listener.call("end_event", fd, b"LS")
