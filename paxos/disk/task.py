"""One protocol being driven: where it stands, what it waits for, how it ended."""

from __future__ import annotations

from typing import Any

from paxos.disk.buffers import Buffer
from paxos.steps import Step, Steps


class Task:
    """The engine's note on one generator. It waits for something exactly if `ticket` is not 0."""

    __slots__ = (
        *("steps", "value", "error"),
        *("step", "ticket", "transfer", "buffer"),
        *("aborted", "result", "failure"),
    )

    def __init__(self, steps: Steps[Any]) -> None:
        self.steps = steps
        #: sent or thrown into the generator when it goes on
        self.value: Any = None
        self.error: BaseException | None = None
        #: the last step that takes time; `ticket` tells the deadline of this wait from those of earlier ones
        self.step: Step | None = None
        self.ticket = 0
        #: set while a read or write is on its way
        self.transfer: Any = None
        #: what the view of its last read lies in
        self.buffer: Buffer | None = None
        self.aborted = False
        self.result: Any = None
        self.failure: Exception | None = None
