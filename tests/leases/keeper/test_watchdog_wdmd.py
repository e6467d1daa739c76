"""What is said to wdmd is byte for byte what sanlock says, and no answer of it is believed in vain."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.keeper.watchdog import open_watchdog
from leases.keeper.watchdog.base import boot_time
from leases.keeper.watchdog.wdmd import (
    MESSAGE_SIZE,
    OPEN_WATCHDOG,
    REFCOUNT_CLEAR,
    REFCOUNT_SET,
    REGISTER,
    STATUS,
    TEST_LIVE,
    Message,
    WdmdWatchdog,
)
from paxos.errors import WatchdogUnavailable

STORY = json.loads((Path(__file__).parents[2] / "data" / "wdmd.json").read_text())["cases"][0]
MESSAGES = STORY["connections"][0]["messages"]
CAPTURED_AT = 2125.0  # of the machine that was listened to

Answer = Callable[[Message], bytes]


class Wdmd:
    """A double: keeps the connections' messages, and answers as told. Answers of None mean silence."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.fire = 60
        self.last_keepalive: Callable[[], int] = lambda: int(boot_time())
        self.later = False  # a version that opens its device on request
        self.opened = False
        self.can_open = True
        self.answer: Answer = self.status
        self.hang_up_on: int | None = None
        self.connections: list[list[bytes]] = []
        self.ended: list[threading.Event] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(5)
        threading.Thread(target=self._accept, daemon=True).start()

    def status(self, message: Message) -> bytes:
        runs = self.opened or not self.later
        return Message(STATUS, 10, self.fire if runs else 0, self.last_keepalive() if runs else 0).pack()

    def commands(self, connection: int = 0) -> list[int]:
        return [Message.unpack(data).command for data in self.connections[connection]]

    def close(self) -> None:
        # shutdown, not only close: a thread that waits in accept keeps the socket listening
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def await_end(self, connection: int = 0) -> None:
        """Wait until the connection of that number was made and has ended."""
        deadline = time.monotonic() + 10
        while len(self.ended) <= connection or not self.ended[connection].wait(0.01):
            assert time.monotonic() < deadline

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append([])
            self.ended.append(threading.Event())
            arguments = (channel, self.connections[-1], self.ended[-1])
            threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def _serve(self, channel: socket.socket, heard: list[bytes], ended: threading.Event) -> None:
        with channel, contextlib.suppress(OSError):
            while len(data := channel.recv(MESSAGE_SIZE, socket.MSG_WAITALL)) == MESSAGE_SIZE:
                heard.append(data)
                message = Message.unpack(data)
                if message.command == self.hang_up_on:
                    break
                if message.command == STATUS:
                    channel.sendall(self.answer(message))
                if message.command == OPEN_WATCHDOG and self.later:
                    self.opened = self.can_open
                    self.fire = message.fire_timeout
                    channel.sendall(Message(OPEN_WATCHDOG, fire_timeout=self.fire if self.opened else 0).pack())
        ended.set()


@pytest.fixture
def wdmd(tmp_path: Path) -> Iterator[Wdmd]:
    double = Wdmd(tmp_path / "wdmd.sock")
    yield double
    double.close()


@pytest.fixture
def watchdog(wdmd: Wdmd) -> WdmdWatchdog:
    return WdmdWatchdog(60, wdmd.path, answer_timeout=5)


def test_a_lockspaces_life_is_byte_for_byte_that_of_the_reference(wdmd: Wdmd) -> None:
    answer = bytes.fromhex(next(m["hex"] for m in MESSAGES if m["dir"] == "wdmd-to-sanlock"))
    wdmd.answer = lambda message: answer
    connection = WdmdWatchdog(60, wdmd.path, clock=lambda: CAPTURED_AT).open("sanlock_LW:1")
    connection.arm(2125.9, 2141.9)
    connection.renew(2130.2, 2146.2)
    connection.renew(2135.0, 2151.0)
    connection.disarm()
    connection.close()
    wdmd.await_end()
    assert wdmd.connections == [[bytes.fromhex(m["hex"]) for m in MESSAGES if m["dir"] == "sanlock-to-wdmd"]]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m["decoded"]["cmd_name"])
def test_messages_read_as_they_were_written(message: dict[str, object]) -> None:
    data = bytes.fromhex(str(message["hex"]))
    decoded = message["decoded"]
    assert isinstance(decoded, dict)
    read = Message.unpack(data)
    assert read.pack() == data
    assert (read.command, read.expire_time, read.name) == (
        decoded["cmd"],
        decoded["expire_time"],
        decoded["name"],
    )


