"""Calls to a file system, with a limit to how long we wait for it: a network file system may never answer."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from paxos.errors import DiskError

T = TypeVar("T")


class NoAnswer(DiskError):
    """The file system has not answered in time. What was asked of it may still happen."""

    name = "AIO_TIMEOUT"
    template = "{disk} does not answer: {operation} not done after {timeout} s"
    advice = "check the file system and the path to its server"

    def __init__(self, **facts: object) -> None:
        super().__init__(**{"errno": errno.ETIMEDOUT, **facts})
        self.code = -202  # type: ignore[misc]


class Call(Generic[T]):
    """One call, made by a thread of its own. `late` is given what it returns when nobody waits any more."""

    def __init__(self, operation: str, disk: str, action: Callable[[], T], late: Callable[[T], object]) -> None:
        self._operation = operation
        self._disk = disk
        self._action = action
        self._late = late
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._given_up = False
        self._result: T | None = None
        self._failure: BaseException | None = None
        threading.Thread(target=self._run, name=f"{operation} {disk}", daemon=True).start()

    def _run(self) -> None:
        try:
            result = self._action()
        except BaseException as failure:
            self._failure = failure
            self._done.set()
            return
        with self._lock:
            self._result = result
            self._done.set()
            given_up = self._given_up
        if given_up:
            self._late(result)

    def wait(self, seconds: float) -> bool:
        """Whether it is done, waiting for so long."""
        return self._done.wait(seconds)

    def no_answer(self, timeout: float) -> NoAnswer:
        return NoAnswer(operation=self._operation, disk=self._disk, timeout=timeout, offset=0, length=0)

    def result(self, timeout: float) -> T:
        """What it returned or raised. Raises NoAnswer if it is not done after `timeout` seconds, and gives it up."""
        self._done.wait(timeout)
        with self._lock:
            if not self._done.is_set():
                self._given_up = True
                raise self.no_answer(timeout)
        if self._failure is not None:
            raise self._failure
        return self._result  # type: ignore[return-value]


def within(
    timeout: float,
    operation: str,
    disk: str,
    action: Callable[[], T],
    late: Callable[[T], object] = lambda _result: None,
) -> T:
    """What `action` returns, if it does so within `timeout` seconds; see Call."""
    return Call(operation, disk, action, late).result(timeout)
