"""Carrying out what handlers wait for (leases/daemon/call.py): their generators, driven in the loop's thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from leases.daemon.call import Send, Task, Wait, Work
from leases.daemon.loop import Loop
from leases.daemon.workers import Workers

#: called in the loop's thread with a result, or with what was raised instead
Done = Callable[[Any, BaseException | None], None]


class Running:
    """A task under way. `send` takes bytes for whoever asked; where it says False, `go_on` is called later."""

    def __init__(self, tasks: Tasks, task: Task[Any], done: Done, send: Callable[[bytes], bool] | None) -> None:
        self._tasks = tasks
        self._task = task
        self._done = done
        self._send = send

    def go_on(self, value: object = None, failure: BaseException | None = None) -> None:
        """Until it waits again, or is at its end."""
        while True:
            try:
                step = self._task.send(value) if failure is None else self._task.throw(failure)
            except StopIteration as end:
                self._done(end.value, None)
                return
            except Exception as error:
                self._done(None, error)
                return
            value = failure = None
            if isinstance(step, Work):
                self._tasks.run_in_worker(step.job, self.go_on, step.own_thread)
                return
            if isinstance(step, Wait):
                self._tasks.loop.after(step.seconds, self.go_on)
                return
            assert isinstance(step, Send) and self._send is not None
            if not self._send(step.data):
                return

    def end(self) -> None:
        """Nobody waits for it any more; what it holds is let go of."""
        self._task.close()


class Tasks:
    def __init__(self, loop: Loop, workers: Workers) -> None:
        self.loop = loop
        self._workers = workers

    def start(self, task: Task[Any], done: Done, send: Callable[[bytes], bool] | None = None) -> Running:
        running = Running(self, task, done, send)
        running.go_on()
        return running

    def run_in_worker(self, job: Callable[[], object], done: Done, own_thread: str | None = None) -> None:
        def ended(result: object, failure: BaseException | None) -> None:
            self.loop.post(partial(done, result, failure))

        if own_thread is None:
            self._workers.submit(job, ended)
        else:
            self._workers.own_thread(own_thread, job, ended)
