"""The guardian's own program: it kills the processes that use a lockspace when nobody renews it any more.

Started by `guardian.py` as `python -I -S guardian_process.py FD`, it imports nothing but a few built-in
modules, so it stays small and shares nothing with its feeder but one SOCK_SEQPACKET socket. It can't be
stopped by signals that can be ignored, and asks for locked memory, realtime priority and to be spared when
memory runs out; what of that it got, it says in its first reply.

Per connection it is told two times of the boot-time clock: from `term_at` on it sends SIGTERM each second,
from `kill_at` on SIGKILL. All messages that lie in the socket are read before anybody is killed, so what was
told in time counts, even if this process was late. When the feeder goes away without disarming, the last
times told stay in force (or, if so asked, are moved to now); nothing can be renewed then. It ends when its
feeder is gone and nobody is left whom it might have to kill.

A holder is a process, known by its pidfd and start time, never by the number alone; or a process group. A
group's number stays taken while any process is in it, so a group is given up for ever once it was seen empty.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
import sys
import time

#: verb, sequence number, connection, flags, pid, start time (ticks since boot), term_at, kill_at, name
MESSAGE = struct.Struct("=IIIIqQdd64s")
#: sequence number, 0 or an errno; in the reply to HELLO: what is in force, as a set of the bits below
REPLY = struct.Struct("=II")

HELLO, ARM, RENEW, DISARM, CLOSE, HOLD, UNHOLD = range(1, 8)
#: flags of HOLD
GROUP, NO_TERM = 1, 2
#: flag of HELLO: when the feeder goes away, do not wait for the times told
DEATH_IS_EXPIRY = 1
#: bits of the reply to HELLO
LOCKED, REALTIME, SPARED = 1, 2, 4

#: seconds between two looks at the clock; a resume from suspend is noticed this late
TICK = 0.25
#: seconds between two looks at who is still alive
COUNT = 1.0
#: seconds between two signals to the same holder
REPEAT = 1.0


def boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> int:
    """When process `pid` started, in clock ticks since boot; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # the command's name is in brackets and may hold any byte; this is field 22
            return int(stat.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def ready(fd: int, event: int, seconds: float) -> bool:
    """Whether `event` (POLLIN, POLLOUT) or a hang-up comes to `fd` within `seconds`."""
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(seconds * 1000))


def say(text: str) -> None:
    """A line on stderr, if that takes it at once: a full pipe must not hold up a kill."""
    try:
        if ready(2, select.POLLOUT, 0):
            os.write(2, f"leasehold guardian[{os.getpid()}]: {text}\n".encode()[:512])
    except OSError:
        pass


class Holder:
    """A process or process group that uses leases. OSError if there is none, or it may not be killed."""

    def __init__(self, pid: int, start: int, flags: int) -> None:
        if pid <= 1 or pid == os.getpid():
            raise OSError(errno.EINVAL, "not to be killed")
        self.pid = pid
        self.group = bool(flags & GROUP)
        self.terminate = not flags & NO_TERM
        self.signalled = -REPEAT
        self._start = start
        self._pidfd = -1
        if not self.group:
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EMFILE):
                    raise
        try:
            if start_time(pid) != start:
                raise OSError(errno.ESRCH, "another process has this pid now")
            self.signal(0)
        except OSError:
            self.forget()
            raise

    def alive(self) -> bool:
        if self.group:
            # a leader of another age means that the group ended and its number went round
            if start_time(self.pid) not in (0, self._start):
                return False
            try:
                os.killpg(self.pid, 0)
            except OSError as error:
                return error.errno == errno.EPERM
            return True
        if self._pidfd >= 0:
            return not ready(self._pidfd, select.POLLIN, 0)
        return start_time(self.pid) == self._start

    def signal(self, number: int) -> None:
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)
        elif not self.alive():
            raise OSError(errno.ESRCH, "it has ended")
        elif self.group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Connection:
    """One lockspace: its holders, and if armed, the times (boot-time seconds) from which they are stopped."""

    def __init__(self) -> None:
        self.name = ""
        self.times: tuple[float, float] | None = None
        self.holders: dict[int, Holder] = {}

    def expired(self, now: float) -> bool:
        return self.times is not None and now >= min(self.times)

    def stop_holders(self, now: float) -> None:
        """Send what is due."""
        if self.times is None or not self.expired(now):
            return
        term_at, kill_at = self.times
        number = signal.SIGKILL if now >= kill_at else signal.SIGTERM
        for holder in self.holders.values():
            if now - holder.signalled < REPEAT or (number == signal.SIGTERM and not holder.terminate):
                continue
            # SIGKILL does not wait for the last SIGTERM's second to pass
            holder.signalled = now if number == signal.SIGKILL else min(now, kill_at - REPEAT)
            try:
                holder.signal(number)
                outcome = "sent"
            except OSError as error:
                outcome = f"failed ({error.strerror}):"
            kind = "process group" if holder.group else "process"
            late = f"{self.name} expired {now - term_at:.1f} s ago"
            say(f"{late}: {outcome} {signal.Signals(number).name} to {kind} {holder.pid}")

    def drop_dead(self) -> None:
        for pid in [pid for pid, holder in self.holders.items() if not holder.alive()]:
            self.holders.pop(pid).forget()


