"""The real sanlock (Debian's) as a peer of the tests: its daemons, its registered clients, its direct access.

Each SanlockDaemon has a run directory, a host name and a process of its own, so several of them are several
hosts on one machine. A Holder is a registered client process: it holds leases for as long as it lives.

    with SanlockDaemon("hostA") as a:
        direct_init("LS:0:/var/tmp/v.img:0")
        a.add_lockspace("LS", 1, "/var/tmp/v.img")          # io_timeout 1: takes 3 s
        holder = a.acquire_with("LS:RA:/var/tmp/v.img:1048576")
        holder.kill()                                         # the daemon releases the lease
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

MIB = 1 << 20
#: images go here: O_DIRECT must work
IMAGE_ROOT = Path("/var/tmp")
#: the distribution's own interpreter, for which its sanlock module is built
SYSTEM_PYTHON = "/usr/bin/python3"
#: nothing that a test starts may take longer than this to answer (seconds)
PATIENCE = 120.0


class PeerFailed(AssertionError):
    """A program of the peer ended with an error: its command, exit status and output."""


def _environment(run_dir: Path) -> dict[str, str]:
    return {**os.environ, "SANLOCK_RUN_DIR": str(run_dir), "SANLOCK_PRIVILEGED": "0"}


def _run(argv: list[str], environment: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if check and done.returncode != 0:
        raise PeerFailed(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


# ---------------------------------------------------------------------------------------------- direct access


def direct(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`sanlock direct ARGS`: storage access without a daemon."""
    # a run directory that does not exist: nothing of a daemon can be reached by accident
    return _run(["sanlock", "direct", *args], _environment(Path("/nonexistent")), check)


def size_options(sector_size: int | None, align_size: int | None) -> list[str]:
    """Sizes in bytes as command line options; None leaves one to the peer's default."""
    options = [] if sector_size is None else ["-Z", str(sector_size)]
    return options if align_size is None else [*options, "-A", f"{align_size // MIB}M"]


def direct_init(
    lease: str, *, io_timeout: int = 1, sector_size: int | None = None, align_size: int | None = None
) -> None:
    """Format a lockspace `LS:0:path:offset` or a resource `LS:RES:path:offset[:path:offset...]`.

    Which of the two it is shows in the second field: a number means a lockspace.
    """
    kind = "-s" if lease.split(":")[1].isdigit() else "-r"
    direct("init", kind, lease, "-o", str(io_timeout), *size_options(sector_size, align_size))


def direct_format(rindex: str, *, sector_size: int | None = None, align_size: int | None = None) -> None:
    """Format a resource index `LS:path:offset`."""
    direct("format", "-x", rindex, *size_options(sector_size, align_size))


def direct_dump(path: str | Path, offset: int = 0, size: int | None = None) -> str:
    """What `sanlock direct dump` prints about `size` bytes from `offset`."""
    where = f"{path}:{offset}" if size is None else f"{path}:{offset}:{size}"
    return direct("dump", where).stdout


def read_leader(lease: str, *, sector_size: int | None = None, align_size: int | None = None) -> dict[str, int | str]:
    """The leader record as the peer reads it, field by field; PeerFailed when it does not accept it."""
    kind = "-s" if lease.split(":")[1].isdigit() else "-r"
    text = direct("read_leader", kind, lease, *size_options(sector_size, align_size)).stdout
    record: dict[str, int | str] = {}
    for line in text.splitlines()[1:]:
        field, _, value = line.partition(" ")
        record[field] = value if field.endswith("_name") else int(value, 0)
    return record


# ------------------------------------------------------------------------------------------------- the daemon


