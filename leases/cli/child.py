"""The command that runs under a lease: made before the lease is taken, set off after, stopped as a group.

It is forked while this process has no threads, and waits at a pipe until the lease is there; so it can be put
under guard before its first instruction runs, and no thread is surprised by a fork. It is the leader of a process
group of its own, in the session and on the terminal of its parent: what it starts ends with it, job control works.
The kernel kills it (SIGKILL) when this process dies, whatever else may fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
#: ends what is written to the waiting process
_GO = b"go\0"
#: ignored by Python itself, for Python's sake
_PYTHON_IGNORES = (signal.SIGPIPE, signal.SIGXFSZ)


class CannotExecute(Exception):
    """`errno` says why the command did not start."""

    def __init__(self, command: str, number: int) -> None:
        super().__init__(f"{command}: {os.strerror(number)}")
        self.errno = number


class Child:
    """A process that is about to become the command, or has."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        #: not set off yet
        self.waiting = True
        #: its wait status, None as long as it lives
        self.ended: int | None = None
        self._go_read, self._go_write = os.pipe()
        self._error_read, self._error_write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(parent)
        os.close(self._go_read)
        os.close(self._error_write)
        with contextlib.suppress(PermissionError):  # it has its own group already, and execs
            os.setpgid(self.pid, self.pid)

    def _become(self, parent: int) -> NoReturn:
        """In the child: wait for the word, then exec."""
        try:
            os.setpgid(0, 0)
            os.close(self._go_write)
            os.close(self._error_read)
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it was gone before that could work
                os._exit(0)
            with open(self._go_read, "rb") as go:
                word = go.read()
            if not word.endswith(_GO):  # called off, or its parent died
                os._exit(0)
            environment = os.environb.copy()
            environment.update(pair.split(b"=", 1) for pair in word.split(b"\0")[:-2])  # type: ignore[misc]
            for number in _PYTHON_IGNORES:
                signal.signal(number, signal.SIG_DFL)
            self._exec(environment)
        except BaseException as error:
            os.write(self._error_write, str(getattr(error, "errno", None) or errno.ENOEXEC).encode())
        finally:
            os._exit(1)

    def _exec(self, environment: Mapping[bytes, bytes]) -> NoReturn:
        try:
            os.execvpe(self.command[0], self.command, environment)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # as execvp(3) does: a script without a first line that names its shell
            os.execve("/bin/sh", ["sh", _found(self.command[0]) or self.command[0], *self.command[1:]], environment)

    def start(self, environment: Mapping[str, str]) -> None:
        """Set it off, with these variables added to the environment. CannotExecute, and then it has ended."""
        self.waiting = False
        word = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
        try:
            os.write(self._go_write, word + _GO)
        except BrokenPipeError:  # somebody ended it, and poll() tells how
            pass
        finally:
            os.close(self._go_write)
        with open(self._error_read, "rb") as trouble:
            number = trouble.read()  # ends when the exec closes the other end
        if number:
            self._reap()
            raise CannotExecute(self.command[0], int(number))

    def call_off(self) -> None:
        """End it before it was set off."""
        self.waiting = False
        os.close(self._go_write)
        os.close(self._error_read)
        self._reap()

    def _reap(self) -> None:
        _, self.ended = os.waitpid(self.pid, 0)

    def poll(self) -> int | None:
        """What became of it since the last call: a wait status (it ended, or was stopped), or None."""
        if self.ended is not None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        if not pid:
            return None
        if not os.WIFSTOPPED(status):
            self.ended = status
        return status

    def signal(self, number: int) -> None:
        """Send a signal to the command and to what it started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def leftovers(self) -> list[int]:
        """Processes of its group that still run."""
        return [pid for pid, group in _running() if group == self.pid]

    def exit_code(self) -> int:
        """As the shell has it: its own, or 128 + n if signal n ended it."""
        assert self.ended is not None
        code = os.waitstatus_to_exitcode(self.ended)
        return code if code >= 0 else 128 - code


def missing(command: str) -> int | None:
    """The errno with which this command can't be executed; None if it seems to be there."""
    if _found(command):
        return None
    places = [command] if os.path.dirname(command) else [os.path.join(place, command) for place in os.get_exec_path()]
    return errno.EACCES if any(os.path.exists(place) for place in places) else errno.ENOENT


def _found(command: str) -> str | None:
    places = [command] if os.path.dirname(command) else [os.path.join(place, command) for place in os.get_exec_path()]
    return next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), None)


def _running() -> Iterator[tuple[int, int]]:
    """Pid and process group of all processes that have not ended (zombies have)."""
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stat:
                # the command's name is in brackets and may hold any byte
                state, _parent, group = stat.read().rpartition(b")")[2].split()[:3]
        except OSError:
            continue  # gone meanwhile
        if state not in (b"Z", b"X"):
            yield int(entry), int(group)
