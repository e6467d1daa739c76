"""Hosts of either engine on one volume, behind one interface: a host process of ours, and a real sanlock daemon.

    volume = make_volume(path, leases=("vm0", "vm1"))
    with LeaseholdHost(volume, 1) as ours, SanlockHost(volume, 2) as theirs:
        ours.acquire("vm0")
        theirs.acquire("vm0")          # raises Refused

Each is a host with processes of its own: `crash` kills them all, and nothing of it is released.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from ast import literal_eval
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from leases.volume import Volume
from paxos.geometry import MIB, Geometry
from paxos.liveness import HostState
from paxos.records import Leader
from tests.support.peers import Holder, PeerError, SanlockDaemon
from tests.support.storage import Disk
from tests.support.volumes import add_leases, wait_for

ROOT = Path(__file__).resolve().parents[2]
IO_TIMEOUT = 1
#: by the rules of both engines, at io_timeout 1 with watchdogs that fire after 60 s
HOST_DEAD = 68


#: live owner, lost ballot, owner that may be dead, live shared holder
HELD_ELSEWHERE = (-243, -244, -245, -246, -247, -11)


class Refused(Exception):
    """An operation failed: the reference's number of why."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class OneVolume:
    """A volume for hosts of both engines, the lockspace at offset 0. `disk` is below the path that hosts open."""

    path: str
    geometry: Geometry
    offsets: dict[str, int]
    disk: Disk

    def by_path(self, path: str) -> OneVolume:
        """The same over another path to the disk."""
        return OneVolume(path, self.geometry, self.offsets, self.disk)

    def resource(self, name: str) -> str:
        """As the reference's tools spell it."""
        return f"LS:{name}:{self.path}:{self.offsets[name]}"

    def leader(self, name: str) -> Leader:
        """What the disk itself says, asking neither engine."""
        return Leader.unpack(self.disk.read(self.offsets[name], self.geometry.sector_size))

    def wait_renewed(self, host_id: int) -> None:
        """Until that host has renewed once more."""
        before = self.delta(host_id).timestamp
        wait_for(lambda: self.delta(host_id).timestamp > before, f"host {host_id} to renew")

    def delta(self, host_id: int) -> Leader:
        return Leader.unpack(self.disk.read(self.geometry.delta_offset(host_id), self.geometry.sector_size))


def one_volume(disk: Disk, leases: Sequence[str], align_size: int | None = None) -> OneVolume:
    """Lay out lockspace LS, io_timeout 1, with these leases. On a regular file of sectors of 512."""
    made = Volume.create(
        disk.path,
        "LS",
        leases=len(leases),
        io_timeout=IO_TIMEOUT,
        sector_size=disk.sector_size,
        align_size=align_size or {512: MIB, 4096: 8 * MIB}[disk.sector_size],
        force=True,
    )
    add_leases(made, *leases)
    offsets = {name: made.index.offset(number) for number, name in enumerate(leases)}
    return OneVolume(disk.path, made.geometry, offsets, disk)


