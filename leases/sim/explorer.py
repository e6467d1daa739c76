"""Every interleaving of a small configuration, once: a few hosts, one lease, a crash anywhere, a write that lands late.

Time is all but left out: whatever could happen in some order happens in every order. A host's program is a
generator, which can't be copied; but it is a function of the answers it got, so it can be brought back by giving
them again. Where it stands is told by its frames: the place in each function, and all local variables. Two lists of
answers that lead to equal frames are one local state, and what each answer leads to is worked out once and
remembered. A state of the whole is then

    what each sector holds · each host's local state · writes still in flight · what was granted · what may yet go
    wrong

and two ways that lead to the same state are one. What may happen in a state:

    step    a host's next I/O happens and is answered
    late    its next write times out instead; it lands later, or never
    land    a write in flight lands
    drop    a write in flight fails for good: who waits for it is told
    crash   a host stops, and everybody may know it dead from then on; its writes in flight stay in flight

A step of a program is a step of the protocol, or Granted, or LetGo: marks of what its client sees.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from leases.sim.checkers import Violation
from paxos.errors import DiskError, IOTimeout, LeaseholdError
from paxos.steps import Now, Pending, Read, Reap, Sleep, Write

#: when everything begins (seconds), and how long every sleep takes: longer than anybody's patience, so that who
#: watches for a change looks once more and then decides
NOON = 1000.0
NAP = 100.0


@dataclass(frozen=True, slots=True)
class Granted:
    """The client has the lease now."""

    token: int
    exclusive: bool = True


@dataclass(frozen=True, slots=True)
class LetGo:
    """The client is about to give it back."""


Program: TypeAlias = Callable[["Environment"], Generator[Any, Any, Any]]


class Environment:
    """What a program may ask for apart from its steps: which hosts have crashed.

    An answer that depends on it makes it part of the host's history.
    """

    def __init__(self) -> None:
        self.crashed: frozenset[int] = frozenset()
        self.asked = False

    def is_crashed(self, host: int) -> bool:
        """Whether host `host` (0-based) is known dead."""
        self.asked = True
        return host in self.crashed


@dataclass(frozen=True, slots=True)
class Limits:
    """What may go wrong on one way, and how far to look."""

    crashes: int = 0
    late_writes: int = 0
    max_states: int = 1_000_000


@dataclass(slots=True)
class Report:
    """What was explored. `complete`: nothing was left out."""

    states: int = 0
    steps: int = 0
    ends: int = 0
    grants: int = 0
    local_states: int = 0
    complete: bool = True
    violation: Violation | None = None
    #: the way to the violation, one line an event
    way: list[str] = field(default_factory=list)


# A host's next step, as the explorer sees it: (kind, first sector or number, ...).
_Request: TypeAlias = tuple[Any, ...]
# An answer: (kind, ...), the same for the same thing seen.
_Answer: TypeAlias = tuple[Any, ...]


@dataclass(slots=True)
class _Local:
    """A host's local state: the answers it got so far, and what it asks for next."""

    host: int
    parent: int
    answer: _Answer
    crashed: frozenset[int]
    request: _Request
    depth: int


#: where a host stands that will do nothing any more, however it came to that
_GONE = -1


class _State(NamedTuple):
    sectors: tuple[int, ...]
    locals: tuple[int, ...]
    #: (host, number of the write among the host's, sector, content, still to come)
    flying: tuple[tuple[int, int, int, int], ...]
    dropped: frozenset[tuple[int, int]]
    holding: tuple[tuple[int, bool], ...]
    crashed: frozenset[int]
    token: int
    crashes: int
    late: int


