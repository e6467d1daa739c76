"""The guardian: where no watchdog resets the machine, a process of our own kills the users of expired leases.

It knows them because it is told: `hold(pid)` before a process uses a lease, `unhold(pid)` when it no longer
does. Its program and what it does are in `guardian_process.py`; this is the side of the feeder. It is fed by
renewals alone: each one is a message with the next times, sent without waiting, and there is no feeding
thread. So a feeder that is stopped, stuck or dead feeds nothing.

It is weaker than a watchdog: it can't stop a process that hangs in the kernel with a request in flight,
nothing on a machine whose kernel hangs, and requests that were sent to the disk may still land.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from itertools import count
from typing import ClassVar, Literal

from leases.keeper.watchdog import guardian_process as far
from leases.keeper.watchdog.base import Watchdog, WatchdogConnection, boot_time, readable, timing_of
from paxos.errors import WatchdogUnavailable

#: seconds the guardian may take to start, and to answer
ANSWER_TIMEOUT = 5.0


class GuardianConnection(WatchdogConnection):
    """One lockspace and the processes that use it."""

    def __init__(self, guardian: Guardian, number: int, name: str) -> None:
        self.name = name
        self._guardian = guardian
        self._number = number
        self.armed = False
        self._closed = False
        self._expire = 0.0

    def arm(self, renewal_time: float, expire_time: float) -> None:
        self._guardian.ask(far.ARM, self._number, times=self._times(renewal_time, expire_time), name=self.name)
        self._expire = expire_time
        self.armed = True

    def renew(self, renewal_time: float, expire_time: float) -> None:
        if self.armed:
            # if it is disarmed meanwhile, the guardian gets the two in one order or the other: both disarm it
            self._guardian.tell(far.RENEW, self._number, times=self._times(renewal_time, expire_time))
            self._expire = expire_time

    def disarm(self) -> None:
        if self.armed:
            self._guardian.ask(far.DISARM, self._number)
            self.armed = False

    def hold(self, pid: int, *, group: bool = False, terminate: bool = True) -> None:
        start = far.start_time(pid)
        if not start:
            raise WatchdogUnavailable(reason=f"there is no process {pid} to guard")
        flags = (far.GROUP if group else 0) | (0 if terminate else far.NO_TERM)
        self._guardian.ask(far.HOLD, self._number, pid=pid, start=start, flags=flags)

    def unhold(self, pid: int) -> None:
        self._guardian.ask(far.UNHOLD, self._number, pid=pid)

    def close(self) -> None:
        if not self._closed and not self.armed:
            self._closed = True
            self._guardian.ask(far.CLOSE, self._number)

    def describe(self) -> str:
        if not self.armed:
            return f"{self._guardian.describe()}; {self.name} not armed"
        return f"{self._guardian.describe()}; {self.name} expires in {self._expire - boot_time():.0f} s"

    def _times(self, renewal_time: float, expire_time: float) -> tuple[float, float]:
        """From when on holders get SIGTERM, and SIGKILL: in time to be dead before expiry + fire."""
        fire = self._guardian.fire_timeout
        timing = timing_of(renewal_time, expire_time, fire)
        margin = min(timing.feed_margin, fire / 2)
        grace = timing.kill_grace if self._guardian.grace is None else self._guardian.grace
        return expire_time, expire_time + min(grace, fire - margin)


class Guardian(Watchdog):
    """The guardian process of this process, started with the first lockspace.

    `grace` (seconds from SIGTERM to SIGKILL) is that of `paxos.timing` unless given, and cut so that SIGKILL
    comes in time. `on_feeder_death`: "wait" lets lockspaces expire before their users are stopped, "kill"
    starts with that at once.
    """

    kind: ClassVar[str] = "guardian"

    def __init__(
        self,
        fire_timeout: int,
        *,
        grace: float | None = None,
        on_feeder_death: Literal["wait", "kill"] = "wait",
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self.fire_timeout = fire_timeout
        self.grace = grace
        self.on_feeder_death = on_feeder_death
        self.answer_timeout = answer_timeout
        self._connections: tuple[GuardianConnection, ...] = ()
        self._numbers = count(1)
        self._sequence = count(1)
        self._asking = threading.Lock()  # one question at a time; renewals ask nothing
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._in_force = 0

    @property
    def pid(self) -> int | None:
        """Of the guardian process, None before the first `open`."""
        return self._process.pid if self._process else None

    def open(self, name: str) -> GuardianConnection:
        with self._asking:
            if self._process is None:
                self._start()
            connection = GuardianConnection(self, next(self._numbers), name)
            self._connections += (connection,)
        return connection

    def check(self) -> None:
        self.open("").close()

    def close(self) -> None:
        """Hang up. The guardian ends at once if nothing is armed; else it does its work first, on its own."""
        with self._asking:
            channel, self._channel = self._channel, None
            if channel is None or self._process is None:
                return
            channel.close()
            if not any(connection.armed for connection in self._connections):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self.answer_timeout)

    def describe(self) -> str:
        extras = [
            word
            for bit, word in (
                (far.LOCKED, "memory locked"),
                (far.REALTIME, "realtime"),
                (far.SPARED, "OOM-exempt"),
            )
            if self._in_force & bit
        ]
        who = f"guardian process {self.pid} ({', '.join(extras) or 'no privileges'})" if self.pid else "guardian"
        return f"{who}: kills this host's users of an expired lockspace; does not reset the machine"

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", far.__file__, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env={"LC_ALL": "C"},
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise WatchdogUnavailable(reason=f"can't start the guardian: {error.strerror}") from error
        ours.setblocking(False)
        self._channel = ours
        flags = far.DEATH_IS_EXPIRY if self.on_feeder_death == "kill" else 0
        try:
            self._in_force = self._exchange(far.HELLO, 0, flags=flags)
        except WatchdogUnavailable:
            self._process.kill()
            self._process.wait()
            self._process = None
            raise

    def ask(
        self,
        verb: int,
        connection: int,
        *,
        flags: int = 0,
        pid: int = 0,
        start: int = 0,
        times: tuple[float, float] = (0.0, 0.0),
        name: str = "",
    ) -> None:
        """Have the guardian do something, and wait until it has. WatchdogUnavailable if it does not."""
        with self._asking:
            result = self._exchange(verb, connection, flags=flags, pid=pid, start=start, times=times, name=name)
        if result:
            raise WatchdogUnavailable(reason=f"the guardian can't guard {pid}: {os.strerror(result)}")

    def tell(self, verb: int, connection: int, *, times: tuple[float, float]) -> None:
        """Send a message that has no reply, without waiting."""
        self._send(far.MESSAGE.pack(verb, 0, connection, 0, 0, 0, *times, b""))

    def _exchange(
        self,
        verb: int,
        connection: int,
        *,
        flags: int = 0,
        pid: int = 0,
        start: int = 0,
        times: tuple[float, float] = (0.0, 0.0),
        name: str = "",
    ) -> int:
        sequence = next(self._sequence)
        self._send(far.MESSAGE.pack(verb, sequence, connection, flags, pid, start, *times, name.encode()[:64]))
        return self._reply(sequence)

    def _reply(self, sequence: int) -> int:
        deadline = boot_time() + self.answer_timeout
        while True:
            channel = self._require_channel()
            if not readable(channel, deadline):
                raise WatchdogUnavailable(reason=f"the guardian did not answer within {self.answer_timeout} s")
            try:
                data = channel.recv(far.REPLY.size)
            except OSError as error:
                raise WatchdogUnavailable(reason=f"the guardian is gone: {error.strerror}") from error
            if len(data) != far.REPLY.size:
                raise WatchdogUnavailable(reason="the guardian is gone")
            answered, result = far.REPLY.unpack(data)
            if answered == sequence:  # an older one is the late answer to a question given up
                return int(result)

    def _send(self, message: bytes) -> None:
        try:
            self._require_channel().send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise WatchdogUnavailable(reason="the guardian does not read what it is sent") from None
        except OSError as error:
            raise WatchdogUnavailable(reason=f"the guardian is gone: {error.strerror}") from error

    def _require_channel(self) -> socket.socket:
        if self._channel is None:
            raise WatchdogUnavailable(reason="the guardian was let go")
        return self._channel