class SanlockDaemon:
    """A `sanlock daemon` in the foreground, without watchdog. A context manager that stops it in the end."""

    def __init__(self, name: str = "hostA", *options: str) -> None:
        self.name = name
        self.run_dir = Path(tempfile.mkdtemp(prefix="peer-", dir="/tmp"))
        self.socket_path = self.run_dir / "sanlock.sock"
        self.log_path = self.run_dir / "debug.log"
        self.environment = _environment(self.run_dir)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[PeerProcess] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it and wait until its socket answers."""
        argv = ["sanlock", "daemon", "-D", "-w", "0", "-h", "0", "-l", "0", "-U", "root", "-G", "root", "-e"]
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                [*argv, self.name, *self._options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if not self.running or time.monotonic() > deadline:
                raise PeerFailed(f"sanlock daemon {self.name} did not come up\n{self.log()}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        question = struct.pack("<8I", 0x04282010, 1, 28, 0, 32, 0, 0, 0)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PATIENCE)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(question)
                return len(probe.recv(32, socket.MSG_WAITALL)) == 32
            except OSError:
                return False

    def stop(self) -> None:
        """Leave all lockspaces (their users are killed), then end; SIGKILL if that does not work."""
        if self.running:
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.cli("shutdown", "-f", "1", check=False)
                self._process.wait(30)
        self.kill()

    def kill(self) -> None:
        """SIGKILL: the host crashes, nothing is released. Frozen processes die of it too."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Until it has ended by itself: its exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End everything this object started and remove the run directory."""
        for client in self._clients:
            client.kill()
        self.stop()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def log(self) -> str:
        """Its debug output so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # --- talking to it ---

    def cli(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`sanlock client ARGS`. With `check`, a non-zero exit raises PeerFailed."""
        return _run(["sanlock", "client", *args], self.environment, check)

    def init(self, lease: str, *, io_timeout: int = 1) -> None:
        """Format through the daemon; see `direct_init` for the form of `lease`."""
        kind = "-s" if lease.split(":")[1].isdigit() else "-r"
        self.cli("init", kind, lease, "-o", str(io_timeout))

    def add_lockspace(
        self, lockspace: str, host_id: int, path: str | Path, offset: int = 0, *, io_timeout: int = 1
    ) -> None:
        """Join; returns when joined (3 s when the slot is free and was laid out with io_timeout 1)."""
        self.cli("add_lockspace", "-s", f"{lockspace}:{host_id}:{path}:{offset}", "-o", str(io_timeout))

    def rem_lockspace(self, lockspace: str, host_id: int, path: str | Path, offset: int = 0) -> None:
        self.cli("rem_lockspace", "-s", f"{lockspace}:{host_id}:{path}:{offset}")

    def gets(self) -> str:
        """Lockspaces and their hosts, as `sanlock client gets -h 1` prints them."""
        return self.cli("gets", "-h", "1").stdout

    def host_state(self, lockspace: str, host_id: int) -> str:
        """FREE, LIVE, FAIL, DEAD or UNKN, as this daemon sees host `host_id`; "" when it does not know it."""
        inside = False
        for line in self.gets().splitlines():
            word = line.split()
            if word[0] == "s":
                inside = word[1].split(":")[0] == lockspace
            elif inside and word[:2] == ["h", str(host_id)]:
                return word[-1]
        return ""

    def status(self) -> str:
        return self.cli("status", "-D").stdout

    # --- its clients ---

    def client(self, *, module: str = "sanlock", python: str = SYSTEM_PYTHON) -> PeerProcess:
        """A new process with a sanlock module loaded, not yet registered. See PeerProcess."""
        process = PeerProcess(self.environment, module=module, python=python)
        self._clients.append(process)
        return process

    def acquire_with(self, *resources: str, shared: bool = False, lvb: bool = False) -> Holder:
        """A new registered process that holds these leases (`LS:RES:path:offset[:path:offset...]`)."""
        holder = Holder(self)
        self._clients.append(holder)
        for resource in resources:
            holder.acquire(resource, shared=shared, lvb=lvb)
        return holder

    def command(self, resource: str, *argv: str) -> subprocess.Popen[bytes]:
        """`sanlock client command`: acquire, then become `argv`, which goes on holding the lease."""
        return subprocess.Popen(
            ["sanlock", "client", "command", "-r", resource, "-c", *argv],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


# ---------------------------------------------------------------------------------------------- its processes

#: reads one call a line, (function, args, kwargs), and answers ("ok", result) or ("error", class, args)
_CALLS = """
import sys
from ast import literal_eval
from importlib import import_module
sanlock = import_module(sys.argv[1])
print(repr(("ok", sanlock.__file__)), flush=True)
for line in sys.stdin:
    name, args, kwargs = literal_eval(line)
    try:
        print(repr(("ok", getattr(sanlock, name)(*args, **kwargs))), flush=True)
    except BaseException as error:
        print(repr(("error", type(error).__name__, error.args)), flush=True)
"""


class PeerError(Exception):
    """A call in a PeerProcess raised: `kind` is the exception's class name, `details` its args."""

    def __init__(self, kind: str, details: tuple[Any, ...]) -> None:
        super().__init__(kind, details)
        self.kind = kind
        self.details = details


class PeerProcess:
    """A process of its own that calls functions of a sanlock module, one after the other.

    `module` is the name by which `python` imports it, `environment` says which daemon it talks to.
    """

    def __init__(self, environment: dict[str, str], *, module: str = "sanlock", python: str = SYSTEM_PYTHON) -> None:
        self._process = subprocess.Popen(
            [python, "-c", _CALLS, module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.module_file: str = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call `sanlock.<function>` there; its result, or PeerError. Arguments must be Python literals."""
        assert self._process.stdin is not None
        self._process.stdin.write(repr((function, args, kwargs)) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"the client process {self.pid} ended (exit {self._process.wait()})")
        answer = ast.literal_eval(line)
        if answer[0] == "error":
            raise PeerError(answer[1], answer[2])
        return answer[1]

    def exit(self) -> None:
        """End normally: the daemon then releases what it held."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL, and reap it."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Until somebody (a daemon in recovery) ended it: its exit status, negative for a signal."""
        return self._process.wait(timeout)


class Holder(PeerProcess):
    """A registered client of a real daemon, which holds leases on its own connection."""

    def __init__(self, daemon: SanlockDaemon) -> None:
        super().__init__(daemon.environment)
        self.fd: int = self.call("register")

    def acquire(self, resource: str, *, shared: bool = False, lvb: bool = False, version: int | None = None) -> None:
        """Take one more lease. Raises PeerError("SanlockException", (errno, message, name))."""
        self.call("acquire", *_parts(resource), slkfd=self.fd, shared=shared, lvb=lvb, version=version)

    def release(self, resource: str) -> None:
        self.call("release", *_parts(resource), slkfd=self.fd)

    def inquire(self) -> list[dict[str, Any]]:
        """What it holds, as the daemon knows it."""
        held: list[dict[str, Any]] = self.call("inquire", slkfd=self.fd)
        return held

    def set_lvb(self, resource: str, data: bytes) -> None:
        self.call("set_lvb", *_parts(resource), data)

    def get_lvb(self, resource: str, size: int) -> bytes:
        data: bytes = self.call("get_lvb", *_parts(resource), size)
        return data


def _parts(resource: str) -> tuple[bytes, bytes, list[tuple[str, int]]]:
    lockspace, name, *disks = resource.split(":")
    places = [(path, int(offset)) for path, offset in zip(disks[::2], disks[1::2], strict=True)]
    return lockspace.encode(), name.encode(), places


# --------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture
def images() -> Iterator[Path]:
    """A directory for disk images on which O_DIRECT works; removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="images-", dir=IMAGE_ROOT))
    yield place
    shutil.rmtree(place)


def zeroed_image(path: Path, mib: int) -> str:
    """A fully written image of `mib` MiB of zeros; its path as text."""
    with open(path, "wb") as image:
        for _ in range(mib):
            image.write(bytes(MIB))
    return str(path)


@pytest.fixture
def sanlock_daemons() -> Iterator[Callable[..., SanlockDaemon]]:
    """Start real daemons by name: `a = sanlock_daemons("hostA")`. All end with the test."""
    with contextlib.ExitStack() as running:

        def start(name: str = "hostA", *options: str) -> SanlockDaemon:
            return running.enter_context(SanlockDaemon(name, *options))

        yield start


@pytest.fixture
def sanlock_daemon(sanlock_daemons: Callable[..., SanlockDaemon]) -> SanlockDaemon:
    """One real daemon, called hostA."""
    return sanlock_daemons("hostA")
