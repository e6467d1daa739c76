"""The daemon's one loop: descriptors that are ready, timers, and calls that other threads hand in. It never blocks."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Callable

from leases.daemon.clock import boot_time

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP | select.EPOLLERR
#: descriptors looked at in one round, so that thousands that are ready leave room for timers
_ROUND = 256

Ready = Callable[[int], None]


class Timer:
    """A call that is due; `cancel` makes it never happen."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Run by one thread, which calls everything here but `post`."""

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._on_error = on_error
        self._stopped = False
        self.thread = threading.get_ident()
        self.watch(self._wake_fd, READ, self._woken)

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready` with the events whenever there are any; hang-ups are told in any case."""
        self._epoll.register(fd, events)
        self._ready[fd] = ready

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop's thread call it soon. From any thread, and from signal handlers."""
        self._posted.append(call)
        os.eventfd_write(self._wake_fd, 1)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (boot_time() + seconds, next(self._order), timer))
        return timer

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """Until `stop`. An exception of anything that is called goes to `on_error`, and the loop goes on."""
        self.thread = threading.get_ident()
        while not self._stopped:
            for fd, events in self._epoll.poll(self._patience(), _ROUND):
                ready = self._ready.get(fd)
                if ready is not None:
                    self._guarded(lambda ready=ready, events=events: ready(events))  # type: ignore[misc]
            while self._timers and self._timers[0][0] <= boot_time():
                _, _, timer = heapq.heappop(self._timers)
                if timer.call is not None:
                    self._guarded(timer.call)
            for _ in range(len(self._posted)):
                self._guarded(self._posted.popleft())

    def _patience(self) -> float:
        if self._posted:
            return 0.0
        if not self._timers:
            return -1.0
        return max(0.0, self._timers[0][0] - boot_time())

    def _woken(self, _events: int) -> None:
        os.eventfd_read(self._wake_fd)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._on_error(error)