class Explorer:
    """`image`: the disk's first bytes; `programs`: one for each host. Reads beyond the image see `rest`."""

    def __init__(self, image: bytes, sector_size: int, programs: list[Program], watched: list[int]) -> None:
        self._sector = sector_size
        self._image = bytearray(image)
        self._programs = programs
        #: the sectors that change, by number
        self._watched = watched
        self._slot = {sector: slot for slot, sector in enumerate(watched)}
        self._contents: list[bytes] = []
        self._content_ids: dict[bytes, int] = {}
        self._locals: list[_Local] = []
        self._next: dict[tuple[int, _Answer, frozenset[int] | None], int] = {}
        self._depends: set[tuple[int, _Answer]] = set()
        self._live: dict[int, _Run] = {}
        self._known: dict[Any, int] = {}

    # --- what may happen ---

    def explore(self, limits: Limits) -> Report:
        """Everything, depth first."""
        report = Report()
        first = self._first(limits)
        seen = {hash(first)}
        stack: list[tuple[_State, tuple[Any, ...] | None]] = [(first, None)]
        try:
            while stack:
                state, way = stack.pop()
                report.states += 1
                moves = list(self._moves(state))
                if not moves:
                    report.ends += 1
                for name, after in moves:
                    report.steps += 1
                    if isinstance(after, Violation):
                        report.violation = after
                        report.way = [*_told(way), name]
                        return report
                    key = hash(after)
                    if key not in seen:
                        seen.add(key)
                        stack.append((after, (way, name)))
                if report.states >= limits.max_states:
                    report.complete = not stack
                    break
        finally:
            report.local_states = len(self._locals)
            report.grants = sum(local.request[0] == "granted" for local in self._locals)
        return report

    def _first(self, limits: Limits) -> _State:
        sectors = tuple(
            self._intern(bytes(self._image[sector * self._sector : (sector + 1) * self._sector]))
            for sector in self._watched
        )
        starts = tuple(self._start(host) for host in range(len(self._programs)))
        return _State(sectors, starts, (), frozenset(), (), frozenset(), 0, limits.crashes, limits.late_writes)

    def _moves(self, state: _State) -> Generator[tuple[str, _State | Violation], None, None]:
        # What only a client notices needs no interleaving: a grant is seen at once, and letting go as late as can be.
        for host, number in enumerate(state.locals):
            if number != _GONE and self._locals[number].request[0] == "granted":
                request = self._locals[number].request
                yield f"host {host + 1} is granted token {request[1]}", self._grant(state, host, request)
                return
        for host, number in enumerate(state.locals):
            if number == _GONE:
                continue
            request = self._locals[number].request
            kind = request[0]
            if kind == "reap":
                key = (host, request[1])
                if any(key == flight[:2] for flight in state.flying):
                    pass  # still in flight
                else:
                    answer = ("failed",) if key in state.dropped else ("done",)
                    yield f"host {host + 1} reaps", self._answered(state, host, answer)
            elif kind == "read":
                seen = tuple(state.sectors[slot] for slot in request[2])
                yield f"host {host + 1} reads {request[1]}", self._answered(state, host, ("data", *seen))
            elif kind == "write":
                yield self._write(state, host, request)
                if state.late:
                    flight = (host, request[3], self._slot[request[1]], request[2])
                    late = self._answered(state, host, ("timeout",))
                    yield (
                        f"host {host + 1} is told that its write of sector {request[1]} timed out",
                        late._replace(flying=tuple(sorted((*state.flying, flight))), late=state.late - 1),
                    )
            elif kind == "letgo":
                after = self._answered(state, host, ("done",))
                held = tuple(hold for hold in state.holding if hold[0] != host)
                yield f"host {host + 1} lets go", after._replace(holding=held)
            if state.crashes:
                yield (
                    f"host {host + 1} crashes",
                    state._replace(
                        locals=(*state.locals[:host], _GONE, *state.locals[host + 1 :]),
                        crashed=state.crashed | {host},
                        holding=tuple(hold for hold in state.holding if hold[0] != host),
                        crashes=state.crashes - 1,
                    ),
                )
        for flight in state.flying:
            host, number, slot, content = flight
            rest = tuple(other for other in state.flying if other != flight)
            landed = (*state.sectors[:slot], content, *state.sectors[slot + 1 :])
            what = f"write of host {host + 1} to sector {self._watched[slot]}"
            yield f"the late {what} lands", state._replace(sectors=landed, flying=rest)
            if state.locals[host] != _GONE:
                yield f"the late {what} fails", state._replace(flying=rest, dropped=state.dropped | {(host, number)})

    def _write(self, state: _State, host: int, request: _Request) -> tuple[str, _State]:
        slot = self._slot[request[1]]
        after = self._answered(state, host, ("done",))
        sectors = (*state.sectors[:slot], request[2], *state.sectors[slot + 1 :])
        return f"host {host + 1} writes sector {request[1]}", after._replace(sectors=sectors)

    def _grant(self, state: _State, host: int, request: _Request) -> _State | Violation:
        _, token, exclusive = request
        for other, other_exclusive in state.holding:
            if exclusive or other_exclusive:
                return Violation("one owner", f"host {host + 1} is granted while host {other + 1} holds")
        if exclusive and token <= state.token:
            return Violation("tokens grow", f"host {host + 1} is granted {token} after {state.token}")
        after = self._answered(state, host, ("done",))
        return after._replace(
            holding=tuple(sorted((*state.holding, (host, exclusive)))),
            token=token if exclusive else state.token,
        )

    # --- the hosts' programs ---

    def _answered(self, state: _State, host: int, answer: _Answer) -> _State:
        number = self._after(state.locals[host], answer, state.crashed)
        if self._locals[number].request[0] == "end":
            number = _GONE
        return state._replace(locals=(*state.locals[:host], number, *state.locals[host + 1 :]))

    def _start(self, host: int) -> int:
        run = _Run(self, self._programs[host])
        number = len(self._locals)
        self._locals.append(_Local(host, -1, ("start",), frozenset(), run.begin(), 0))
        self._live[number] = run
        return number

    def _after(self, number: int, answer: _Answer, crashed: frozenset[int]) -> int:
        known = self._next.get((number, answer, crashed if (number, answer) in self._depends else None))
        if known is not None:
            return known
        local = self._locals[number]
        run = self._live.pop(number, None) or self._replayed(number)
        run.environment.crashed = crashed
        run.environment.asked = False
        request = run.answer(answer)
        if run.environment.asked:
            self._depends.add((number, answer))
        where = (local.host, request, run.standing())
        after = self._known.setdefault(where, len(self._locals))
        self._next[number, answer, crashed if run.environment.asked else None] = after
        if after < len(self._locals):
            return after
        self._locals.append(_Local(local.host, number, answer, crashed, request, local.depth + 1))
        if request[0] != "end":
            self._live[after] = run
            if len(self._live) > 20_000:
                self._live.pop(next(iter(self._live)))
        return after

    def _replayed(self, number: int) -> _Run:
        answers = []
        local = self._locals[number]
        while local.parent >= 0:
            answers.append((local.answer, local.crashed))
            local = self._locals[local.parent]
        run = _Run(self, self._programs[local.host])
        run.begin()
        for answer, crashed in reversed(answers):
            run.environment.crashed = crashed
            run.answer(answer)
        return run

    def _intern(self, content: bytes) -> int:
        number = self._content_ids.get(content)
        if number is None:
            number = self._content_ids[content] = len(self._contents)
            self._contents.append(content)
        return number

    def _bytes(self, offset: int, length: int, slots: tuple[int, ...], contents: tuple[int, ...]) -> memoryview:
        for slot, content in zip(slots, contents, strict=True):
            start = self._watched[slot] * self._sector
            self._image[start : start + self._sector] = self._contents[content]
        return memoryview(self._image).toreadonly()[offset : offset + length]


