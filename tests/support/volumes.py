"""Volumes on plain files, and host processes on them that a test can kill, stop and ask."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from leases.lockspace import Lockspace
from leases.volume import Volume
from paxos.index_records import IndexEntry
from paxos.records import Leader, fresh_lockspace, fresh_resource

ROOT = Path(__file__).resolve().parents[2]
#: not /tmp, which may be tmpfs
IMAGES = Path("/var/tmp")
#: seconds: a host of a test is dead 8 io_timeouts and this long after its last renewal
FIRE_TIMEOUT = 4
#: seconds within which what must happen has happened, on a machine that does other things too
SOON = 60.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Until `condition()` is true."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory on a file system with direct I/O."""
    path = Path(tempfile.mkdtemp(prefix="leasehold-volume-", dir=IMAGES))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def volume(directory: Path) -> Volume:
    """Lockspace LS, io_timeout 1, room for four leases of which r0 and r1 are made."""
    return make_volume(str(directory / "volume"))


def make_volume(path: str, leases: int = 4) -> Volume:
    """As the fixture, at `path`; without joining, so it takes no time."""
    volume = Volume.create(path, "LS", leases=leases, hosts=250, io_timeout=1)
    add_leases(volume, "r0", "r1")
    return volume


def add_leases(volume: Volume, *names: str) -> None:
    """Write leases and their index entries straight to the file, for volumes that nobody uses."""
    index = volume.index
    with open(volume.path, "r+b", buffering=0) as disk:
        for number, name in enumerate(names):
            entry = IndexEntry.of(name.encode(), index.offset(number))
            os.pwrite(disk.fileno(), entry.pack(), index.place.at(index.geometry.index_entry_offset(number)))
            area = fresh_resource(index.lockspace, name.encode(), index.geometry, 250)
            os.pwrite(disk.fileno(), area, index.offset(number))
        os.fsync(disk.fileno())


def scribble(volume: Volume, offset: int, data: bytes) -> None:
    with open(volume.path, "r+b", buffering=0) as disk:
        os.pwrite(disk.fileno(), data, offset)
        os.fsync(disk.fileno())


def own_delta(
    volume: Volume,
    host_id: int,
    name: bytes,
    *,
    generation: int = 1,
    timestamp: int = 100,
    io_timeout: int = 1,
    slot: int | None = None,
) -> None:
    """Write the delta lease of a host that nobody renews."""
    fresh = Leader.unpack(fresh_lockspace(b"LS", volume.geometry, 1)[1])
    record = fresh.changed(
        owner_id=host_id,
        owner_generation=generation,
        timestamp=timestamp,
        io_timeout=io_timeout,
        resource_name=name.ljust(48, b"\0"),
    )
    scribble(volume, ((slot or host_id) - 1) * 512, record.sector(512))


def own_lease(volume: Volume, name: str, host_id: int, generation: int) -> None:
    """Write the leader of a lease that a host holds exclusively, as version 5."""
    offset = volume.lease(name).offset
    fresh = Leader.unpack(fresh_resource(b"LS", name.encode(), volume.geometry, 250))
    leader = fresh.changed(owner_id=host_id, owner_generation=generation, timestamp=99, lver=5, write_id=host_id)
    scribble(volume, offset, leader.sector(512))


class Joiner:
    """Joins lockspaces for a test, and leaves them at its end."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __call__(self, volume: Volume, host_id: int | None = None, **options: Any) -> Lockspace:
        options = {"watchdog": "none", "fire_timeout": FIRE_TIMEOUT, **options}
        lockspace = Volume(volume.path).join(host_id, **options)
        self._stack.callback(lockspace.leave, force=True)
        return lockspace

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def join() -> Iterator[Joiner]:
    joiner = Joiner()
    yield joiner
    joiner.close()


#: joins, then carries out one command a line and answers each with one line of JSON
_PROGRAM = """
import json, subprocess, sys, time
from leases.volume import Volume
path, options = sys.argv[1], json.loads(sys.argv[2])
leases, told = {}, []
lockspace = Volume(path).join(**options)
lockspace.on_event.append(lambda event: told.append(type(event).__name__))
def answer(**facts):
    print(json.dumps(facts), flush=True)
answer(host_id=lockspace.host_id, generation=lockspace.generation)
for line in sys.stdin:
    word, *rest = line.split()
    try:
        if word == "acquire":
            lease = leases[rest[0]] = lockspace.acquire(rest[0], wait=float(rest[1]))
            answer(token=str(lease.token))
        elif word == "holder":
            child = subprocess.Popen(["sleep", "1000"])
            leases[rest[0]].add_holder(child.pid)
            answer(pid=child.pid)
        elif word == "release":
            leases.pop(rest[0]).release()
            answer(ok=True)
        elif word == "lost":
            lease = leases[rest[0]]
            lease.lost.wait(float(rest[1]))
            answer(lost=lease.lost.is_set(), reason=type(lease.lost.reason).__name__, remaining=lease.remaining())
        elif word == "state":
            answer(failure=type(lockspace.failure).__name__, left=lockspace.membership.left.is_set(), told=told)
        elif word == "leave":
            lockspace.leave(force=True)
            answer(ok=True)
    except Exception as error:
        answer(error=type(error).__name__, text=str(error))
"""


class HostProcess:
    """A process of its own that is a member of a volume's lockspace."""

    def __init__(self, path: str, host_id: int | None = None, **options: Any) -> None:
        options = {"host_id": host_id, "watchdog": "none", "fire_timeout": FIRE_TIMEOUT, **options}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, path, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            bufsize=1,
        )
        self.pid = self.process.pid
        self.joined = self._answer()

    def ask(self, *words: object) -> dict[str, Any]:
        """Have a command carried out; what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the host process ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self.thaw()
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class HostProcesses:
    """Starts host processes for a test, and ends them at its end."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __call__(self, path: str, host_id: int | None = None, **options: Any) -> HostProcess:
        host = HostProcess(path, host_id, **options)
        self._stack.callback(host.close)
        return host

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def host_process() -> Iterator[HostProcesses]:
    hosts = HostProcesses()
    yield hosts
    hosts.close()