def test_it_connects_before_the_host_lease_and_says_nothing_yet(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    connection = watchdog.open("sanlock_LS:1")
    connection.close()
    wdmd.await_end()
    assert wdmd.connections == [[]]


def test_a_late_renewal_does_not_arm_again(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    connection = watchdog.open("sanlock_LS:1")
    connection.renew(10, 90)
    connection.arm(10, 90)
    connection.disarm()
    connection.renew(20, 100)
    connection.disarm()
    connection.close()
    connection.close()
    wdmd.await_end()
    assert wdmd.commands() == [REGISTER, REFCOUNT_SET, STATUS, TEST_LIVE, TEST_LIVE, REFCOUNT_CLEAR]
    assert Message.unpack(wdmd.connections[0][-2]).expire_time == 0


def test_closing_an_armed_connection_leaves_its_expiry_with_wdmd(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    connection = watchdog.open("sanlock_LS:1")
    connection.arm(10, 90)
    connection.close()
    wdmd.await_end()
    assert Message.unpack(wdmd.connections[0][-1]).expire_time == 90


def test_another_fire_timeout_is_refused_and_nothing_stays_armed(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    wdmd.fire = 30
    connection = watchdog.open("sanlock_LS:1")
    with pytest.raises(WatchdogUnavailable, match="after 30 s, not after 60 s") as caught:
        connection.arm(10, 90)
    assert caught.value.code == -203
    wdmd.await_end(1)
    assert not any(TEST_LIVE in wdmd.commands(n) for n in range(len(wdmd.connections)))


def test_a_device_that_was_not_fed_for_longer_than_it_runs_is_no_guard(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    wdmd.last_keepalive = lambda: max(0, int(boot_time()) - 100)
    with pytest.raises(WatchdogUnavailable, match="does not run"):
        WdmdWatchdog(60, wdmd.path, clock=lambda: boot_time() + 100).open("sanlock_LS:1").arm(10, 90)


def test_a_later_wdmd_is_asked_to_open_its_device(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    wdmd.later = True
    connection = watchdog.open("sanlock_LS:1")
    connection.arm(boot_time(), boot_time() + 80)
    assert wdmd.commands(1)[:5] == [OPEN_WATCHDOG, STATUS, REGISTER, REFCOUNT_SET, STATUS]
    connection.disarm()
    connection.close()


def test_a_later_wdmd_that_cannot_open_its_device_is_refused(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    wdmd.later, wdmd.can_open = True, False
    with pytest.raises(WatchdogUnavailable, match="can't run its device with 60 s"):
        watchdog.open("sanlock_LS:1").arm(10, 90)


def test_garbage_is_not_taken_for_an_answer(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    for garbage in (b"\xff" * MESSAGE_SIZE, Message(TEST_LIVE, 10, 60, int(boot_time())).pack()):
        wdmd.answer = lambda message, garbage=garbage: garbage  # type: ignore[misc]
        with pytest.raises(WatchdogUnavailable, match="answered STATUS with command"):
            watchdog.open("sanlock_LS:1").arm(10, 90)


@pytest.mark.parametrize("length", [0, 1, MESSAGE_SIZE - 1])
def test_an_answer_that_breaks_off_is_not_waited_for_for_ever(wdmd: Wdmd, length: int) -> None:
    wdmd.answer = lambda message: wdmd.status(message)[:length]
    watchdog = WdmdWatchdog(60, wdmd.path, answer_timeout=0.2)
    with pytest.raises(WatchdogUnavailable, match=r"did not answer within 0\.2 s"):
        watchdog.open("sanlock_LS:1").arm(10, 90)


@pytest.mark.parametrize("command", [REGISTER, STATUS])
def test_a_wdmd_that_hangs_up_while_arming_is_refused(wdmd: Wdmd, watchdog: WdmdWatchdog, command: int) -> None:
    wdmd.hang_up_on = command
    with pytest.raises(WatchdogUnavailable, match=r"hung up|went away"):
        watchdog.open("sanlock_LS:1").arm(10, 90)


def test_a_wdmd_that_dies_later_is_noticed_by_the_next_renewal_but_one(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    wdmd.hang_up_on = TEST_LIVE
    connection = watchdog.open("sanlock_LS:1")
    connection.arm(10, 90)
    wdmd.await_end()
    with pytest.raises(WatchdogUnavailable, match="went away"):
        connection.renew(20, 100)
    with pytest.raises(WatchdogUnavailable):
        connection.disarm()


def test_a_wdmd_that_does_not_read_never_blocks_a_renewal(tmp_path: Path) -> None:
    path = str(tmp_path / "wdmd.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        connection = WdmdWatchdog(60, path).open("sanlock_LS:1")
        channel, _ = listener.accept()
        with channel:
            channel.sendall(Message(STATUS, 10, 60, int(boot_time())).pack())
            connection.arm(10, 90)
            with pytest.raises(WatchdogUnavailable, match="does not read"):
                for _ in range(100_000):
                    connection.renew(20, 100)


def test_a_wdmd_that_does_not_accept_is_unavailable(tmp_path: Path) -> None:
    path = str(tmp_path / "wdmd.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        watchdog = WdmdWatchdog(60, path, answer_timeout=0.2)
        with pytest.raises(WatchdogUnavailable):
            for _ in range(5):
                watchdog.check()


def test_no_socket_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(WatchdogUnavailable, match="no wdmd at"):
        WdmdWatchdog(60, str(tmp_path / "nothing")).open("sanlock_LS:1")


def test_a_name_that_does_not_fit_is_refused(watchdog: WdmdWatchdog) -> None:
    with pytest.raises(WatchdogUnavailable, match="at most 127 bytes"):
        watchdog.open("x" * 128)


def test_what_is_in_force_can_be_read(wdmd: Wdmd, watchdog: WdmdWatchdog) -> None:
    connection = watchdog.open("sanlock_LS:1")
    assert "not armed" in connection.describe()
    connection.arm(boot_time(), boot_time() + 80)
    assert "resets this machine within 140 s" in connection.describe()
    connection.disarm()
    connection.close()
    assert "closed" in connection.describe()


def test_auto_takes_wdmd_where_it_answers(wdmd: Wdmd) -> None:
    assert open_watchdog("auto", 60, wdmd_socket=wdmd.path).kind == "wdmd"
