"""A watchdog device of the kernel (/dev/watchdog): a timer that resets the machine unless it is fed.

The device is opened with the first lockspace and closed with the last one, by writing 'V' first: without that
letter a close leaves it running. A device that can't be trusted for this is refused:
- it can't run with exactly the fire timeout that all hosts count on;
- it does not know the letter (no MAGICCLOSE): the kernel then stops it whenever we die, of all things;
- it only rings (ALARMONLY);
- it was loaded "nowayout": nothing could ever leave the lockspaces without a reset;
- it runs already. Whoever left it running died with leases in use, and feeding it would call off the reset
  that stops their users.

The calls to the kernel stand behind `Driver`, so that tests can put a timer of their own there.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from leases.keeper.watchdog.base import boot_time
from leases.keeper.watchdog.fed import FedWatchdog, State
from paxos.errors import WatchdogUnavailable

PATHS = ("/dev/watchdog0", "/dev/watchdog1", "/dev/watchdog")

# linux/watchdog.h
_INFO = struct.Struct("=II32s")  # options, firmware version, identity
_INT = struct.Struct("=i")
WDIOC_GETSUPPORT = 0x80285700
WDIOC_KEEPALIVE = 0x80045705
WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707
WDIOF_SETTIMEOUT = 0x0080
WDIOF_MAGICCLOSE = 0x0100
WDIOF_ALARMONLY = 0x0400


@dataclass(frozen=True, slots=True)
class Support:
    options: int
    identity: str


class Driver(Protocol):
    """What is asked of a watchdog device. Each call may raise OSError."""

    def attribute(self, path: str, name: str) -> str: ...
    def open(self, path: str) -> int: ...
    def support(self, fd: int) -> Support: ...
    def set_timeout(self, fd: int, seconds: int) -> None: ...
    def get_timeout(self, fd: int) -> int: ...
    def keepalive(self, fd: int) -> None: ...
    def allow_stop(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...


class KernelDriver:
    """The real thing."""

    def attribute(self, path: str, name: str) -> str:
        """What sysfs says of the device without opening it, which would start it; "" if it says nothing."""
        device = os.path.basename(path)
        if device == "watchdog":  # the old name of the first one
            device = "watchdog0"
        try:
            with open(f"/sys/class/watchdog/{device}/{name}", encoding="ascii", errors="replace") as attribute:
                return attribute.read().strip()
        except OSError:
            return ""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def support(self, fd: int) -> Support:
        answer = fcntl.ioctl(fd, WDIOC_GETSUPPORT, bytes(_INFO.size))
        options, _, identity = _INFO.unpack(answer)
        return Support(options, identity.split(b"\0")[0].decode("utf-8", "backslashreplace"))

    def set_timeout(self, fd: int, seconds: int) -> None:
        fcntl.ioctl(fd, WDIOC_SETTIMEOUT, _INT.pack(seconds))

    def get_timeout(self, fd: int) -> int:
        seconds: int = _INT.unpack(fcntl.ioctl(fd, WDIOC_GETTIMEOUT, _INT.pack(0)))[0]
        return seconds

    def keepalive(self, fd: int) -> None:
        fcntl.ioctl(fd, WDIOC_KEEPALIVE, _INT.pack(0))

    def allow_stop(self, fd: int) -> None:
        os.write(fd, b"V")

    def close(self, fd: int) -> None:
        os.close(fd)


class DeviceWatchdog(FedWatchdog):
    """The first of `paths` that works."""

    kind: ClassVar[str] = "device"

    def __init__(
        self,
        fire_timeout: int,
        paths: Sequence[str] = PATHS,
        *,
        driver: Driver | None = None,
        clock: Callable[[], float] = boot_time,
        thread: bool = True,
    ) -> None:
        super().__init__(fire_timeout, clock=clock, thread=thread)
        self.paths = tuple(paths)
        self._driver = driver or KernelDriver()
        self._fd: int | None = None
        self._path = ""
        self._identity = ""

    def check(self) -> None:
        with self._timer:
            if self._state is State.OFF:
                self._try(self._start)
                self._try(self._stop)

    def describe(self) -> str:
        which = f"{self._path} ({self._identity})" if self._path else " or ".join(self.paths)
        trouble = f"; IN TROUBLE: {self.trouble}" if self.trouble else ""
        return f"watchdog device {which}: resets this machine within {self.fire_timeout} s{trouble}"

    def _start(self) -> None:
        if self._fd is not None:  # it could not be cut before
            self._driver.set_timeout(self._fd, self.fire_timeout)
            return
        # one that we left running is the one to take up again
        refusals = [refusal for path in self._candidates() if (refusal := self._refusal(path))]
        if self._fd is None:
            raise WatchdogUnavailable(reason="; ".join(refusals))

    def _candidates(self) -> Sequence[str]:
        return (self._path,) if self._path else self.paths

    def _refusal(self, path: str) -> str:
        """Open `path` and keep it open if it will do; else leave it as it was and say why not."""
        if self._fd is not None:
            return ""
        try:
            if self._driver.attribute(path, "nowayout") == "1":
                return f"{path} can't be stopped once started (nowayout)"
            if not self._path and self._driver.attribute(path, "state") == "active":
                return f"{path} is running already: in use, or left by a program that died, whose reset is due"
            fd = self._driver.open(path)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        try:
            reason = self._unfit(fd)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            self._release(fd)
            return f"{path} {reason}"
        self._fd, self._path = fd, path
        return ""

    def _unfit(self, fd: int) -> str:
        support = self._driver.support(fd)
        if not support.options & WDIOF_MAGICCLOSE:
            return f"({support.identity}) would be stopped by the death of its feeder (no magic close)"
        if support.options & WDIOF_ALARMONLY:
            return f"({support.identity}) does not reset the machine"
        if support.options & WDIOF_SETTIMEOUT:
            self._driver.set_timeout(fd, self.fire_timeout)
        seconds = self._driver.get_timeout(fd)
        if seconds != self.fire_timeout:
            return f"({support.identity}) fires after {seconds} s, not after {self.fire_timeout} s"
        self._identity = support.identity
        return ""

    def _feed(self) -> None:
        assert self._fd is not None
        self._driver.keepalive(self._fd)

    def _cut(self, seconds: float) -> None:
        assert self._fd is not None
        # set_timeout also feeds, and so does a close without 'V': with the shorter time neither is too late.
        # If the device refuses it, it stays open, as closing would then give it the whole time once more.
        self._driver.set_timeout(self._fd, max(1, int(seconds)))
        fd, self._fd = self._fd, None
        self._driver.close(fd)

    def _stop(self) -> None:
        assert self._fd is not None
        fd, self._fd, self._path = self._fd, None, ""
        self._release(fd)

    def _release(self, fd: int) -> None:
        """Stop the device that `fd` opened, and close it."""
        try:
            self._driver.allow_stop(fd)
        finally:
            self._driver.close(fd)
