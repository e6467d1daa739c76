"""Disks to test on: plain ones, and ones that are slow, fail, hang, or let single writes land late.

    PlainDisk    a regular file, written full
    LoopDisk     a block device with sectors of 512 or 4096 bytes
    FaultyDisk   answers EIO, hangs and comes back, by command; as a file and as a block device, over several paths
    LateDisk     holds back chosen writes (or reads) of one path while everything else passes

All are context managers and have `path` (of what a program under test opens), `size` and `sector_size` in bytes.
All but PlainDisk need root. Closing takes everything away, also while the disk hangs. Even if this process is
killed, loop devices go (they live as long as it keeps them open), and so does the server of a LateDisk.

A process with an I/O on a hung disk does not even die by SIGKILL: resume the disk before waiting for it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

MIB = 1 << 20
#: not /tmp, which may be tmpfs
IMAGES = Path("/var/tmp")

_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
#: struct loop_config: file, sector size, and of the 232 bytes of struct loop_info64 the flags
_LOOP_CONFIG = struct.Struct("=II52xI176x64x")
_LOOP_FLAGS = 4 | 16  # autoclear, direct I/O


class Disk:
    """What all disks have in common: a directory of their own, and an orderly end."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sector_size = 512
        self.path = ""
        self._stack = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="leasehold-disk-", dir=IMAGES))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)

    def close(self) -> None:
        """Take it away; harmless the second time."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk, not through the path under test and not through a cache."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes on the disk, not through the path under test."""
        raise NotImplementedError


class PlainDisk(Disk):
    """A regular file of `size` bytes in `path`, written full: a hole reads faster than a disk."""

    def __init__(self, size: int = 64 * MIB) -> None:
        super().__init__(size)
        image = self.directory / "image"
        self.path = self.image = str(image)
        with image.open("wb") as file:
            for start in range(0, size, MIB):
                file.write(bytes(min(MIB, size - start)))
            os.fsync(file.fileno())

    def read(self, offset: int, length: int) -> bytes:
        with open(self.image, "rb") as file:
            return os.pread(file.fileno(), length, offset)

    def write(self, offset: int, data: bytes) -> None:
        with open(self.image, "r+b") as file:
            os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())


class LoopDisk(PlainDisk):
    """A block device in `path`, with sectors of 512 or 4096 bytes, over a file of `size` bytes."""

    def __init__(self, sector_size: int = 512, size: int = 64 * MIB) -> None:
        super().__init__(size)
        self.sector_size = sector_size
        self.path = self._stack.enter_context(_Loop(self.image, sector_size)).path


