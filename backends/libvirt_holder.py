"""The process that holds the locks of one guest of libvirt, from its start to its end; see libvirt_hook.

It reads what to hold from standard input, says `ok` or why not on standard output, and then answers at its socket:

    adopt PID   QEMU's process: it is stopped when the locks are lost, and when it ends, so do we
    here?       `ok` if we have the locks, `waiting` if not yet
    release     give the locks back, and end

Waiting for the locks of a guest that is on its way here, it says `ok` at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any
from uuid import UUID

from backends.libvirt_hook import from_json
from leases.manager import GuestLocks, Owner, StateStale, open_manager
from paxos.errors import AlreadyHeld, HeldElsewhere, LeaseholdError, TryAgain

#: seconds between two looks at the locks and, while we wait for them, two tries
TICK = 0.2
_BUSY = (HeldElsewhere, AlreadyHeld, TryAgain)


class Holder:
    def __init__(self, guest: GuestLocks, listener: socket.socket, pid: int) -> None:
        self.guest = guest
        self._listener = listener
        self._pid = pid
        self._pidfd: int | None = None
        #: what the guest's locks were at the source, while we wait for them
        self._awaited: str | None = None
        self._ended = False
        if pid:
            self._pidfd = os.pidfd_open(pid)

    def take(self, wait: bool) -> None:
        """Take the locks, or begin to wait for them. Raises what they are refused with."""
        if wait:
            self._awaited = self.guest.foreseen()
            self._try_again()
        else:
            self.guest.acquire()
            self._adopt()

    def run(self) -> None:
        """Until the guest has ended, or the locks are given back."""
        while not self._ended:
            watched = [self._listener.fileno(), *([] if self._pidfd is None else [self._pidfd])]
            ready, _, _ = select.select(watched, [], [], TICK)
            if self._listener.fileno() in ready:
                self._answer()
            if self._pidfd in ready:
                self._ended = True
            if self._awaited is not None and not self._ended:
                self._try_again()
            if self.guest.lost.is_set() and self._pidfd is None:
                self._ended = True  # nobody uses them yet
        with suppress(LeaseholdError):
            self.guest.release()

    def _answer(self) -> None:
        channel, _ = self._listener.accept()
        with channel, suppress(OSError):
            channel.settimeout(5.0)
            word, _, rest = channel.makefile().readline().strip().partition(" ")
            channel.sendall(f"{self._obey(word, rest)}\n".encode())

    def _obey(self, word: str, rest: str) -> str:
        if word == "adopt":
            try:
                self._pidfd, self._pid = os.pidfd_open(int(rest)), int(rest)
                self._adopt()
            except (LeaseholdError, OSError, ValueError) as error:
                self._ended = True
                return " ".join(str(error).split())
            return "ok"
        if word == "release":
            self._awaited = None
            with suppress(LeaseholdError):  # before the answer: whoever asked may want the locks elsewhere
                self.guest.release()
            self._ended = True
        return "ok" if self._awaited is None else "waiting"

    def _adopt(self) -> None:
        if self._pid and self.guest.held:
            self.guest.adopt(self._pid)

    def _try_again(self) -> None:
        try:
            self.guest.acquire(self._awaited or "")
            self._awaited = None
            self._adopt()
        except StateStale as stale:
            self._give_up(stale)
        except _BUSY:
            pass  # the guest is still at the source
        except LeaseholdError as error:
            self._give_up(error)

    def _give_up(self, reason: LeaseholdError) -> None:
        """The guest runs here, or is about to, and can't have its locks: somebody else has its disks."""
        print(f"{time.ctime()} {self.guest.owner.name} is killed: {reason}", file=sys.stderr, flush=True)
        if self._pidfd is None:
            self._ended = True
        else:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._awaited = None


def listen(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def main() -> int:
    order: dict[str, Any] = json.load(sys.stdin)
    owner = Owner(UUID(order["uuid"]), order["name"])
    try:
        manager = open_manager(order["lock_manager"], **order["settings"])
        guest = manager.guest(owner, [from_json(resource) for resource in order["resources"]])
        listener = listen(order["socket"])
        holder = Holder(guest, listener, order["pid"])
        holder.take(order["wait"])
    except (LeaseholdError, OSError) as error:
        print(" ".join(str(error).split()), flush=True)
        return 1
    print("ok", flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        holder.run()
    finally:
        with suppress(OSError):
            os.unlink(order["socket"])
        with suppress(LeaseholdError):
            manager.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
