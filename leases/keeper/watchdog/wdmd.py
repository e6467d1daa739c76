"""wdmd, sanlock's watchdog daemon: it owns the machine's watchdog device and we are one of its clients.

The protocol (daemon.md section 13) is one 176-byte message, both ways, of which only STATUS is answered. One
connection per lockspace; a connection that closes with an expiry set stays in force inside wdmd, which is
what makes the death of its client lead to a reset.

wdmd 3.8.5 opens its device when it starts. A later one opens it only when asked by OPEN_WATCHDOG, first thing
on a connection, and 3.8.5 does not answer that. So we ask only when STATUS shows that the device is not
running with the timeout we need, and put a STATUS behind the question: whichever answer comes first tells
them apart. A device that runs was petted less than its timeout ago, or this machine would not be here to ask.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from leases.keeper.watchdog.base import Watchdog, WatchdogConnection, boot_time, readable
from paxos.errors import WatchdogUnavailable

SOCKET_PATH = "/run/wdmd/wdmd.sock"
#: seconds that wdmd may take to take a message or answer STATUS; it answers between two rounds of its own
#: tests
ANSWER_TIMEOUT = 10.0

REGISTER, REFCOUNT_SET, REFCOUNT_CLEAR, TEST_LIVE, STATUS, DUMP_DEBUG, OPEN_WATCHDOG = range(1, 8)

_MESSAGE = struct.Struct("<IIIIIIQQQ128s")
MESSAGE_SIZE = _MESSAGE.size
MAX_NAME = 127


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `test_interval`, `fire_timeout` in seconds; the three times in whole boot-time seconds."""

    command: int
    test_interval: int = 0
    fire_timeout: int = 0
    last_keepalive: int = 0
    renewal_time: int = 0
    expire_time: int = 0
    name: str = ""

    def pack(self) -> bytes:
        return _MESSAGE.pack(
            0, self.command, 0, 0, self.test_interval, self.fire_timeout,
            self.last_keepalive, self.renewal_time, self.expire_time, self.name.encode(),
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> Message:
        _, command, _, _, interval, fire, keepalive, renewal, expire, name = _MESSAGE.unpack(data)
        text = name.split(b"\0")[0].decode("utf-8", "backslashreplace")
        return cls(command, interval, fire, keepalive, renewal, expire, text)


class WdmdConnection(WatchdogConnection):
    """One lockspace, under its name as wdmd logs it ("sanlock_<lockspace>:<host id>")."""

    def __init__(self, watchdog: WdmdWatchdog, name: str) -> None:
        self.name = name
        self._watchdog = watchdog
        self._socket: socket.socket | None = watchdog.connect()
        self._lock = threading.Lock()  # an expiry sent after the last 0 would arm it again and reset the machine
        self._expire: float = 0.0

    def arm(self, renewal_time: float, expire_time: float) -> None:
        with self._lock:
            try:
                status = self._register()
                if not self._watchdog.runs(status):
                    self._open_device()
                    status = self._register()
                self._watchdog.require(status)
                self._test_live(renewal_time, expire_time)
            except WatchdogUnavailable:
                self._hang_up()  # closed with no expiry set, wdmd forgets it and its reference
                raise
            self._expire = expire_time

    def renew(self, renewal_time: float, expire_time: float) -> None:
        with self._lock:
            if self._expire:
                self._test_live(renewal_time, expire_time)
                self._expire = expire_time

    def disarm(self) -> None:
        with self._lock:
            if not self._expire:
                return
            self._send(Message(TEST_LIVE))
            self._expire = 0.0
            self._send(Message(REFCOUNT_CLEAR))

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    def describe(self) -> str:
        where = f"wdmd at {self._watchdog.path}"
        if self._expire:
            left = self._expire + self._watchdog.fire_timeout - boot_time()
            return f"{where}: resets this machine within {left:.0f} s if not renewed"
        return f"{where}: not armed" if self._socket else f"{where}: closed"

    def _register(self) -> Message:
        """Make us known, keep wdmd from ending, and ask how it stands."""
        self._send(Message(REGISTER, name=self.name))
        self._send(Message(REFCOUNT_SET))
        self._send(Message(STATUS))
        status = self._receive()
        if status.command != STATUS:
            raise WatchdogUnavailable(reason=f"wdmd answered STATUS with command {status.command}")
        return status

    def _open_device(self) -> None:
        """On a new connection, ask a later wdmd to start its device. An older one says nothing to that."""
        self._hang_up()
        self._socket = self._watchdog.connect()
        self._send(Message(OPEN_WATCHDOG, fire_timeout=self._watchdog.fire_timeout))
        self._send(Message(STATUS))
        answer = self._receive()
        if answer.command == OPEN_WATCHDOG:
            if answer.fire_timeout == 0:
                raise WatchdogUnavailable(reason=f"wdmd can't run its device with {self._watchdog.fire_timeout} s")
            answer = self._receive()
        if answer.command != STATUS:
            raise WatchdogUnavailable(reason=f"wdmd answered STATUS with command {answer.command}")

    def _test_live(self, renewal_time: float, expire_time: float) -> None:
        # whole seconds, rounded towards the earlier end
        self._send(Message(TEST_LIVE, renewal_time=int(renewal_time), expire_time=int(expire_time)))

    def _send(self, message: Message) -> None:
        if self._socket is None:
            raise WatchdogUnavailable(reason=f"the connection of {self.name} to wdmd is closed")
        try:
            # room for hundreds of messages lies between us: one that does not fit was preceded by many unread
            sent = self._socket.send(message.pack(), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise WatchdogUnavailable(reason="wdmd does not read what it is sent") from None
        except OSError as error:
            raise WatchdogUnavailable(reason=f"wdmd went away: {error.strerror}") from error
        if sent != MESSAGE_SIZE:
            self._hang_up()  # what follows would be out of step
            raise WatchdogUnavailable(reason="wdmd does not read what it is sent")

    def _receive(self) -> Message:
        assert self._socket is not None
        deadline = boot_time() + self._watchdog.answer_timeout
        data = b""
        while len(data) < MESSAGE_SIZE:
            if not readable(self._socket, deadline):
                raise WatchdogUnavailable(reason=f"wdmd did not answer within {self._watchdog.answer_timeout} s")
            try:
                piece = self._socket.recv(MESSAGE_SIZE - len(data))
            except OSError as error:
                raise WatchdogUnavailable(reason=f"wdmd went away: {error.strerror}") from error
            if not piece:
                raise WatchdogUnavailable(reason=f"wdmd hung up after {len(data)} bytes of its answer")
            data += piece
        return Message.unpack(data)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class WdmdWatchdog(Watchdog):
    """Connections to the wdmd that listens at `path`."""

    kind: ClassVar[str] = "wdmd"

    def __init__(
        self,
        fire_timeout: int,
        path: str = SOCKET_PATH,
        *,
        answer_timeout: float = ANSWER_TIMEOUT,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.fire_timeout = fire_timeout
        self.path = path
        self.answer_timeout = answer_timeout
        self._clock = clock

    def open(self, name: str) -> WdmdConnection:
        if len(name.encode()) > MAX_NAME:
            raise WatchdogUnavailable(reason=f"wdmd knows connections by at most {MAX_NAME} bytes, not {name!r}")
        return WdmdConnection(self, name)

    def check(self) -> None:
        connection = self.open("")
        try:
            connection._send(Message(STATUS))
            status = connection._receive()
        finally:
            connection.close()
        if status.command != STATUS:
            raise WatchdogUnavailable(reason=f"wdmd answered STATUS with command {status.command}")

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"wdmd at {self.path}: resets this machine {self.fire_timeout} s after a lockspace expired"

    def connect(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(self.answer_timeout)
        try:
            channel.connect(self.path)
        except OSError as error:
            channel.close()
            raise WatchdogUnavailable(reason=f"no wdmd at {self.path}: {error.strerror or error}") from error
        channel.setblocking(False)
        return channel

    def runs(self, status: Message) -> bool:
        """Whether the device must be running with our timeout, by the time it was last petted."""
        petted_ago = self._clock() - status.last_keepalive
        return status.fire_timeout == self.fire_timeout and petted_ago <= self.fire_timeout

    def require(self, status: Message) -> None:
        if status.fire_timeout != self.fire_timeout:
            raise WatchdogUnavailable(
                reason=f"wdmd's device fires after {status.fire_timeout} s, not after {self.fire_timeout} s"
            )
        if not self.runs(status):
            raise WatchdogUnavailable(
                reason=f"wdmd last fed its device at {status.last_keepalive} s of this machine's time, "
                "and it was not reset: the device does not run"
            )
