"""Recorded conversations with the reference's daemon, replayed against another one.

The recorded paths and pids are mapped to those of the replay. Replies are compared field by field, without those
that differ from run to run.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import choice
from typing import Any

from leases.daemon.numbers import Command, StateType
from leases.daemon.wire import Header, Host, IndexEntry, Lockspace, Resource, State, parse_state_text

DATA = Path(__file__).resolve().parents[1] / "data" / "protocol"
_RECORDED_DIR = "/tmp/lh"
#: keys of state texts whose values differ from run to run
_VARYING = {
    "ci", "fd", "pid", "helper_pid", "helper_kill_fd", "helper_last_status", "monotime", "space_id",
    "host_generation", "acquire_last_attempt", "acquire_last_success", "renewal_last_attempt",
    "renewal_last_success", "lver", "reused", "res_id", "token_id", "timestamp", "read_ms", "write_ms",
    "last_check", "last_live", "owner_generation", "high_priority", "mlock_level", "max_worker_threads",
}  # fmt: skip
_PATIENCE = 40.0


def load(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((DATA / name).read_text())["cases"]
    return cases


def directory() -> Path:
    """A new directory whose path is as long as the recorded one, so that paths in messages can be exchanged."""
    while True:
        path = Path("/tmp") / (choice(string.ascii_letters) + choice(string.ascii_letters))
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


#: connects, and hands the connection over: the daemon takes it for its own
_CALLER = """
import array, socket, sys
control, path = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
while control.recv(1):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    control.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))])
    connection.close()
"""


class Caller:
    """A process whose connections are this one's to use."""

    def __init__(self, path: Path) -> None:
        self._control, theirs = socket.socketpair()
        argv = [sys.executable, "-S", "-c", _CALLER, str(theirs.fileno()), str(path)]
        self._process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(self) -> socket.socket:
        self._control.send(b"c")
        _, fds, _, _ = socket.recv_fds(self._control, 1, 1)
        connection = socket.socket(fileno=fds[0])
        connection.settimeout(_PATIENCE)
        return connection

    def close(self) -> None:
        self._control.close()
        self._process.wait(10)


@dataclass
class _Talk:
    """One connection's recorded messages, and how far it is."""

    where: str
    connection: socket.socket
    messages: list[dict[str, Any]]
    next: int = 0

    @property
    def ended(self) -> bool:
        return self.next == len(self.messages)


@dataclass
class Replay:
    """`stage`: what to do before a case. `different`: cases in which ours answers otherwise, on purpose."""

    socket_path: Path
    place: Path
    different: dict[str, str] = field(default_factory=dict)
    stage: dict[str, Callable[[Replay], None]] = field(default_factory=dict)
    #: case -> the connection of each exchange, where they do not follow one another
    order: dict[str, list[int]] = field(default_factory=dict)
    callers: dict[int, Caller] = field(default_factory=dict)
    kept: dict[int, socket.socket] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def caller(self, recorded_pid: int) -> Caller:
        if recorded_pid not in self.callers:
            self.callers[recorded_pid] = Caller(self.socket_path)
        return self.callers[recorded_pid]

    def register(self, recorded_pid: int, further: bytes = b"") -> None:
        """A registered process in the place of a recorded one; with `further` requests that are answered 0."""
        connection = self.kept[recorded_pid] = self.caller(recorded_pid).connect()
        connection.sendall(Header(Command.REGISTER).pack())
        while further:
            connection.sendall(further)
            reply = Header.unpack(connection.recv(32))
            if reply.result != -errno.EAGAIN:  # somebody's release of it is just under way
                assert reply.result == 0, reply
                return
            time.sleep(0.05)

    def end(self, recorded_pid: int) -> None:
        """The process of that recorded pid ends."""
        kept = self.kept.pop(recorded_pid, None)
        if kept is not None:
            kept.close()
        self.callers.pop(recorded_pid).close()

    def close(self) -> None:
        for caller in self.callers.values():
            caller.close()

    def run(self, cases: list[dict[str, Any]]) -> None:
        """`different` may also name how far a case is the same: `case[n]` is its first connection that is not."""
        for case in cases:
            for number in range(len(case["connections"]) - 1, -1, -1):
                if f"{case['name']}[{number}]" in self.different:
                    del case["connections"][number:]
            before = self.stage.get(case["name"])
            if before is not None:
                before(self)
            if case["name"] not in self.different:
                self._case(case)

    def _case(self, case: dict[str, Any]) -> None:
        """Connections one after the other, or their exchanges in the order given for this case."""
        recorded = case["connections"]
        order = self.order.get(case["name"])
        talks: list[_Talk | None] = [None] * len(recorded)
        for number in order or range(len(recorded)):
            talk = talks[number]
            if talk is None:
                connection = self.caller(recorded[number]["client_pid"]).connect()
                talk = talks[number] = _Talk(f"{case['name']}[{number}]", connection, recorded[number]["messages"])
            try:
                self._converse(talk, once=order is not None)
            except OSError as error:
                self.problems.append(f"{talk.where}: {error!r}")
            if talk.ended and recorded[number]["end"][:1] == ["client-closes"]:
                talk.connection.close()
        for talk in talks:
            if talk is not None:
                if not talk.ended:
                    self.problems.append(f"{talk.where}: not all of it was replayed")
                talk.connection.close()
        for pid in {one["client_pid"] for one in recorded} & set(self.callers):
            self.end(pid)

    def _converse(self, talk: _Talk, once: bool) -> None:
        """Go through a conversation, or with `once` up to its next reply."""
        asked = Header(0)
        while not talk.ended:
            message = talk.messages[talk.next]
            talk.next += 1
            data = bytes.fromhex(message["hex"])
            if message["dir"] == "c2d":
                sent = self._mapped(data)
                talk.connection.sendall(sent)
                asked = self._last_header(sent) or asked
                continue
            got = self._receive(talk.connection, len(data), asked)
            self._compare(f"{talk.where}.{talk.next}", asked, self._mapped(data), got)
            if once:
                return

    @staticmethod
    def _last_header(sent: bytes) -> Header | None:
        """The request that the reply will be to: after a REGISTER, what follows it."""
        if len(sent) < 32:
            return None
        first = Header.unpack(sent)
        while first.command == Command.REGISTER and len(sent) >= 64:
            sent = sent[32:]
            first = Header.unpack(sent)
        return first

    def _mapped(self, data: bytes) -> bytes:
        data = data.replace(_RECORDED_DIR.encode(), str(self.place).encode())
        raw = bytearray(data)
        for start in (0, 32):
            if len(raw) >= start + 32:
                header = Header.unpack(bytes(raw[start : start + 32]))
                about_pid = header.command in (Command.ACQUIRE, Command.RELEASE, Command.INQUIRE, Command.CONVERT)
                if about_pid and header.data2 in self.callers and header.magic == 0x04282010:
                    raw[start + 28 : start + 32] = self.callers[header.data2].pid.to_bytes(4, "little")
        return bytes(raw)

    @staticmethod
    def _receive(connection: socket.socket, length: int, asked: Header) -> bytes:
        if asked.command in (Command.STATUS, Command.HOST_STATUS, Command.RENEWAL, Command.LOG_DUMP):
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
            return b"".join(parts)
        if length == 0:
            readable, _, _ = select.select([connection], [], [], 0.2)
            return connection.recv(1) if readable else b""
        data = b""
        while len(data) < length and (part := connection.recv(length - len(data))):
            data += part
        return data

    # ------------------------------------------------------------------------------------------------ comparing

    def _compare(self, where: str, asked: Header, expected: bytes, got: bytes) -> None:
        want, have = list(facts(asked.command, expected)), list(facts(asked.command, got))
        for fact in want:
            if fact not in have:
                self.problems.append(f"{where}: missing {fact}")
        for fact in have:
            if fact not in want:
                self.problems.append(f"{where}: surplus {fact}")