class Guardian:
    """All connections of one feeder, and the feeder's socket (None when it is gone)."""

    def __init__(self, feeder: int, in_force: int) -> None:
        self.feeder: int | None = feeder
        self.in_force = in_force
        self.death_is_expiry = False
        self.connections: dict[int, Connection] = {}

    def run(self) -> None:
        last_count = 0.0
        while True:
            self.hear()
            now = boot_time()
            count_due = now >= last_count + COUNT
            for connection in self.connections.values():
                if count_due or connection.expired(now):
                    connection.drop_dead()
                connection.stop_holders(now)
            last_count = now if count_due else last_count
            if self.feeder is None and not self.anyone_to_stop():
                return
            if self.feeder is not None:
                ready(self.feeder, select.POLLIN, self.pause())
            else:
                time.sleep(self.pause())

    def anyone_to_stop(self) -> bool:
        return any(one.times is not None and one.holders for one in self.connections.values())

    def pause(self) -> float:
        """Seconds until the next look at the clock."""
        now = boot_time()
        due = [at - now for one in self.connections.values() if one.times for at in one.times if at > now]
        return min([TICK, *due]) if due or self.anyone_to_stop() else 4 * TICK

    def hear(self) -> None:
        """Carry out all messages that have come."""
        while self.feeder is not None:
            try:
                data = os.read(self.feeder, MESSAGE.size + 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.feeder_is_gone()
            elif len(data) == MESSAGE.size:
                self.obey(data)

    def feeder_is_gone(self) -> None:
        assert self.feeder is not None
        os.close(self.feeder)
        self.feeder = None
        now = boot_time()
        for one in self.connections.values():
            if one.times is not None and self.death_is_expiry:
                term_at, kill_at = one.times
                # the same grace as ever, from now on
                one.times = (min(now, term_at), min(now + max(kill_at - term_at, 0.0), kill_at))
            if one.times is not None and one.holders:
                say(f"the feeder of {one.name} is gone; its users are stopped when it expires")

    def obey(self, data: bytes) -> None:
        verb, sequence, number, flags, pid, start, term_at, kill_at, name = MESSAGE.unpack(data)
        connection = self.connections.setdefault(number, Connection())
        result = 0
        if verb == HELLO:
            self.death_is_expiry = bool(flags & DEATH_IS_EXPIRY)
            result = self.in_force
        elif verb == ARM:
            connection.name = name.rstrip(b"\0").decode("utf-8", "replace")
            connection.times = (term_at, kill_at)
        elif verb == RENEW:
            if connection.times is not None:
                connection.times = (term_at, kill_at)
            return
        elif verb == DISARM:
            connection.times = None
        elif verb == CLOSE:
            if connection.times is None:
                for holder in self.connections.pop(number).holders.values():
                    holder.forget()
        elif verb == HOLD:
            result = self.hold(connection, pid, start, flags)
        elif verb == UNHOLD:
            if pid in connection.holders:
                connection.holders.pop(pid).forget()
        else:
            result = errno.EINVAL
        self.reply(sequence, result)

    def hold(self, connection: Connection, pid: int, start: int, flags: int) -> int:
        try:
            holder = Holder(pid, start, flags)
        except OSError as error:
            return error.errno or errno.EINVAL
        if pid in connection.holders:
            connection.holders.pop(pid).forget()
        connection.holders[pid] = holder
        return 0

    def reply(self, sequence: int, result: int) -> None:
        assert self.feeder is not None
        try:  # noqa: SIM105  (contextlib would double what is imported)
            os.write(self.feeder, REPLY.pack(sequence, result))
        except OSError:
            pass  # a feeder that does not read its replies finds that out itself


def steel() -> int:
    """Be hard to stop and quick to wake, as far as we may. The set of what was granted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    in_force = 0
    current, future = 1, 2
    try:
        import ctypes

        # with a limit on locked memory, locking what is yet to come could make it fail later
        if ctypes.CDLL(None).mlockall(current | (future if os.geteuid() == 0 else 0)) == 0:
            in_force |= LOCKED
    except (ImportError, OSError, AttributeError):
        pass
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
        in_force |= REALTIME
    except OSError:
        pass
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
            adjustment.write("-1000")
        in_force |= SPARED
    except OSError:
        pass
    return in_force


def main() -> None:
    feeder = int(sys.argv[1])
    os.set_blocking(feeder, False)
    Guardian(feeder, steel()).run()


if __name__ == "__main__":
    main()
