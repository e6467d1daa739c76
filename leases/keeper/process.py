"""The keeper process: one thread for each lockspace that renews its host lease, and the watchdogs' feeding.

It is small, has no numpy, locks its memory, and runs before everybody else where that is permitted. It is tied to
the daemon both ways. The daemon takes all lockspaces for failed when it ends. When the daemon ends, or says nothing
for a while, this process feeds no watchdog any more; when it stays away for `linger` seconds, renewals end too, so
that others can take over. Until then another daemon may attach, and go on where the first one was.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from leases.keeper import messages
from leases.keeper.kept import Kept, SharedViews
from leases.keeper.messages import Message, pack_error, raw
from leases.keeper.watchdog import Watchdog, WatchdogConnection, boot_time, open_watchdog
from paxos.errors import LeaseholdError
from paxos.geometry import Geometry, Place
from paxos.host_lease import Beacon
from paxos.lockspace_area import LockspaceArea
from paxos.timing import Timing

#: seconds of the daemon's silence after which no watchdog is fed
SILENCE = 5.0
#: what is used once stays in memory; what is only set aside, such as stacks, takes none
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_RR_PRIORITY = 10
#: bytes of one thread's stack
_STACK = 512 << 10


@dataclass(frozen=True, slots=True)
class KeptTiming(Timing):
    """As the daemon set it; seconds."""

    read_extend: float = 0.0

    @property
    def renewal_read_extend(self) -> float:
        return self.read_extend


class KeeperProcess:
    """`listener`: where another daemon may attach after the first one's end, None if none may."""

    def __init__(self, channel: socket.socket, listener: socket.socket | None, linger: float) -> None:
        self._channel: socket.socket | None = channel
        self._listener = listener
        self._linger = linger
        self._watchdog: Watchdog | None = None
        self._connections: dict[int, WatchdogConnection] = {}
        self._spaces: dict[int, Kept] = {}
        self._numbers = itertools.count(1)
        self._heard = boot_time()
        self._outbox: SimpleQueue[Message] = SimpleQueue()
        self._commands: dict[str, Callable[[Message, list[int]], Any]] = {
            "watchdog": self._open_watchdog,
            "open": self._open,
            "join": self._join,
            "attach": self._attach,
            "abort": self._abort,
            "disarm": self._disarm,
            "release": self._release,
            "close": self._close,
            "hold": self._hold,
            "unhold": self._unhold,
            "describe": self._describe,
            "hello": lambda _message, _fds: os.getpid(),
            "keep_only": self._keep_only,
        }
        threading.Thread(target=self._send, name="sender", daemon=True).start()

    # ---------------------------------------------------------------------------------------- its daemon

    def run(self) -> None:
        """Until no daemon is there any more."""
        while self._channel is not None:
            self._serve(self._channel)
            self._channel = self._next_daemon()

    def _serve(self, channel: socket.socket) -> None:
        while (received := messages.receive(channel)) is not None:
            self._heard = boot_time()
            message, fds = received
            if message["do"] == "beat":
                self._beat(message)
            else:
                # some of them wait for a watchdog or a disk; the daemon's other words must not wait for that
                threading.Thread(target=self._carry_out, args=(message, fds), daemon=True).start()

    def _next_daemon(self) -> socket.socket | None:
        """Whoever attaches within the time that is left."""
        if self._listener is None or not any(kept.lease is not None for kept in self._spaces.values()):
            return None
        self._listener.settimeout(self._linger)
        try:
            channel, _ = self._listener.accept()
        except TimeoutError:
            return None
        channel.setblocking(True)
        return channel

    def _carry_out(self, message: Message, fds: list[int]) -> None:
        answer: Message = {"what": "answer", "to": message["id"]}
        try:
            answer["result"] = self._commands[message["do"]](message, fds)
        except LeaseholdError as error:
            answer["error"] = pack_error(error)
        except Exception as fault:
            answer["error"] = pack_error(LeaseholdError(template=repr(fault)))
        self._outbox.put(answer)

    def _send(self) -> None:
        """The one thread that waits for the daemon to listen."""
        while True:
            message = self._outbox.get()
            channel = self._channel
            if channel is not None:
                with suppress(OSError):
                    messages.send(channel, message)

    def _may_feed(self) -> bool:
        return boot_time() - self._heard < SILENCE

    # --------------------------------------------------------------------------------------- commands

    def _beat(self, message: Message) -> None:
        """The daemon is there. What goes out with the next renewals, and which lockspaces have failed."""
        for number, hosts, event, failed in message["spaces"]:
            kept = self._spaces.get(number)
            if kept is not None:
                kept.vitals.beacon = Beacon(frozenset(hosts), tuple(event))
                if failed:
                    kept.vitals.fail(LeaseholdError(template="the daemon has begun recovery"))

    def _open_watchdog(self, message: Message, _fds: list[int]) -> list[str]:
        """Its kind and its description."""
        if self._watchdog is None:
            self._watchdog = open_watchdog(message["kind"], message["fire_timeout"])
        return [self._watchdog.kind, self._watchdog.describe()]

    def _open(self, message: Message, _fds: list[int]) -> int:
        """The number by which the lockspace is known here from now on."""
        assert self._watchdog is not None
        number = next(self._numbers)
        self._connections[number] = self._watchdog.open(message["name"])
        return number

    def _join(self, message: Message, fds: list[int]) -> None:
        number = message["space"]
        geometry = Geometry(message["sector_size"], message["align_size"])
        area = LockspaceArea(raw(message["name"]), Place(message["disk"], message["offset"]), geometry)
        kept = Kept(
            number,
            area,
            message["host_id"],
            raw(message["owner_name"]),
            KeptTiming(message["io_timeout"], message["fire_timeout"], message["read_extend"]),
            self._connections[number],
            SharedViews(fds[0], geometry.align_size),
            self._outbox.put,
            self._may_feed,
        )
        self._spaces[number] = kept
        kept.start()

    def _attach(self, message: Message, fds: list[int]) -> Message:
        """Another daemon takes over a lockspace that the one before it left here."""
        kept = self._spaces[message["space"]]
        kept.attached(SharedViews(fds[0], kept.area.geometry.align_size))
        return kept.state()

    def _abort(self, message: Message, _fds: list[int]) -> None:
        kept = self._spaces.get(message["space"])
        if kept is not None:
            kept.abort(message["reason"])

    def _disarm(self, message: Message, _fds: list[int]) -> None:
        self._connections[message["space"]].disarm()

    def _release(self, message: Message, _fds: list[int]) -> None:
        kept = self._spaces.get(message["space"])
        if kept is not None:
            kept.release()

    def _close(self, message: Message, _fds: list[int]) -> None:
        kept = self._spaces.pop(message["space"], None)
        connection = self._connections.pop(message["space"], None)
        if kept is not None:
            kept.close()
        elif connection is not None:
            connection.close()

    def _keep_only(self, message: Message, _fds: list[int]) -> None:
        """A new daemon knows these; what else there is was begun by the one before, for nobody any more."""
        for number in set(self._spaces) - set(message["spaces"]):
            kept = self._spaces[number]
            kept.abort("its daemon was killed")
            kept.wait()
            self._connections[number].disarm()
            kept.release()
            self._close({"space": number}, [])

    def _hold(self, message: Message, _fds: list[int]) -> None:
        self._connections[message["space"]].hold(message["pid"], group=message["group"], terminate=message["terminate"])

    def _unhold(self, message: Message, _fds: list[int]) -> None:
        self._connections[message["space"]].unhold(message["pid"])

    def _describe(self, message: Message, _fds: list[int]) -> str:
        return self._connections[message["space"]].describe()


def be_urgent(high_priority: bool, lock_memory: bool) -> list[str]:
    """Lock the memory and run before others. What was not permitted, in words."""
    refused = []
    if lock_memory:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
            refused.append(f"memory not locked: {os.strerror(ctypes.get_errno())}")
    if high_priority:
        try:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_RR_PRIORITY))
        except OSError as error:
            refused.append(f"no real-time priority: {error.strerror}")
    return refused


def serve(channel_fd: int, listener_fd: int, linger: float, high_priority: bool, lock_memory: bool) -> None:
    """The process' whole life. `listener_fd` -1: nobody may attach."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)
    threading.stack_size(_STACK)  # locked memory is not to be wasted on stacks
    channel = socket.socket(fileno=channel_fd)
    listener = socket.socket(fileno=listener_fd) if listener_fd >= 0 else None
    refused = be_urgent(high_priority, lock_memory)
    messages.send(channel, {"what": "hello", "pid": os.getpid(), "refused": refused})
    KeeperProcess(channel, listener, linger).run()
    os._exit(0)
