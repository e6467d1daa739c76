"""Stopping the users of leases: their processes, known by descriptors that can't be mistaken, and the guard.

The guard is a thread that does no I/O at all: it reads the clock, sleeps, and sends signals. So it walks the
recovery ladder (leases/keeper/decisions.py) whatever hangs around it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from leases.keeper.decisions import Holder, Stop
from leases.keeper.watchdog.base import boot_time
from paxos.errors import InvalidUse, LeaseholdError
from paxos.steps import Now, Sleep, Steps

T = TypeVar("T")


def run_on_clock(steps: Steps[T], wake: threading.Event) -> T:
    """Drive a protocol that only sleeps and asks for the time. Setting `wake` ends its sleep."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = None
        if isinstance(step, Now):
            answer = boot_time()
        elif isinstance(step, Sleep):
            if wake.wait(step.seconds):
                wake.clear()
        else:
            raise InvalidUse(reason=f"the guard does no I/O: {step!r}")


@dataclass(slots=True, eq=False)
class User:
    """A process that uses leases, or with `group` the process group that it leads."""

    holder: Holder
    pidfd: int
    group: bool = False
    kill_path: Sequence[str] = ()
    #: how many leases it uses
    uses: int = 1
    #: gone once, gone for ever: its number may belong to somebody else by now
    gone: bool = field(default=False)

    @property
    def pid(self) -> int:
        return self.holder.pid

    def is_gone(self) -> bool:
        if not self.gone and _has_ended(self.pidfd) and not (self.group and _group_lives(self.pid)):
            self.gone = True
        return self.gone

    def send(self, number: signal.Signals) -> None:
        """Nothing happens if it is gone."""
        with suppress(OSError):
            if self.group:
                if not self.is_gone():
                    os.killpg(self.pid, number)
            else:
                signal.pidfd_send_signal(self.pidfd, number)

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.pidfd)


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _group_lives(pgid: int) -> bool:
    """Whether the group has a process that is no zombie."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                state, _, group = file.read().rpartition(b")")[2].split()[:3]
                if int(group) == pgid and state not in (b"Z", b"X"):
                    return True
    return False


class Users:
    """The processes that use leases of one lockspace, by pid."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[int, User] = {}

    def add(
        self,
        pid: int,
        *,
        group: bool = False,
        kill_path: Sequence[str] = (),
        never_kill: bool = False,
        never_terminate: bool = False,
    ) -> None:
        """`pid` uses one lease more. Raises InvalidUse if there is no such process."""
        if pid <= 1:
            raise InvalidUse(reason=f"{pid} can't be a holder of leases")
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as failure:
            raise InvalidUse(reason=f"process {pid} can't hold a lease: {failure.strerror}") from failure
        holder = Holder(pid, bool(kill_path), never_kill, never_terminate)
        with self._lock:
            known = self._users.get(pid)
            if known is None or known.is_gone():
                self._users[pid] = User(holder, pidfd, group, tuple(kill_path))
            else:
                os.close(pidfd)
                known.uses += 1

    def remove(self, pid: int) -> bool:
        """`pid` uses one lease less. Whether it was the last one."""
        with self._lock:
            user = self._users.get(pid)
            if user is None:
                return False
            user.uses -= 1
            if user.uses <= 0:
                del self._users[pid]
            return user.uses <= 0

    def get(self, pid: int) -> User | None:
        return self._users.get(pid)

    def alive(self) -> list[User]:
        """Those that are still there."""
        return [user for user in list(self._users.values()) if not user.is_gone()]

    def stop(self, pid: int, how: Stop) -> None:
        """Never waits: a kill path is started by a thread of its own, since starting a program may hang."""
        user = self._users.get(pid)
        if user is None:
            return
        if how is Stop.KILL_PATH:
            threading.Thread(target=_start, args=(user.kill_path, user), name="kill path", daemon=True).start()
        else:
            user.send(signal.SIGTERM if how is Stop.TERMINATE else signal.SIGKILL)


def _start(argv: Sequence[str], user: User) -> None:
    """Run a kill path; where it can't even be started, SIGTERM has to do."""
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError:
        user.send(signal.SIGTERM)
    else:
        process.wait()


class Guard(threading.Thread):
    """Runs `steps` (stand_guard) to its end, then `when_done` with its result."""

    def __init__(
        self, name: str, steps: Steps[LeaseholdError | None], when_done: Callable[[LeaseholdError | None], None]
    ) -> None:
        super().__init__(name=f"guard {name}", daemon=True)
        self._steps = steps
        self._when_done = when_done
        self._wake = threading.Event()

    def wake(self) -> None:
        """Look now, not at the next tick."""
        self._wake.set()

    def run(self) -> None:
        self._when_done(run_on_clock(self._steps, self._wake))