class FaultyDisk(Disk):
    """A disk in memory that fails and hangs by command, over any number of paths to the same bytes.

    `files` and `devices` have, by path name, the disk as a (FUSE) file and as a block device; `path` is the first
    device. open(2) of a file hangs with the disk, of a device it doesn't. `delay` is what each request takes (s).
    """

    def __init__(
        self,
        size: int = 64 * MIB,
        *,
        paths: Sequence[str] = ("a",),
        sector_size: int = 512,
        delay: float = 0.0,
    ) -> None:
        super().__init__(size)
        self.sector_size = sector_size
        self.files: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        self._servers: dict[str | None, int] = {}
        self._fail_read = self.directory / "fail-read"
        self._fail_write = self.directory / "fail-write"
        try:
            self._start_memory(delay)
            for path in paths:
                self._start_path(path)
        except BaseException:
            self.close()
            raise
        self.path = self.devices[paths[0]]

    def _start_memory(self, delay: float) -> None:
        pid_file = self.directory / "nbdkit.pid"
        socket_path = self.directory / "sock"
        command = ["nbdkit", "-P", str(pid_file), "-U", str(socket_path), "--threads", "64", "--filter=error"]
        settings = []
        if delay:
            command.append("--filter=delay")
            settings = [f"rdelay={delay * 1000:.0f}ms", f"wdelay={delay * 1000:.0f}ms"]
        for operation, file in (("pread", self._fail_read), ("pwrite", self._fail_write)):
            settings += [f"error-{operation}=EIO", f"error-{operation}-rate=100%"]
            settings += [f"error-{operation}-file={file}"]
        # it forks by itself: in the foreground it would shut down with the shell that started it
        subprocess.run([*command, "memory", str(self.size), *settings], check=True, stdin=subprocess.DEVNULL)
        _wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "nbdkit")
        self._servers[None] = int(pid_file.read_text())
        self._stack.callback(_kill, self._servers[None])
        self._stack.callback(self.resume)

    def _start_path(self, name: str) -> None:
        mount = self.directory / name
        mount.mkdir()
        file = mount / "disk"
        with (self.directory / f"{name}.log").open("wb") as log:
            server = subprocess.Popen(
                ["nbdfuse", str(file), "--unix", str(self.directory / "sock")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._stack.callback(_end_child, server)
        self._stack.callback(_unmount, mount)
        self._servers[name] = server.pid
        _wait_for(file.exists, f"nbdfuse for path {name}")
        self.files[name] = str(file)
        self.devices[name] = self._stack.enter_context(_Loop(str(file), self.sector_size)).path
        self._stack.callback(self.resume)

    def fail_reads(self) -> None:
        """From now on reads answer EIO."""
        self._fail_read.touch()

    def fail_writes(self) -> None:
        """From now on writes answer EIO."""
        self._fail_write.touch()

    def heal(self) -> None:
        """From now on reads and writes work again."""
        self._fail_read.unlink(missing_ok=True)
        self._fail_write.unlink(missing_ok=True)

    def hang(self, path: str | None = None) -> None:
        """From now on I/O over `path` (over every path: None) does not come back."""
        os.kill(self._servers[path], signal.SIGSTOP)
        _wait_for(lambda: _has_stopped(self._servers[path]), "the disk to hang")

    def resume(self, path: str | None = None) -> None:
        """Hung I/O of `path` (None: of all) completes now, late, and new I/O works again."""
        for name, pid in self._servers.items():
            if path is None or name == path:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def die(self) -> None:
        """The disk is gone for good: I/O answers an error at once."""
        _kill(self._servers[None])

    def read(self, offset: int, length: int) -> bytes:
        return _aligned_copy(next(iter(self.files.values())), offset, length)

    def write(self, offset: int, data: bytes) -> None:
        with open(next(iter(self.files.values())), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())


@dataclass(frozen=True)
class HeldIO:
    """An I/O that a LateDisk holds back, for `age` seconds so far; `data` is what a write would write."""

    rule: int
    path: str
    operation: str
    offset: int
    length: int
    data: bytes
    age: float


class LateDisk(Disk):
    """A disk in memory over several paths, of which chosen I/O is held back while everything else passes.

        with LateDisk(paths=("a", "b")) as disk:
            rule = disk.hold("a", offset=leader, content={0: LEADER_MAGIC})   # the next such write of path a
            ...                                        # host A, on disk.devices["a"], commits: its write times out
            disk.wait_held(rule)
            ...                                        # host B, on disk.devices["b"], acts
            disk.release(rule)                         # now A's write lands

    `files` and `devices` have, by path name, the disk as a (FUSE) file and as a block device; `path` is the first
    device. Give each host its own path: that is two hosts with their own path to one disk.
    """

    def __init__(self, size: int = 16 * MIB, *, paths: Sequence[str] = ("a", "b"), sector_size: int = 512) -> None:
        super().__init__(size)
        self.sector_size = sector_size
        self.files: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        try:
            self._start(paths)
        except BaseException:
            self.close()
            raise
        self.path = self.devices[paths[0]]

    def _start(self, paths: Sequence[str]) -> None:
        control = self.directory / "control"
        for name in paths:
            point = self.directory / name
            point.touch()
            self.files[name] = str(point)
        server = Path(__file__).with_name("late_fuse.py")
        for name in paths:
            self._stack.callback(_unmount, self.directory / name)
        process = subprocess.Popen(
            [sys.executable, str(server), str(self.size), str(control), *self.files.values()],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._stack.callback(_end_child, process)
        self._socket = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        _wait_for(lambda: process.poll() is not None or _connected(self._socket, str(control)), "late_fuse.py")
        self._replies = self._stack.enter_context(self._socket.makefile("rb"))
        for name, file in self.files.items():
            loop = self._stack.enter_context(_Loop(file, self.sector_size))
            loop.write_through()
            self.devices[name] = loop.path
        self._stack.callback(self.release)

    def hold(
        self,
        path: str,
        *,
        offset: int = 0,
        length: int | None = None,
        content: dict[int, bytes] | None = None,
        operation: str = "write",
        skip: int = 0,
        count: int = 1,
        landing: str = "late",
    ) -> int:
        """Hold back I/O of `path`, from now on; returns the number of this rule.

        What is held: `operation` (write or read) that touches `length` bytes from `offset` on (None: to the end of
        the disk) and whose data has at each place of `content` the bytes given there; the first `skip` such I/Os
        pass, the next `count` are held, later ones pass. `landing`: "late" lets a held write happen when it is
        released; "at once" lets it happen when it arrives and only holds back the answer.
        """
        assert operation in ("write", "read") and landing in ("late", "at once")
        answer = self._ask(
            do="hold",
            path=path,
            operation=operation,
            start=offset,
            end=self.size if length is None else offset + length,
            content=[(place, data.hex()) for place, data in (content or {}).items()],
            skip=skip,
            count=count,
            landing=landing,
        )
        return int(answer["rule"])

    def held(self, rule: int | None = None) -> list[HeldIO]:
        """What is held now, by `rule` (None: by any), in the order in which it came."""
        return [HeldIO(**{**facts, "data": bytes.fromhex(facts["data"])}) for facts in self._ask(do="held", rule=rule)]

    def wait_held(self, rule: int, timeout: float = 30.0) -> HeldIO:
        """Wait until `rule` holds something; the first of it. Raises TimeoutError."""
        _wait_for(lambda: bool(self.held(rule)), f"an I/O for rule {rule}", timeout)
        return self.held(rule)[0]

    def release(self, rule: int | None = None, *, failure: int = 0) -> int:
        """End `rule` (None: all rules) and let go of what it holds, in order; how many that were.

        With an errno as `failure` they don't happen but answer that error.
        """
        return int(self._ask(do="release", rule=rule, failure=failure)["released"])

    def read(self, offset: int, length: int) -> bytes:
        return bytes.fromhex(self._ask(do="peek", offset=offset, length=length)["data"])

    def write(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), MIB):
            self._ask(do="poke", offset=offset + start, data=data[start : start + MIB].hex())

    def _ask(self, **command: Any) -> Any:
        self._socket.sendall(json.dumps(command).encode() + b"\n")
        answer = json.loads(self._replies.readline())
        if isinstance(answer, dict) and "failed" in answer:
            raise ValueError(answer["failed"])
        return answer


class _Loop:
    """A loop device that lasts as long as this process keeps it open (autoclear)."""

    def __init__(self, file: str, sector_size: int) -> None:
        backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.path, self._fd = _take_loop(_LOOP_CONFIG.pack(backing, sector_size, _LOOP_FLAGS))
        finally:
            os.close(backing)

    def write_through(self) -> None:
        """No flush after O_SYNC writes: one that is held would stall every other write of the device."""
        Path("/sys/block", Path(self.path).name, "queue/write_cache").write_text("write through")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def _take_loop(config: bytes) -> tuple[str, int]:
    """Configure a free loop device; others take them too, so try the next one when it is gone."""
    while True:
        with open("/dev/loop-control", "rb") as control:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        path = f"/dev/loop{number}"
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
        except OSError as failure:
            os.close(fd)
            if failure.errno != errno.EBUSY:
                raise
        else:
            return path, fd


def _wait_for(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.01)


def _connected(connection: socket.socket, path: str) -> bool:
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _unmount(point: Path) -> None:
    """Lazily: a user that is still in there must not keep a test from ending."""
    subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)


def _end_child(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


def _kill(pid: int) -> None:
    """The disk in memory needs no orderly end, which takes it a second."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _has_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached every thread."""
    states = [status.read_text().rsplit(")")[1].split()[0] for status in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def _aligned_copy(path: str, offset: int, length: int) -> bytes:
    """Bytes of a file, past the page cache."""
    start = offset // 4096 * 4096
    end = -(-(offset + length) // 4096) * 4096
    with mmap.mmap(-1, end - start) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(fd, [buffer], start)
        finally:
            os.close(fd)
        return buffer[offset - start : offset - start + length]


# ------------------------------------------------------------------------------------------- as pytest fixtures


@pytest.fixture
def plain_disk() -> Iterator[PlainDisk]:
    with PlainDisk() as disk:
        yield disk


@pytest.fixture(params=[512, 4096])
def loop_disk(request: pytest.FixtureRequest) -> Iterator[LoopDisk]:
    """A block device, of both sector sizes in turn."""
    with LoopDisk(request.param) as disk:
        yield disk


@pytest.fixture
def faulty_disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as disk:
        yield disk


@pytest.fixture
def late_disk() -> Iterator[LateDisk]:
    """With paths a and b."""
    with LateDisk() as disk:
        yield disk
