"""libvirt's own programs, and ours in their place, on a test machine of their own: a private mount namespace.

    with Machine(tmp) as machine:                      # /run, /etc/libvirt, /var/lib/libvirt, /srv are empty there
        daemon = machine.start_virtlockd(REAL)         # or OURS
        with LockClient(daemon.socket) as client: ...
        guests = machine.start_libvirtd("lockd")

The machine is a process that holds the namespace; everything else is started in it. Files in it are reached through
/proc, so that tests need not enter it: `machine.path("/srv/x")`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[2]

#: which virtlockd
REAL, OURS = "real", "ours"
VIRTLOCKD_SOCKET = "/run/libvirt/virtlockd-sock"

_OWN_DIRECTORIES = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/srv")


def until(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {patience} s")
        time.sleep(0.02)


class Daemon:
    """A program that serves a socket, in the foreground. Its output is in `log`."""

    def __init__(self, machine: Machine, name: str, argv: Sequence[str], socket_path: str) -> None:
        self.machine = machine
        self.argv = list(argv)
        self.socket = machine.path(socket_path)
        self.log_path = machine.directory / f"{name}.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.log_path, "ab") as log:
            process = self.machine.popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.argv[0]} did not come up (exit {process.poll()})\n{self.log()}")
            time.sleep(0.02)
        return process

    def restart(self) -> None:
        self.process = self._start()

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    @property
    def pid(self) -> int:
        """Of the daemon itself: nsenter becomes the program, so it is the one we started."""
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def terminate(self) -> int:
        """In order: its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Machine:
    """A mount namespace with empty state directories. Everything started in it ends with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        #: everything that was started in the machine bears this in its environment
        self.mark = f"LEASEHOLD_TEST_MACHINE={directory}"

    def __enter__(self) -> Self:
        mounts = [f"mount -t tmpfs none {place}" for place in _OWN_DIRECTORIES]
        made = [f"mkdir -p {place}" for place in _OWN_DIRECTORIES]
        inside = "mkdir -p /run/libvirt /var/lib/libvirt/images /var/lib/libvirt/lockd/files /srv/lockd"
        script = " && ".join([*made, *mounts, inside, "echo ready", "exec sleep infinity"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for _ in range(50):
            left = list(self._left_over())
            if not left:
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._holder.kill()
        self._holder.wait()

    def _left_over(self) -> Iterator[int]:
        """Processes that were started in the machine: guests, holders of locks."""
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environment:
                    if self.mark.encode() in environment.read().split(b"\0"):
                        yield int(name)

    def path(self, inside: str | Path) -> Path:
        """How a path of the machine is reached from outside."""
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    def popen(self, argv: Sequence[str], **how: object) -> subprocess.Popen[bytes]:
        """Start a program in the machine; it has the pid that is returned, and ends with the machine."""
        key, _, value = self.mark.partition("=")
        environment = {**os.environ, key: value, "PYTHONPATH": str(ROOT)}
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wd={self.directory}", "--"]
        process = subprocess.Popen([*enter, *argv], env=environment, **how)  # type: ignore[call-overload]
        self._stack.callback(_end, process)
        return process  # type: ignore[no-any-return]

    def run(self, *argv: str) -> str:
        """Run a program in the machine to its end; its output. AssertionError if it fails."""
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{' '.join(argv)}: exit {process.returncode}\n{output.decode()}"
        return output.decode()

    def make_image(self, inside: str, size: int = 1 << 20) -> Path:
        image = self.path(inside)
        image.write_bytes(bytes(size))
        return image

    def start_virtlockd(self, which: str, *options: str, socket_path: str = VIRTLOCKD_SOCKET) -> Daemon:
        """The real virtlockd or ours, at the place where libvirt looks for it (ours elsewhere as well)."""
        if which == REAL:
            self.path("/etc/libvirt/virtlockd.conf").write_text("")
            argv = ["/usr/sbin/virtlockd", "-f", "/etc/libvirt/virtlockd.conf", "-p", "/run/virtlockd.pid", *options]
        else:
            argv = [sys.executable, "-m", "leases.cli.main", "virtlockd"]
            argv += ["--socket", socket_path, *options]
        return Daemon(self, f"virtlockd-{which}", argv, socket_path)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine of this test's own."""
    directory = Path(tempfile.mkdtemp(prefix="leasehold-machine-", dir="/var/tmp"))
    try:
        with Machine(directory) as started:
            yield started
    finally:
        shutil.rmtree(directory, ignore_errors=True)
