"""The daemon's end of its keeper process (leases/keeper/process.py): starts it, asks it, hears it.

One thread reads what the keeper says and hands it to the lockspace that it is about. Whoever asks something waits for
the answer in a thread of its own; the loop only ever sends its beat, and never waits to do so.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from leases.daemon.numbers import SOCKET_NAME
from leases.keeper import messages
from leases.keeper.messages import Message, unpack_error
from leases.keeper.watchdog import Watchdog, WatchdogConnection
from paxos.errors import WatchdogUnavailable

#: where another daemon finds the keeper that its predecessor left
LISTENER_NAME = SOCKET_NAME.replace("sanlock", "keeper")
#: seconds that the keeper may take for an answer, and to say that it is there
ANSWER_TIMEOUT = 60.0
HELLO_TIMEOUT = 20.0


class KeeperGone(WatchdogUnavailable):
    template = "the process that renews has ended"
    advice = "its watchdogs will fire; see what killed it"


class Hears(Protocol):
    """What the keeper says is about one of these."""

    def heard(self, message: Message) -> None: ...

    def keeper_gone(self) -> None: ...


@dataclass(slots=True)
class _Question:
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Message | None = None


class KeeperLink:
    """`on_end` is called, in the reader's thread, when the keeper has ended."""

    def __init__(self, channel: socket.socket, on_end: Callable[[], None]) -> None:
        self.pid = -1
        #: what the keeper was not permitted
        self.refused: list[str] = []
        self._channel = channel
        self._on_end = on_end
        self._gone = False
        self._ids = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._spaces: dict[int, Hears] = {}
        self._hello = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="keeper", daemon=True).start()

    @classmethod
    def start(
        cls, run_dir: str, linger: float, high_priority: bool, lock_memory: bool, on_end: Callable[[], None]
    ) -> KeeperLink:
        """A new process. `linger`: seconds for which it waits for another daemon after this one's end, 0: not at all.

        Raises OSError; KeeperGone when it does not come up.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = _listen(run_dir) if linger else None
        inherited = [theirs.fileno()] + ([listener.fileno()] if listener is not None else [])
        try:
            for fd in inherited:
                os.set_inheritable(fd, True)
            arguments = (inherited[0], inherited[1] if linger else -1, linger, high_priority, lock_memory)
            program = f"from leases.keeper.process import serve; serve{arguments!r}"
            # whoever waits for the end of the daemon's output must not wait for this process too
            nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
            argv = [sys.executable, "-c", program]
            pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=nothing)
        finally:
            theirs.close()
            if listener is not None:
                listener.close()
        link = cls(ours, on_end)
        if not link._hello.wait(HELLO_TIMEOUT):
            raise KeeperGone()
        link.pid = pid
        return link

    @classmethod
    def attach(cls, run_dir: str, on_end: Callable[[], None]) -> KeeperLink:
        """The process that an earlier daemon of this run directory left. Raises OSError, KeeperGone."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            channel.connect(os.path.join(run_dir, LISTENER_NAME))
        except OSError:
            channel.close()
            raise
        link = cls(channel, on_end)
        link.pid = link.call("hello", patience=HELLO_TIMEOUT)
        return link

    def _read(self) -> None:
        while (received := messages.receive(self._channel)) is not None:
            message, _ = received
            what = message["what"]
            if what == "answer":
                question = self._questions.pop(message["to"], None)
                if question is not None:
                    question.answer = message
                    question.answered.set()
            elif what == "hello":
                self.refused = message["refused"]
                self._hello.set()
            elif (space := self._spaces.get(message["space"])) is not None:
                space.heard(message)
        self._ended()

    def _ended(self) -> None:
        self._gone = True
        for question in list(self._questions.values()):
            question.answered.set()
        for space in list(self._spaces.values()):
            space.keeper_gone()
        self._on_end()

    # --------------------------------------------------------------------------------------------- asking

    def call(self, do: str, fds: list[int] | None = None, patience: float = ANSWER_TIMEOUT, **facts: object) -> Any:
        """What the keeper answers. Raises what it was refused with, and KeeperGone."""
        number, question = next(self._ids), _Question()
        self._questions[number] = question
        try:
            with self._lock:
                messages.send(self._channel, {"do": do, "id": number, **facts}, fds)
        except OSError:
            raise KeeperGone() from None
        if self._gone or not question.answered.wait(patience) or question.answer is None:
            self._questions.pop(number, None)
            raise KeeperGone()
        if "error" in question.answer:
            raise unpack_error(question.answer["error"])
        return question.answer["result"]

    def beat(self, spaces: list[tuple[int, list[int], tuple[int, int, int], bool]]) -> bool:
        """Tell it that the daemon is there, and what has changed. Never waits; False when it was not sent."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._channel.send(
                messages.packed({"do": "beat", "spaces": spaces}), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
            )
        except OSError:
            return False
        finally:
            self._lock.release()
        return True

    # ------------------------------------------------------------------------------------------- lockspaces

    def listen_for(self, number: int, space: Hears) -> None:
        self._spaces[number] = space
        if self._gone:
            space.keeper_gone()

    def forget(self, number: int) -> None:
        self._spaces.pop(number, None)


def _listen(run_dir: str) -> socket.socket:
    """For the next daemon of this run directory, and for nobody else."""
    path = os.path.join(run_dir, LISTENER_NAME)
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(1)
    return listener


# ------------------------------------------------------------------------------- its watchdog, as lockspaces see it


class KeptConnection(WatchdogConnection):
    """One lockspace under the keeper's watchdog. It is armed and fed there, not from here.

    `kills_holders`: whether it must be told who uses leases.
    """

    def __init__(self, link: KeeperLink, number: int, name: str, kills_holders: bool) -> None:
        self.name = name
        self.number = number
        self._link = link
        self._kills_holders = kills_holders

    def arm(self, renewal_time: float, expire_time: float) -> None:
        raise AssertionError("the keeper arms it")

    def renew(self, renewal_time: float, expire_time: float) -> None:
        pass

    def disarm(self) -> None:
        self._link.call("disarm", space=self.number)

    def close(self) -> None:
        with suppress(KeeperGone):
            self._link.call("close", space=self.number)
        self._link.forget(self.number)

    def describe(self) -> str:
        return str(self._link.call("describe", space=self.number))

    def hold(self, pid: int, *, group: bool = False, terminate: bool = True) -> None:
        if self._kills_holders:
            self._link.call("hold", space=self.number, pid=pid, group=group, terminate=terminate)

    def unhold(self, pid: int) -> None:
        if self._kills_holders:
            self._link.call("unhold", space=self.number, pid=pid)


class KeptWatchdog(Watchdog):
    """The keeper's, for all lockspaces."""

    kind: ClassVar[str] = "kept"

    def __init__(self, link: KeeperLink, kind: str, fire_timeout: int) -> None:
        self.fire_timeout = fire_timeout
        self._link = link
        #: which force it is, "auto" resolved
        self.force, self._description = link.call("watchdog", kind=kind, fire_timeout=fire_timeout)
        #: the next one to be opened is this, which the keeper has already
        self.adopted: int | None = None

    def open(self, name: str) -> KeptConnection:
        if self.adopted is not None:
            number, self.adopted = self.adopted, None
        else:
            number = self._link.call("open", name=name)
        return KeptConnection(self._link, number, name, kills_holders=self.force == "guardian")

    def check(self) -> None:
        self.open("").close()

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return str(self._description)