class EngineHost(ABC):
    """One host, joined."""

    engine: str

    def __init__(self, volume: OneVolume, host_id: int) -> None:
        self.volume = volume
        self.host_id = host_id

    @abstractmethod
    def acquire(self, name: str, *, shared: bool = False) -> None:
        """One attempt, which waits for an owner that may be dead. Raises Refused."""

    @abstractmethod
    def run(self, name: str, *argv: str) -> int:
        """Have a process of its own hold a lease, exclusively: its pid. The program by its full path."""

    @abstractmethod
    def release(self, name: str) -> None: ...

    @abstractmethod
    def convert(self, name: str, *, shared: bool) -> None:
        """Raises Refused; then it has it as before."""

    @abstractmethod
    def state_of(self, host_id: int) -> str:
        """FREE, LIVE, FAIL, DEAD, UNKNOWN: as this host sees that one."""

    @abstractmethod
    def read_lvb(self, name: str) -> bytes:
        """The value block of a lease that it holds, acquired for that."""

    @abstractmethod
    def write_lvb(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def request(self, name: str) -> None:
        """Ask the owner, whoever it is, to give the lease up."""

    @abstractmethod
    def leave(self) -> None:
        """Give the host id back; leases that it holds, too."""

    @abstractmethod
    def crash(self) -> None:
        """kill -9 of everything of this host."""

    @abstractmethod
    def wait_lost(self, name: str) -> None:
        """Until the host has noticed that it can't keep this lease, and has stopped its use."""

    @abstractmethod
    def freeze(self) -> None: ...

    @abstractmethod
    def thaw(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """With this lease, exclusively."""
        self.acquire(name)
        yield
        self.release(name)

    def may_acquire(self, name: str, *, shared: bool = False) -> bool:
        """Whether it gets the lease, which it keeps, or somebody else has it. Raises Refused for any other reason."""
        try:
            self.acquire(name, shared=shared)
        except Refused as refused:
            if refused.number not in HELD_ELSEWHERE:
                raise
            return False
        return True

    def knows(self, *others: EngineHost) -> None:
        """Wait until it has seen these alive: before that, neither engine can tell."""
        for other in others:
            self.sees(other.host_id, "LIVE")

    def sees(self, host_id: int, state: str) -> None:
        """Wait until that host looks like this to it."""
        wait_for(lambda: self.state_of(host_id) == state, f"{self} to see host {host_id} {state}")

    def __str__(self) -> str:
        return f"{self.engine} host {self.host_id}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


#: one call a line, (function, arguments), is answered by one line: ("ok", result), ("refused", number), ("error", text)
_PROGRAM = """
import subprocess, sys
from ast import literal_eval
from leases.keeper.watchdog import boot_time
from leases.volume import Volume
from paxos.errors import LeaseholdError
path, host_id, options = literal_eval(sys.argv[1])
leases = {}
try:
    lockspace = Volume(path).join(host_id, watchdog="none", **options)
except LeaseholdError as refusal:
    sys.exit(print(repr(("refused", refusal.code)), flush=True))
class Calls:
    def acquire(self, name, shared):
        leases[name] = lockspace.acquire(name, shared=shared)
        return str(leases[name].token)
    def release(self, name):
        leases.pop(name).release()
    def convert(self, name, shared):
        leases[name].convert(shared=shared)
    def state_of(self, other):
        return lockspace.hosts.state(other, boot_time()).name
    def read_lvb(self, name):
        return leases[name].lvb
    def write_lvb(self, name, data):
        leases[name].lvb = data
    def request(self, name):
        lockspace.request(name)
    def acquire_for(self, name, argv):
        child = subprocess.Popen(argv)
        leases[name] = lockspace.acquire(name, holder=child.pid)
        return child.pid
    def lost(self, name):
        return type(leases[name].lost.reason).__name__ if leases[name].lost.is_set() else ""
    def failure(self):
        return type(lockspace.failure).__name__ if lockspace.failure else ""
    def unsettled(self):
        return len(lockspace.membership.holdings.unsettled())
    def leave(self):
        lockspace.leave(force=True)
print(repr(("ok", lockspace.generation)), flush=True)
for line in sys.stdin:
    function, arguments = literal_eval(line)
    try:
        answer = "ok", getattr(Calls, function)(None, *arguments)
    except LeaseholdError as refusal:
        answer = "refused", refusal.code
    except Exception as error:
        answer = "error", type(error).__name__, str(error)
    print(repr(answer), flush=True)
"""


class LeaseholdHost(EngineHost):
    """A process that has joined with this project's code."""

    engine = "leasehold"

    def __init__(self, volume: OneVolume, host_id: int, **options: Any) -> None:
        super().__init__(volume, host_id)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, repr((volume.path, host_id, options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            bufsize=1,
        )
        self._holders: list[int] = []
        try:
            self.generation: int = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, function: str, *arguments: object) -> Any:
        """Call a function of `_PROGRAM` there. Raises Refused; AssertionError for any other error."""
        self.begin(function, *arguments)
        return self._answer()

    def begin(self, function: str, *arguments: object) -> None:
        """Call it, and let `end` wait for what comes of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(repr((function, arguments)) + "\n")
        self.process.stdin.flush()

    def end(self) -> Any:
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self} ended"
        kind, *rest = literal_eval(line)
        if kind == "refused":
            raise Refused(rest[0])
        assert kind == "ok", rest
        return rest[0]

    def acquire(self, name: str, *, shared: bool = False) -> None:
        self.ask("acquire", name, shared)

    def run(self, name: str, *argv: str) -> int:
        pid: int = self.ask("acquire_for", name, list(argv))
        self._holders.append(pid)
        return pid

    def release(self, name: str) -> None:
        self.ask("release", name)

    def convert(self, name: str, *, shared: bool) -> None:
        self.ask("convert", name, shared)

    def state_of(self, host_id: int) -> str:
        state: str = self.ask("state_of", host_id)
        return state

    def read_lvb(self, name: str) -> bytes:
        data: bytes = self.ask("read_lvb", name)
        return data

    def write_lvb(self, name: str, data: bytes) -> None:
        self.ask("write_lvb", name, data)

    def request(self, name: str) -> None:
        self.ask("request", name)

    def leave(self) -> None:
        self.ask("leave")

    def wait_lost(self, name: str) -> None:
        wait_for(lambda: self.ask("lost", name), f"{self} to lose {name}")

    def crash(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.crash()
        for pid in self._holders:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


class SanlockHost(EngineHost):
    """A real daemon with one registered client process."""

    engine = "sanlock"

    def __init__(self, volume: OneVolume, host_id: int, *, name: str | None = None) -> None:
        super().__init__(volume, host_id)
        self.daemon = SanlockDaemon(name or f"host{host_id}").start()
        self._commands: list[subprocess.Popen[bytes]] = []
        try:
            self.daemon.add_lockspace("LS", host_id, volume.path, io_timeout=IO_TIMEOUT)
            self.client = Holder(self.daemon)
        except BaseException:
            self.daemon.close()
            raise

    def _call(self, function: str, *arguments: Any, **options: Any) -> None:
        try:
            getattr(self.client, function)(*arguments, **options)
        except PeerError as error:
            # the module tells errnos by their positive number
            raise Refused(-abs(error.details[0])) from error

    def acquire(self, name: str, *, shared: bool = False) -> None:
        lvb = self.volume.geometry.has_lvb and not shared
        self._call("acquire", self.volume.resource(name), shared=shared, lvb=lvb)

    def run(self, name: str, *argv: str) -> int:
        before = self.volume.leader(name).lver
        process = self.daemon.command(self.volume.resource(name), *argv)
        self._commands.append(process)
        wait_for(lambda: self.volume.leader(name).lver > before, "the command to get its lease")
        return process.pid

    def release(self, name: str) -> None:
        self._call("release", self.volume.resource(name))

    def convert(self, name: str, *, shared: bool) -> None:
        resource = self.volume.resource(name) + (":SH" if shared else "")
        done = self.daemon.cli("convert", "-r", resource, "-p", str(self.client.pid), check=False)
        number = int(done.stdout.rsplit(maxsplit=1)[-1])
        if number:
            raise Refused(number)

    def state_of(self, host_id: int) -> str:
        try:
            (host,) = self.client.call("get_hosts", b"LS", host_id)
        except PeerError:  # before it has looked at the hosts for the first time
            return "UNKNOWN"
        return HostState(host["flags"]).name

    def read_lvb(self, name: str) -> bytes:
        return self.client.get_lvb(self.volume.resource(name), self.volume.geometry.sector_size)

    def write_lvb(self, name: str, data: bytes) -> None:
        self.client.set_lvb(self.volume.resource(name), data)

    def request(self, name: str) -> None:
        lver = self.volume.leader(name).lver + 1
        self.daemon.cli("request", "-r", f"{self.volume.resource(name)}:{lver}", "-f", "2")

    def leave(self) -> None:
        self.daemon.rem_lockspace("LS", self.host_id, self.volume.path)

    def wait_lost(self, name: str) -> None:
        """Its client, which may hold other leases too, is killed."""
        assert self.client.wait() < 0

    def crash(self) -> None:
        self.daemon.kill()
        self._kill_clients()

    def _kill_clients(self) -> None:
        self.client.kill()
        for process in self._commands:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        self.daemon.freeze()

    def thaw(self) -> None:
        self.daemon.thaw()

    def close(self) -> None:
        self._kill_clients()
        self.daemon.close()


ENGINES: dict[str, type[LeaseholdHost] | type[SanlockHost]] = {"leasehold": LeaseholdHost, "sanlock": SanlockHost}
