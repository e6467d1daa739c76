"""The process that runs kill paths, so that nothing is ever forked where leases are renewed (daemon.md 7.1 and 10).

It is started before anything else, has no threads and next to no memory. Orders come as datagrams of JSON: the
program with its arguments, and the credentials of the client that named it, with which it is run. The reference runs
it as root, whoever named it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from leases.daemon.policy import Credentials

_MAX_ORDER = 1 << 16
#: argv elements of a kill path, its path and the pid included
MAX_ARGUMENTS = 8


def split_arguments(text: bytes) -> list[str]:
    """Arguments at white space; a backslash protects a space or a backslash."""
    words: list[bytearray] = []
    open_word = False
    position = 0
    while position < len(text):
        char = text[position : position + 1]
        if char == b"\\" and text[position + 1 : position + 2] in (b"\\", b" "):
            position += 1
            char = text[position : position + 1]
        elif char.isspace():
            open_word = False
            position += 1
            continue
        if not open_word:
            words.append(bytearray())
            open_word = True
        words[-1] += char
        position += 1
    return [word.decode("utf-8", "surrogateescape") for word in words]


@dataclass(slots=True)
class Helper:
    """This side of it. `pid` is the helper's."""

    pid: int
    channel: socket.socket

    @classmethod
    def fork(cls) -> Helper:
        """Called while this process has one thread and little memory."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        return cls._of(pid, ours)

    @classmethod
    def spawn(cls) -> Helper:
        """Another one, when the first is gone: by posix_spawn, which copies nothing of this process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            number = theirs.fileno()
            program = f"from leases.daemon.helper import serve; serve({number})"
            os.set_inheritable(number, True)
            pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)
            return cls._of(pid, ours.dup())

    @classmethod
    def _of(cls, pid: int, channel: socket.socket) -> Helper:
        channel.setblocking(False)
        return cls(pid, channel)

    def fileno(self) -> int:
        return self.channel.fileno()

    def run(self, argv: Sequence[str], who: Credentials) -> None:
        """Have a program run. Never waits; raises OSError when the helper is gone or does not listen."""
        order = {"argv": list(argv), "uid": who.uid, "gid": who.gid, "groups": sorted(who.groups)}
        self.channel.send(json.dumps(order).encode("utf-8", "surrogateescape"), socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self.channel.close()


def serve(number: int) -> None:
    """In the helper that `spawn` started; returns when the daemon is gone."""
    _serve(socket.socket(fileno=number))


def _serve(channel: socket.socket) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    try:
        while True:
            _reap()
            ready, _, _ = select.select([channel], [], [], 30.0)
            if ready:
                order = channel.recv(_MAX_ORDER)
                if not order:
                    break
                with suppress(ValueError, KeyError, TypeError, OSError):
                    _run(json.loads(order))
    finally:
        os._exit(0)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _run(order: dict[str, Any]) -> None:
    if os.fork():
        return
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if os.geteuid() == 0:
            os.setgroups(order["groups"])
            os.setgid(order["gid"])
            os.setuid(order["uid"])
        os.execvp(order["argv"][0], order["argv"])
    finally:
        os._exit(127)
