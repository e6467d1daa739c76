"""What was recorded between clients and the real virtlockd, replayed byte by byte against both daemons."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.virtlockd import rpc
from tests.support.libvirt import OURS, REAL, Machine, machine
from tests.support.lockclient import LockClient, posix_lock

__all__ = ["machine"]

DATA = Path(__file__).parents[1] / "data" / "virtlockd"
DEMO = "/var/lib/libvirt/images/demo.img"
pytestmark = pytest.mark.peers

#: where we answer otherwise than the real one, on purpose: the note of the call, and our error's code and domain
BETTER = {
    "NEW where mkdir fails": (38, 51),
    "NEW where mkdir failed before": (38, 51),
    "no check of .. in names": (8, 51),
}


def frames(name: str) -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = json.loads((DATA / f"{name}.json").read_text())["frames"]
    return recorded


def sections(name: str) -> Iterator[list[dict[str, Any]]]:
    """A new connection begins where a case or a connection is named."""
    section: list[dict[str, Any]] = []
    for frame in frames(name):
        if ("case" in frame or "connection" in frame) and section:
            yield section
            section = []
        if "from" in frame:
            section.append(frame)
    yield section


class Wire:
    """A connection that knows only bytes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(path))

    def frame(self) -> bytes:
        head = self.socket.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return head
        return head + self.socket.recv(int.from_bytes(head, "big") - 4, socket.MSG_WAITALL)


@pytest.fixture(params=[OURS, REAL])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon_socket(machine: Machine, which: str) -> Path:
    machine.make_image(DEMO)
    return machine.start_virtlockd(which).socket


def expect_error(answer: bytes, code: int, domain: int) -> None:
    parser = rpc.Frames(answer)
    message = parser.next()
    assert message is not None and message.status == rpc.Status.ERROR
    error = rpc.Error.unpack(message.payload)
    assert (error.code, error.domain) == (code, domain)


@pytest.mark.parametrize("name", ["dialog_basic", "dialog_errors", "dialog_shared_autocreate", "dialog_pipelined"])
def test_a_dialog_is_answered_byte_by_byte(machine: Machine, daemon_socket: Path, which: str, name: str) -> None:
    if name == "dialog_errors":  # recorded where this one was known already
        with LockClient(daemon_socket) as earlier:
            assert earlier.create_lockspace("/srv/lockd/area") is None
    for section in sections(name):
        wire = Wire(daemon_socket)
        note = ""
        stranger = -1
        for frame in section:
            if frame["from"] == "client":
                note = frame.get("note", "")
                if note == "RELEASE by an owner that does not hold it":  # somebody else holds it
                    with LockClient(daemon_socket) as other:
                        other.register(22450)
                        other.create("/srv/lockd/area", "k2")
                        assert other.acquire("/srv/lockd/area", "k2") is None
                if note == "another process holds the fcntl lock":
                    stranger = posix_lock(machine.path(DEMO))
                wire.socket.sendall(bytes.fromhex(frame["hex"]))
                continue
            answer = wire.frame()
            if which == OURS and note in BETTER:
                expect_error(answer, *BETTER[note])
            else:
                assert answer.hex() == frame["hex"], note
            if stranger >= 0:
                os.close(stranger)
                stranger = -1
        wire.socket.close()


def test_broken_frames_are_met_as_recorded(daemon_socket: Path) -> None:
    ping = rpc.Message(rpc.KEEPALIVE, 1, rpc.Keepalive.PING, rpc.Type.MESSAGE, 0, 0).pack()
    pong = rpc.Message(rpc.KEEPALIVE, 1, rpc.Keepalive.PONG, rpc.Type.MESSAGE, 0, 0).pack()
    for section in sections("dialog_framing"):
        wire = Wire(daemon_socket)
        for frame in section:
            if frame["from"] == "client":
                wire.socket.sendall(bytes.fromhex(frame["hex"]))
            elif frame.get("eof"):
                assert wire.frame() == b""
            elif "hex" in frame:
                assert wire.frame().hex() == frame["hex"]
            elif len(bytes.fromhex(section[0]["hex"])) > 4:  # a whole message, left unanswered: the next one is not
                wire.socket.sendall(ping)
                assert wire.frame() == pong
        wire.socket.close()


def test_a_call_in_single_bytes_is_answered(daemon_socket: Path) -> None:
    first, answer = list(sections("dialog_pipelined"))[1]
    wire = Wire(daemon_socket)
    for byte in bytes.fromhex(first["hex"]):
        wire.socket.sendall(bytes([byte]))
    assert wire.frame().hex() == answer["hex"]


def test_every_recorded_frame_is_understood() -> None:
    """Each frame that was recorded decodes, and encodes to the same bytes."""
    for path in DATA.glob("dialog_*.json"):
        for frame in json.loads(path.read_text())["frames"]:
            if "hex" not in frame or len(frame["hex"]) < 2 * rpc.SMALLEST:
                continue
            data = bytes.fromhex(frame["hex"])
            message = rpc.Frames(data).next()
            assert message is not None
            assert message.pack() == data
            if message.type == rpc.Type.REPLY and message.status == rpc.Status.ERROR:
                assert rpc.Error.unpack(message.payload).pack() == message.payload


def test_the_lock_is_the_one_that_was_recorded(machine: Machine, daemon_socket: Path) -> None:
    """Byte 0, length 1: neither more nor less is locked."""
    dialog = frames("dialog_shared_autocreate")
    wire = Wire(daemon_socket)
    for frame in dialog:
        if frame["from"] == "client":
            wire.socket.sendall(bytes.fromhex(frame["hex"]))
            wire.frame()
            if frame.get("note", "").startswith("default lockspace"):
                break
    with pytest.raises(BlockingIOError):
        posix_lock(machine.path(DEMO))
    fd = os.open(machine.path(DEMO), os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 1, os.SEEK_SET)  # from byte 1 to the end
    os.close(fd)
    wire.socket.close()
