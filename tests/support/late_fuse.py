"""The server of a LateDisk: one memory, mounted as a file once per path, that holds back chosen I/O.

    python late_fuse.py SIZE SOCKET MOUNT...        (each MOUNT an existing file; its name is the path's name)

It speaks the kernel's FUSE protocol over /dev/fuse itself: a bridge with one lock around its I/O can't hold one
write and let the next pass. The root of each mount is the file. Commands come as JSON lines over the Unix
socket, see `_Commands`. Ends when its standard input does, so it never outlives who started it; the kernel then
answers ENOTCONN to everything still held.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import socket
import stat
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# opcodes
_FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE = 2, 3, 4, 14, 15, 16, 17, 18
_FSYNC, _FLUSH, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = 20, 25, 26, 36, 38, 42

# flags of INIT: without ASYNC_DIO one held write would block the loop device above
_ASYNC_READ, _BIG_WRITES, _ASYNC_DIO, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
# flags of OPEN: no page cache, so that every path sees what every other path wrote
_DIRECT_IO, _PARALLEL_DIRECT_WRITES = 1 << 0, 1 << 6

_IN_HEADER = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extension, padding
_OUT_HEADER = struct.Struct("=IiQ")  # length, -errno, unique
_INIT_IN = struct.Struct("=IIII")  # major, minor, readahead, flags
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_TRANSFER = struct.Struct("=QQIIQII")  # fh, offset, size, flags, lock owner, flags, padding
_ATTR = struct.Struct("=QIIQQQQQQ10I")
_MAX_TRANSFER = 1 << 20
_PAGE = 4096
_BLOCK = 512


@dataclass
class Rule:
    """Which I/O to hold: of one path and kind, touching bytes [start, end), with `content` at places in its data."""

    number: int
    path: str
    operation: str
    start: int
    end: int
    content: list[tuple[int, bytes]]
    skip: int
    count: int
    landing: str

    def takes(self, path: str, operation: str, offset: int, length: int, data: bytes) -> bool:
        """Whether it holds this I/O; counts it if so."""
        if (path, operation) != (self.path, self.operation) or not self.count:
            return False
        if offset >= self.end or offset + length <= self.start:
            return False
        if any(data[place : place + len(want)] != want for place, want in self.content):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.count -= 1
        return True


@dataclass
class Held:
    """One I/O held back; its answer goes to request `unique` of its path."""

    rule: Rule
    unique: int
    offset: int
    length: int
    data: bytes
    since: float = field(default_factory=time.monotonic)


class Disk:
    """The memory, the rules, and what is held."""

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)
        self.rules: list[Rule] = []
        self.held: list[Held] = []
        self.mounts: dict[str, Mount] = {}

    def holds(self, path: str, operation: str, unique: int, offset: int, length: int, data: bytes) -> bool:
        for rule in self.rules:
            if rule.takes(path, operation, offset, length, data):
                self.held.append(Held(rule, unique, offset, length, data))
                if rule.landing == "at once":
                    self.memory[offset : offset + length] = data
                return True
        return False

    def let_go(self, held: Held, failure: int) -> None:
        """Answer it: `failure` is an errno, or 0 to let it happen."""
        mount = self.mounts[held.rule.path]
        if failure:
            mount.answer(held.unique, b"", failure)
        elif held.rule.operation == "read":
            mount.answer_read(held.unique, held.offset, held.length)
        else:
            if held.rule.landing == "late":
                self.memory[held.offset : held.offset + held.length] = held.data
            mount.answer_write(held.unique, held.length)


class Mount:
    """One path to the disk: a FUSE mount whose root is the disk as a regular file."""

    def __init__(self, disk: Disk, point: Path) -> None:
        self.name = point.name
        self.point = point
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._disk = disk
        options = f"fd={self.fd},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"latedisk", bytes(point), b"fuse", 0, options.encode()) < 0:
            raise OSError(ctypes.get_errno(), "mount", str(point))

    def serve(self) -> bool:
        """Handle one request. False at the end of the mount."""
        try:
            request = os.read(self.fd, _MAX_TRANSFER + 2 * _PAGE)
        except InterruptedError:
            return True
        except OSError as failure:
            return failure.errno in (errno.ENOENT, errno.EAGAIN)  # the request was taken back
        _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
        body = memoryview(request)[_IN_HEADER.size :]
        if opcode == _READ:
            self._read(unique, body)
        elif opcode == _WRITE:
            self._write(unique, body)
        elif opcode not in (_FORGET, _BATCH_FORGET, _INTERRUPT):
            self._other(opcode, unique, body)
        return True

    def _read(self, unique: int, body: memoryview) -> None:
        _, offset, length, *_ = _TRANSFER.unpack_from(body)
        if not self._disk.holds(self.name, "read", unique, offset, length, b""):
            self.answer_read(unique, offset, length)

    def _write(self, unique: int, body: memoryview) -> None:
        _, offset, length, *_ = _TRANSFER.unpack_from(body)
        data = bytes(body[_TRANSFER.size : _TRANSFER.size + length])
        if offset + length > len(self._disk.memory):
            self.answer(unique, b"", errno.ENOSPC)
        elif not self._disk.holds(self.name, "write", unique, offset, length, data):
            self._disk.memory[offset : offset + length] = data
            self.answer_write(unique, length)

    def _other(self, opcode: int, unique: int, body: memoryview) -> None:
        if opcode == _INIT:
            _, minor, readahead, offered = _INIT_IN.unpack_from(body)
            flags = offered & (_ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES)
            pages = _MAX_TRANSFER // _PAGE
            # what is held counts as background: its limit must never be reached
            self.answer(
                unique,
                _INIT_OUT.pack(7, min(minor, 31), readahead, flags, 4096, 4096, _MAX_TRANSFER, 1, pages, 0, 0),
            )
        elif opcode in (_GETATTR, _SETATTR):
            self.answer(unique, self._attributes())
        elif opcode == _OPEN:
            self.answer(unique, struct.pack("=QII", 0, _DIRECT_IO | _PARALLEL_DIRECT_WRITES, 0))
        elif opcode == _STATFS:
            self.answer(unique, bytes(80))
        elif opcode in (_RELEASE, _FLUSH, _FSYNC, _DESTROY):
            self.answer(unique, b"")
        else:
            self.answer(unique, b"", errno.ENOSYS)

    def _attributes(self) -> bytes:
        size = len(self._disk.memory)
        mode = stat.S_IFREG | 0o666
        return _ATTR.pack(3600, 0, 0, 1, size, size // _BLOCK, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, _PAGE, 0)

    def answer_read(self, unique: int, offset: int, length: int) -> None:
        self.answer(unique, self._disk.memory[offset : offset + length])

    def answer_write(self, unique: int, length: int) -> None:
        self.answer(unique, struct.pack("=II", length, 0))

    def answer(self, unique: int, body: bytes | bytearray, failure: int = 0) -> None:
        header = _OUT_HEADER.pack(_OUT_HEADER.size + len(body), -failure, unique)
        try:
            os.writev(self.fd, [header, body])
        except OSError as gone:  # whoever asked was killed meanwhile
            if gone.errno not in (errno.ENOENT, errno.EINVAL):
                raise


class Commands:
    """The control socket: each line a JSON object with `do`, answered by one line."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._rules = 0

    def handle(self, line: bytes) -> bytes:
        facts = json.loads(line)
        try:
            answer = getattr(self, "do_" + facts.pop("do"))(**facts)
        except Exception as failure:
            answer = {"failed": f"{type(failure).__name__}: {failure}"}
        return json.dumps(answer).encode() + b"\n"

    def do_hold(self, content: list[tuple[int, str]], **facts: Any) -> dict[str, int]:
        self._rules += 1
        wanted = [(place, bytes.fromhex(data)) for place, data in content]
        if facts["path"] not in self._disk.mounts:
            raise ValueError(f"no path {facts['path']!r}")
        self._disk.rules.append(Rule(number=self._rules, content=wanted, **facts))
        return {"rule": self._rules}

    def do_held(self, rule: int | None) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {
                "rule": held.rule.number,
                "path": held.rule.path,
                "operation": held.rule.operation,
                "offset": held.offset,
                "length": held.length,
                "data": held.data.hex(),
                "age": now - held.since,
            }
            for held in self._disk.held
            if rule in (None, held.rule.number)
        ]

    def do_release(self, rule: int | None, failure: int) -> dict[str, int]:
        disk = self._disk
        mine = [held for held in disk.held if rule in (None, held.rule.number)]
        disk.rules = [other for other in disk.rules if rule is not None and other.number != rule]
        disk.held = [held for held in disk.held if held not in mine]
        for held in mine:
            disk.let_go(held, failure)
        return {"released": len(mine)}

    def do_peek(self, offset: int, length: int) -> dict[str, str]:
        return {"data": self._disk.memory[offset : offset + length].hex()}

    def do_poke(self, offset: int, data: str) -> dict[str, int]:
        raw = bytes.fromhex(data)
        if offset + len(raw) > len(self._disk.memory):
            raise ValueError("beyond the end of the disk")
        self._disk.memory[offset : offset + len(raw)] = raw
        return {"written": len(raw)}


def main(size: str, control: str, *points: str) -> None:
    disk = Disk(int(size))
    selector = selectors.DefaultSelector()
    for point in points:
        mount = Mount(disk, Path(point))
        disk.mounts[mount.name] = mount
        selector.register(mount.fd, selectors.EVENT_READ, mount)
    commands = Commands(disk)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(control)
    listener.listen()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    clients: dict[int, bytes] = {}
    while True:
        for key, _ in selector.select():
            if isinstance(key.data, Mount):
                if not key.data.serve():
                    selector.unregister(key.fd)
            elif key.fileobj is listener:
                client, _ = listener.accept()
                selector.register(client, selectors.EVENT_READ)
                clients[client.fileno()] = b""
            elif isinstance(key.fileobj, socket.socket):
                received = key.fileobj.recv(1 << 20)
                *lines, clients[key.fd] = (clients[key.fd] + received).split(b"\n")
                for line in lines:
                    key.fileobj.sendall(commands.handle(line))
                if not received:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
            else:
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
