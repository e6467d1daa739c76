"""What happened, one dense line an event: kept in a ring, printed when a run fails.

Events are recorded as plain tuples and turned into text only when somebody reads them: a run records
millions. The running digest covers every event, also those that have left the ring: two runs with equal
digests did the same things at the same times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

LEGEND = """\
  time s   host  who        event
  true time, seconds since the start; host number (h0: the world); task, as process.task

  r read asked      R read answered     w write asked       W write landed on the disk   k write acknowledged
  t timed out, still in flight          e I/O failed        l landed late: nobody waits for it any more
  J joined          L left              F watchdog fed      G lease granted              g refused or failed
  - released        < release failed    x holder gone       ! fault chosen               X process killed
  p paused          P runs again        # machine reset     ^ machine booted             : note
  D hosts of the reference broke a rule among themselves            V VIOLATION
"""

#: (true time, host number, who, event letter, offset or number, detail)
Event = tuple[float, int, str, str, int, Any]
Describe = Callable[[int, Any], str]


def _plain(offset: int, detail: Any) -> str:
    return f"{len(detail)} bytes at {offset}" if isinstance(detail, bytes) else f"{detail}"


class Trace:
    """The last `length` events. `describe(offset, detail)` makes the text of an event's detail."""

    def __init__(self, length: int = 4000, describe: Describe = _plain) -> None:
        self.events: deque[Event] = deque(maxlen=length)
        self.describe = describe
        self.digest = 0
        self.count = 0

    def add(self, time: float, host: int, who: str, event: str, number: int = 0, detail: Any = "") -> None:
        # numbers only: the hash of a string differs from process to process
        self.digest = hash((self.digest, time, host, ord(event), number))
        self.count += 1
        self.events.append((time, host, who, event, number, detail))

    def lines(self, last: int | None = None) -> Iterator[str]:
        """The events as text, oldest first; `last` limits them to the most recent ones."""
        skip = 0 if last is None else max(0, len(self.events) - last)
        for index, (time, host, who, event, number, detail) in enumerate(self.events):
            if index >= skip:
                yield f"{time:10.4f} h{host} {who:<18} {event} {self.describe(number, detail)}".rstrip()

    def text(self, last: int | None = None) -> str:
        """Legend and events."""
        return LEGEND + "\n" + "\n".join(self.lines(last)) + "\n"