class _Run:
    """One execution of a program, at some local state."""

    def __init__(self, explorer: Explorer, program: Program) -> None:
        self.environment = Environment()
        self._explorer = explorer
        self._generator: Any = program(self.environment)
        self._step: Any = None
        self._pendings: list[Pending] = []
        self._clock = NOON

    def begin(self) -> _Request:
        return self._on(None, None)

    def answer(self, answer: _Answer) -> _Request:
        """Give the answer to the step last asked for; returns the next request that others can notice."""
        step, kind = self._step, answer[0]
        if kind == "data":
            _, _, slots, offset, length = self._request(step)
            return self._on(self._explorer._bytes(offset, length, slots, answer[1:]), None)
        if kind == "timeout":
            pending = Pending(step)
            self._pendings.append(pending)
            return self._on(None, IOTimeout(**_facts(step), timeout=step.timeout, pending=pending))
        if kind == "failed":
            return self._on(None, DiskError(**_facts(step.pending.step)))
        return self._on(None, None)

    def standing(self) -> Any:
        """Where the program stands: equal for runs that will do the same from here on."""
        frames = []
        generator = self._generator
        while getattr(generator, "gi_frame", None) is not None:
            frame = generator.gi_frame
            frames.append((frame.f_code, frame.f_lasti, self._plain(frame.f_locals)))
            generator = generator.gi_yieldfrom
        return (self._clock, *frames)

    def _plain(self, value: Any) -> Any:
        """A value as something hashable that is equal for equal values."""
        if value is None or isinstance(value, int | float | str | bytes | frozenset | Enum):
            return value
        if isinstance(value, tuple | list):
            return tuple(self._plain(item) for item in value)
        if isinstance(value, dict):
            return tuple((self._plain(key), self._plain(item)) for key, item in value.items())
        if isinstance(value, Pending):
            return ("pending", self._pendings.index(value) if value in self._pendings else -1)
        if isinstance(value, BaseException):
            return (type(value), self._plain(value.args), self._plain(getattr(value, "facts", {})))
        if is_dataclass(value):
            return (type(value), *(self._plain(getattr(value, field.name)) for field in fields(value)))
        # views are invalid by now; functions and the like do not change
        return type(value)

    def _on(self, value: Any, error: BaseException | None) -> _Request:
        while True:
            try:
                step = self._generator.send(value) if error is None else self._generator.throw(error)
            except StopIteration as stop:
                return ("end", stop.value)
            except LeaseholdError as failed:
                return ("end", type(failed).__name__)
            error = None
            if isinstance(step, Now):
                value = self._clock
            elif isinstance(step, Sleep):
                self._clock += NAP
                value = None
            else:
                self._step = step
                return self._request(step)

    def _request(self, step: Any) -> _Request:
        sector = self._explorer._sector
        if isinstance(step, Read):
            first, last = step.offset // sector, (step.offset + step.length) // sector
            slots = tuple(slot for s, slot in self._explorer._slot.items() if first <= s < last)
            return ("read", first if last == first + 1 else f"{last - first} sectors", slots, step.offset, step.length)
        if isinstance(step, Write):
            assert len(step.data) == sector
            return ("write", step.offset // sector, self._explorer._intern(step.data), len(self._pendings))
        if isinstance(step, Reap):
            return ("reap", self._pendings.index(step.pending))
        if isinstance(step, Granted):
            return ("granted", step.token, step.exclusive)
        return ("letgo",)


def _facts(step: Read | Write) -> dict[str, Any]:
    length = len(step.data) if isinstance(step, Write) else step.length
    operation = "write" if isinstance(step, Write) else "read"
    return {"operation": operation, "disk": step.disk, "offset": step.offset, "length": length}


def _told(way: Any) -> list[str]:
    told = []
    while way is not None:
        way, name = way
        told.append(name)
    return told[::-1]
