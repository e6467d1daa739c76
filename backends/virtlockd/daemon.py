"""Starting the daemon: take over from a predecessor if there is one, else begin with nothing; then serve."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backends.virtlockd import handover
from backends.virtlockd.server import Server
from backends.virtlockd.signals import Signals, become_the_next
from paxos.errors import InvalidUse

#: the first descriptor that systemd passes to a service
_FIRST_PASSED = 3
_BACKLOG = 1024


def default_socket() -> str:
    """Where libvirt looks for virtlockd (lockmanager.md 7.1)."""
    if os.geteuid() == 0:
        return "/run/libvirt/virtlockd-sock"
    directory = os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache")
    return os.path.join(directory, "libvirt", "virtlockd-sock")


def serve(
    path: str | None = None, *, pid_file: str | None = None, replace: bool = False, idle_timeout: float = 0.0
) -> None:
    """Serve on the socket at `path` until stopped; with `replace`, take over from a daemon that serves there.

    Raises InvalidUse if one serves there already, OSError if the socket can't be made.
    """
    path = path or default_socket()
    os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
    Signals.hold_back()
    with _one_start_at_a_time(path):
        server = _start(path, replace, idle_timeout)
        if pid_file:
            with open(pid_file, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")

    def clean_up() -> None:
        for name in (path, pid_file):
            if name:
                with suppress(OSError):
                    os.unlink(name)

    server.on_stop = clean_up
    if server.run():
        become_the_next()


def _start(path: str, replace: bool, idle_timeout: float) -> Server:
    try:
        inheritance = handover.take(f"{path}.next", replace=replace)
    except handover.AlreadyServing:
        raise InvalidUse(reason=f"a daemon serves at {path} already; --replace takes over from it") from None
    except handover.HandoverFailed as failure:
        raise InvalidUse(
            reason=f"the daemon that holds the locks of {path} does not hand them over: {failure}"
        ) from None
    if inheritance is None:
        return Server(_passed() or _listen(path), _listen(f"{path}.next"), idle_timeout=idle_timeout)
    channel, document, fds = inheritance
    listener = _passed()
    if document["listener"] is not None:
        kept = socket.socket(fileno=fds[document["listener"]])
        if listener is None:
            listener = kept
        else:
            kept.close()
    server = Server(listener or _listen(path), _listen(f"{path}.next"), idle_timeout=idle_timeout)
    server.inherit(document, fds)
    handover.done(channel)
    return server


def _listen(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o077)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _passed() -> socket.socket | None:
    """The socket that systemd listens on for us, if it does; not the one for administration."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    for fd in range(_FIRST_PASSED, _FIRST_PASSED + int(os.environ.get("LISTEN_FDS", "0"))):
        passed = socket.socket(fileno=os.dup(fd))
        if "admin" not in os.path.basename(str(passed.getsockname())):
            passed.setblocking(False)
            return passed
        passed.close()
    return None


@contextmanager
def _one_start_at_a_time(path: str) -> Iterator[None]:
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
