"""A connection to the daemon's socket: carries out exchanges, blocking, each under a deadline."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from types import TracebackType
from typing import Self, TypeVar

from leases.daemon.conversation import Exchange, Receive, Send
from leases.daemon.numbers import DEFAULT_RUN_DIR, RUN_DIR_VARIABLE, SOCKET_NAME
from leases.daemon.results import DaemonGone, DaemonSilent, DaemonUnreachable

T = TypeVar("T")

_CHUNK = 1 << 16


def socket_path(run_dir: str | os.PathLike[str] | None = None) -> str:
    """Where the daemon listens: in `run_dir`, else $SANLOCK_RUN_DIR, else /run/sanlock."""
    directory = os.fspath(run_dir) if run_dir else os.environ.get(RUN_DIR_VARIABLE, DEFAULT_RUN_DIR)
    return f"{directory}/{SOCKET_NAME}"


def unreachable(path: str, error: OSError) -> DaemonUnreachable:
    number = error.errno or errno.ECONNREFUSED
    return DaemonUnreachable(
        path=path,
        errno=number,
        code=-number,
        name=errno.errorcode.get(number, "?"),
        reason=os.strerror(number),
    )


def name_of(exchange: Exchange[T]) -> str:
    """What an exchange is called: the name of its function."""
    return getattr(exchange, "__name__", "a command")


class Connection:
    """One connected stream socket. Raises DaemonUnreachable; a context manager that closes it."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise unreachable(path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def detach(self) -> int:
        """Its descriptor, which is the caller's from now on, and inherited by programs this one becomes."""
        self._socket.set_inheritable(True)
        return self._socket.detach()

    def close(self) -> None:
        """To the daemon, closing is the end of a registered client: its leases are released."""
        self._socket.close()

    def readable(self, timeout: float | None) -> bool:
        """Wait until something can be received, the end of the connection included; False after `timeout` s."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(None if timeout is None else timeout * 1000))

    def run(self, exchange: Exchange[T], timeout: float | None = None) -> T:
        """Carry out an exchange; its result. Raises its errors, DaemonGone, and DaemonSilent after `timeout` s.

        After DaemonSilent an answer may still come, so the connection is of no use any more.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            step = next(exchange)
            while True:
                step = exchange.send(self._step(step, deadline))
        except StopIteration as end:
            result: T = end.value
            return result
        except TimeoutError:
            raise DaemonSilent(command=name_of(exchange), timeout=timeout) from None
        except ConnectionError as error:
            raise DaemonGone(command=name_of(exchange), reason=str(error)) from None
        finally:
            self._socket.settimeout(None)

    def _step(self, step: Send | Receive, deadline: float | None) -> bytes:
        self._limit(deadline)
        if isinstance(step, Send):
            # an answer may lie there already, and tell more than that the other end is closed
            with contextlib.suppress(BrokenPipeError):
                self._socket.sendall(step.data)
            return b""
        parts, missing = [], step.length
        while missing and (part := self._socket.recv(min(missing, _CHUNK))):
            parts.append(part)
            missing -= len(part)
            self._limit(deadline)
        return b"".join(parts)

    def _limit(self, deadline: float | None) -> None:
        """Let the next system call wait until `deadline`, and no longer."""
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        else:
            self._socket.settimeout(None)
