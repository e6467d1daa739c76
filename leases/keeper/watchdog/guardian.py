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
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal

from leases.keeper.watchdog import guardian_process as far
from leases.keeper.watchdog.base import Watchdog, WatchdogConnection, boot_time, readable, timing_of
from paxos.errors import WatchdogUnavailable

#: seconds the guardian may take to start, and to answer
ANSWER_TIMEOUT = 5.0


class GuardianGone(WatchdogUnavailable):
    """It was killed."""


@dataclass(frozen=True, slots=True)
class Question:
    """One message to the guardian (`guardian_process.MESSAGE`); times are boot-time seconds."""

    verb: int
    connection: int
    flags: int = 0
    pid: int = 0
    start: int = 0
    times: tuple[float, float] = (0.0, 0.0)
    name: str = ""

    def pack(self, sequence: int) -> bytes:
        name = self.name.encode()[:64]
        return far.MESSAGE.pack(
            self.verb, sequence, self.connection, self.flags, self.pid, self.start, *self.times, name
        )


class GuardianConnection(WatchdogConnection):
    """One lockspace and the processes that use it."""

    def __init__(self, guardian: Guardian, number: int, name: str) -> None:
        self.name = name
        self._guardian = guardian
        self._number = number
        self.armed = False
        self._times = (0.0, 0.0)
        self._held: dict[int, Question] = {}

    def arm(self, renewal_time: float, expire_time: float) -> None:
        self._times = self._stop_times(renewal_time, expire_time)
        self._guardian.ask(self._arming())
        self.armed = True

    def renew(self, renewal_time: float, expire_time: float) -> None:
        if self.armed:
            self._times = self._stop_times(renewal_time, expire_time)
            # if it is disarmed meanwhile, the guardian gets the two in one order or the other: both disarm it
            self._guardian.tell(Question(far.RENEW, self._number, times=self._times))

    def disarm(self) -> None:
        if self.armed:
            self._guardian.ask(Question(far.DISARM, self._number))
            self.armed = False

    def hold(self, pid: int, *, group: bool = False, terminate: bool = True) -> None:
        start = far.start_time(pid)
        if not start:
            raise WatchdogUnavailable(reason=f"there is no process {pid} to guard")
        flags = (far.GROUP if group else 0) | (0 if terminate else far.NO_TERM)
        holding = Question(far.HOLD, self._number, pid=pid, start=start, flags=flags)
        self._guardian.ask(holding)
        self._held[pid] = holding

    def unhold(self, pid: int) -> None:
        self._guardian.ask(Question(far.UNHOLD, self._number, pid=pid))
        self._held.pop(pid, None)

    def close(self) -> None:
        if not self.armed and self._guardian.forget(self):
            self._guardian.ask(Question(far.CLOSE, self._number))

    def everything(self) -> list[Question]:
        """What a new guardian must be told."""
        return [self._arming(), *self._held.values()] if self.armed else [*self._held.values()]

    def describe(self) -> str:
        if not self.armed:
            return f"{self._guardian.describe()}; {self.name} not armed"
        return f"{self._guardian.describe()}; {self.name} expires in {self._times[0] - boot_time():.0f} s"

    def _arming(self) -> Question:
        return Question(far.ARM, self._number, times=self._times, name=self.name)

    def _stop_times(self, renewal_time: float, expire_time: float) -> tuple[float, float]:
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
    starts with that at once. `because` is why nothing stronger is in force, for `describe`.

    A guardian that was killed is replaced, and its successor told everything: by the next call that waits for
    an answer anyway, or in the background by the first renewal that finds it gone (and fails).
    """

    kind: ClassVar[str] = "guardian"

    def __init__(
        self,
        fire_timeout: int,
        *,
        grace: float | None = None,
        on_feeder_death: Literal["wait", "kill"] = "wait",
        answer_timeout: float = ANSWER_TIMEOUT,
        because: str = "",
    ) -> None:
        self.fire_timeout = fire_timeout
        self.grace = grace
        self.on_feeder_death = on_feeder_death
        self.answer_timeout = answer_timeout
        self.because = because
        self._connections: tuple[GuardianConnection, ...] = ()
        self._numbers = count(1)
        self._sequence = count(1)
        self._asking = threading.Lock()  # one question at a time; renewals ask nothing
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reviving = threading.Event()
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

    def forget(self, connection: GuardianConnection) -> bool:
        """Whether it was known until now."""
        with self._asking:
            known = connection in self._connections
            self._connections = tuple(one for one in self._connections if one is not connection)
            return known

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
        because = f" ({self.because})" if self.because else ""
        who = f"guardian process {self.pid} ({', '.join(extras) or 'no privileges'})" if self.pid else "guardian"
        return f"{who}: kills this host's users of an expired lockspace; does not reset the machine{because}"

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
            self._in_force = self._exchange(Question(far.HELLO, 0, flags=flags))
        except WatchdogUnavailable:
            self._process.kill()
            self._process.wait()
            self._process = None
            raise

    def ask(self, question: Question) -> None:
        """Have the guardian do something, and wait until it has. WatchdogUnavailable if it does not."""
        with self._asking:
            try:
                result = self._exchange(question)
            except GuardianGone:
                self._replace()
                result = self._exchange(question)
        if result:
            raise WatchdogUnavailable(reason=f"the guardian can't guard process {question.pid}: {os.strerror(result)}")

    def tell(self, question: Question) -> None:
        """Send what has no reply, without waiting."""
        try:
            self._send(question.pack(0))
        except GuardianGone:
            if not self._reviving.is_set():
                self._reviving.set()
                threading.Thread(target=self._revive, name="guardian revival", daemon=True).start()
            raise

    def _revive(self) -> None:
        try:
            with self._asking, contextlib.suppress(WatchdogUnavailable):
                if self._process is None or self._process.poll() is not None:
                    self._replace()
        finally:
            self._reviving.clear()

    def _replace(self) -> None:
        """Put a new guardian in the place of one that is gone."""
        if self._channel is None or self._process is None:
            raise WatchdogUnavailable(reason="the guardian was let go")
        self._channel.close()
        self._process.kill()  # one that has hung up guards nothing
        self._process.wait()
        self._start()
        for connection in self._connections:
            for question in connection.everything():
                self._exchange(question)  # a holder that has ended meanwhile is no loss

    def _exchange(self, question: Question) -> int:
        sequence = next(self._sequence)
        self._send(question.pack(sequence))
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
                raise GuardianGone(reason=f"the guardian is gone: {error.strerror}") from error
            if len(data) != far.REPLY.size:
                raise GuardianGone(reason="the guardian is gone")
            answered, result = far.REPLY.unpack(data)
            if answered == sequence:  # an older one is the late answer to a question given up
                return int(result)

    def _send(self, message: bytes) -> None:
        try:
            self._require_channel().send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise WatchdogUnavailable(reason="the guardian does not read what it is sent") from None
        except OSError as error:
            raise GuardianGone(reason=f"the guardian is gone: {error.strerror}") from error

    def _require_channel(self) -> socket.socket:
        if self._channel is None:
            raise WatchdogUnavailable(reason="the guardian was let go")
        return self._channel
