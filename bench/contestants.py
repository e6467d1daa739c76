"""Who our code is compared with: the real daemon over its Python module, and the same I/O with nothing around it."""

from __future__ import annotations

import ast
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from paxos.disk.buffers import Pool
from paxos.steps import Read, Steps, Write
from tests.support.peers import SYSTEM_PYTHON, SanlockDaemon

#: does the thing once: seconds that it took, without what had to be prepared
Round = Callable[[], float]
T = TypeVar("T")


def recorded(steps: Steps[T], transfers: list[Read | Write]) -> Steps[T]:
    """The same protocol; its reads and writes are appended to `transfers`."""
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(step, Read | Write):
            transfers.append(step)
        answer = yield step


class Floor:
    """The bare I/O: preadv and pwritev of the very same places from the best buffers there are, one after the other.

    To `path`, which must be another file than the one in use. What is written are zeros.
    """

    def __init__(self, path: str, transfers: Sequence[Read | Write]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_SYNC | os.O_CLOEXEC)
        pool = Pool()
        self._calls: list[tuple[Callable[[int, list[memoryview], int], int], list[memoryview], int]] = []
        for step in transfers:
            length = step.length if isinstance(step, Read) else len(step.data)
            memory = [pool.take(length).memory[:length]]
            self._calls.append((os.preadv if isinstance(step, Read) else os.pwritev, memory, step.offset))

    def __call__(self) -> float:
        fd = self._fd
        start = time.perf_counter()
        for call, memory, offset in self._calls:
            call(fd, memory, offset)
        return time.perf_counter() - start

    def close(self) -> None:
        os.close(self._fd)


#: reads one call a line, (function, args, kwargs), and answers with the seconds that it took there
_TIMED_CALLS = """
import sys, time
from ast import literal_eval
import sanlock
kept = {"slkfd": sanlock.register()}
print("ready", flush=True)
for line in sys.stdin:
    name, args, kwargs = literal_eval(line)
    if name in ("acquire", "release"):
        kwargs.update(kept)
    function = getattr(sanlock, name)
    start = time.perf_counter()
    function(*args, **kwargs)
    print(repr(time.perf_counter() - start), flush=True)
"""


class Sanlock:
    """A real daemon and one registered client, which times its own calls."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.daemon = self._stack.enter_context(SanlockDaemon("bench"))
        self._client = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _TIMED_CALLS],
            env=self.daemon.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._stack.callback(self._client.wait)
        self._stack.callback(self._client.kill)
        self._answer()

    def _answer(self) -> str:
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        assert line, "sanlock's client ended"
        return line

    def call(self, function: str, *args: Any, **kwargs: Any) -> float:
        """Call `sanlock.<function>`: seconds that it took."""
        assert self._client.stdin is not None
        self._client.stdin.write(repr((function, args, kwargs)) + "\n")
        return float(ast.literal_eval(self._answer()))

    def renewals(self, lockspace: str) -> list[float]:
        """What its renewals took, each (s), read and write together; the daemon counts whole milliseconds."""
        history = []
        for line in self.daemon.cli("renewal", "-s", lockspace).stdout.splitlines():
            facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if "read_ms" in facts and "write_ms" in facts:
                history.append((int(facts["read_ms"]) + int(facts["write_ms"])) / 1000)
        return history

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