def facts(command: int, reply: bytes) -> Iterator[tuple[Any, ...]]:
    """What a reply says, without what varies."""
    if len(reply) < 32:
        yield ("bytes", len(reply))
        return
    header = Header.unpack(reply)
    data = 0 if command == Command.LOG_DUMP else header.data
    yield ("header", header.command, header.flags, header.length, header.seq, data, header.data2)
    yield ("magic", header.magic, header.version)
    body = reply[32:]
    if command in (Command.STATUS, Command.HOST_STATUS):
        yield from _states(body)
    elif command == Command.GET_LOCKSPACES:
        for at in range(0, len(body), Lockspace.layout.size):
            yield ("lockspace", Lockspace.unpack(body, at))
    elif command == Command.READ_LOCKSPACE and body:
        yield ("lockspace", Lockspace.unpack(body))
    elif command in (Command.READ_RESOURCE, Command.READ_RESOURCE_OWNERS) and body:
        found = Resource.unpack(body)
        yield ("resource", found.lockspace, found.name, found.flags, found.num_disks)
        yield from _hosts(body[128:])
    elif command == Command.GET_HOSTS:
        yield from _hosts(body)
    elif command in range(Command.UPDATE_RINDEX, Command.REBUILD_RINDEX) and body:
        yield ("entry", IndexEntry.unpack(body))
    elif command == Command.INQUIRE:
        yield ("state", [text.rpartition(b":")[0] for text in body.split(b" ")])
    elif command not in (Command.LOG_DUMP, Command.RENEWAL):
        yield ("body", body)


def _hosts(body: bytes) -> Iterator[tuple[Any, ...]]:
    for at in range(0, len(body), Host.layout.size):
        host = Host.unpack(body, at)
        yield ("host", host.host_id, bool(host.generation), bool(host.timestamp), host.io_timeout, host.flags)


def _states(body: bytes) -> Iterator[tuple[Any, ...]]:
    at = 0
    while at < len(body):
        state = State.unpack(body, at)
        at += State.layout.size
        text = body[at : at + state.text_length]
        at += state.text_length
        values = parse_state_text(text)
        values.pop("renewal_late_ms", None)  # which the reference does not tell
        fixed = {key: value for key, value in values.items() if key not in _VARYING}
        keys = tuple(values)
        yield ("state", state.type, state.name, text.endswith(b"\0"), keys, tuple(sorted(fixed.items())))
        if state.type is StateType.LOCKSPACE:
            lockspace = Lockspace.unpack(body, at)
            yield ("state lockspace", lockspace)
            at += Lockspace.layout.size
        elif state.type is StateType.RESOURCE:
            resource = Resource.unpack_with_disks(body, at)
            yield ("state resource", resource.lockspace, resource.name, resource.flags, resource.disks)
            at += resource.wire_size


def remove(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()
    os.rmdir(place)
