"""Which client holds which lease on this host: the one table, owned by the loop's thread.

ADDING --> HELD --> RELEASING --> gone
             |
             +-- its client died, and it is persistent --> ORPHAN --> HELD by another client, or RELEASING
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from leases.daemon.call import Refused
from leases.daemon.clients import Client
from leases.daemon.numbers import AcquireFlag, ResourceFlag
from leases.daemon.spaces import Space
from leases.daemon.wire import Resource
from paxos.errors import AlreadyHeld

if TYPE_CHECKING:
    from leases.lease import Lease


class TokenState(Enum):
    ADDING = "add"
    HELD = "held"
    RELEASING = "rem"
    ORPHAN = "orphan"


@dataclass(slots=True)
class Past:
    """What the status texts tell of a resource beyond one holding: its number here, how often it was taken again."""

    number: int
    reused: int = -1


@dataclass(slots=True, eq=False)
class Token:
    """One holder of one lease; a shared lease has one for each of its holders."""

    space: Space
    resource: Resource
    number: int
    past: Past
    pid: int
    client: Client | None
    state: TokenState = TokenState.ADDING
    shared: bool = False
    lease: Lease | None = None
    #: the value block, for those acquired with one; `lvb_set`: to be written with the release
    lvb: bytes | None = None
    lvb_set: bool = False
    converting: bool = False
    #: never used again, unlike the number that clients see
    key: int = 0

    @property
    def name(self) -> bytes:
        return self.resource.name

    @property
    def persistent(self) -> bool:
        return bool(self.resource.flags & ResourceFlag.PERSISTENT)

    @property
    def lver(self) -> int:
        return self.lease.held.lver if self.lease is not None else 0

    @property
    def held(self) -> Lease:
        assert self.lease is not None
        return self.lease


@dataclass(slots=True)
class TokenTable:
    """`note` is told of a token whenever something about it changes, and `gone` when it is no more."""

    note: Callable[[Token], None]
    gone: Callable[[Token], None]
    _tokens: dict[Token, None] = field(default_factory=dict)
    _by_resource: dict[tuple[bytes, bytes], list[Token]] = field(default_factory=dict)
    _pasts: dict[tuple[bytes, bytes], Past] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _past_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __iter__(self) -> Iterator[Token]:
        """The newest first."""
        return iter(list(reversed(self._tokens)))

    def __len__(self) -> int:
        return len(self._tokens)

    def of(self, lockspace: bytes, name: bytes) -> list[Token]:
        return self._by_resource.get((lockspace, name), [])

    def of_space(self, space: Space) -> list[Token]:
        return [token for token in self._tokens if token.space is space]

    def held_by(self, client: Client, resource: Resource) -> Token | None:
        """The client's own holding of a resource. A handful are searched, or for a big holder the few of the name."""
        for token in self.of(resource.lockspace, resource.name):
            if token.client is client and token.state is TokenState.HELD:
                return token
        return None

    def held(self, resource: Resource) -> Token | None:
        """Anybody's holding of a resource."""
        for token in self.of(resource.lockspace, resource.name):
            if token.state is TokenState.HELD:
                return token
        return None

    def begin(self, space: Space, resource: Resource, client: Client, flags: int) -> Token:
        """A new token, ADDING, or the orphan that is to be taken over. Raises Refused (daemon.md 7.5)."""
        for other in self.of(space.name, resource.name):
            if other.state is TokenState.RELEASING:
                raise Refused(-errno.EAGAIN)
            if other.state is TokenState.ADDING or other.converting:
                raise Refused(-errno.EBUSY)
            if other.state is TokenState.ORPHAN:
                wants_orphan = flags & (AcquireFlag.ORPHAN | AcquireFlag.ORPHAN_ONLY)
                if not wants_orphan or other.shared != resource.shared:
                    raise Refused(-errno.EUCLEAN)
                return other
            if not (other.shared and resource.shared):
                raise AlreadyHeld(resource=resource.name, holders=[other.pid])
        if flags & AcquireFlag.ORPHAN_ONLY:
            raise Refused(-errno.ENOENT)
        return self.add(space, resource, client, client.credentials.pid)

    def add(self, space: Space, resource: Resource, client: Client | None, pid: int) -> Token:
        key = (space.name, resource.name)
        past = self._pasts.get(key)
        if past is None:
            past = self._pasts[key] = Past(next(self._past_numbers))
        number = next(self._numbers)
        token = Token(space, resource, number, past, pid, client, shared=resource.shared, key=number)
        self._tokens[token] = None
        self._by_resource.setdefault(key, []).append(token)
        self.note(token)
        return token

    def granted(self, token: Token, client: Client, resource: Resource) -> None:
        """ADDING or ORPHAN becomes HELD by `client`, which asked for `resource`."""
        if token.state is TokenState.ORPHAN:
            token.space.orphans -= 1
            token.number = next(self._numbers)
        token.past.reused += 1
        token.resource = resource
        token.state, token.client, token.pid = TokenState.HELD, client, client.credentials.pid
        client.tokens.append(token)
        self.note(token)

    def releasing(self, token: Token) -> None:
        self._leave_client(token)
        if token.state is TokenState.ORPHAN:
            token.space.orphans -= 1
        token.state = TokenState.RELEASING
        self.note(token)

    def orphaned(self, token: Token) -> None:
        """Its client is gone, the lease stays; the pid is remembered."""
        self._leave_client(token)
        token.state, token.number = TokenState.ORPHAN, 0
        token.space.orphans += 1
        self.note(token)

    def remove(self, token: Token) -> None:
        if token not in self._tokens:
            return
        self._leave_client(token)
        if token.state is TokenState.ORPHAN:
            token.space.orphans -= 1
        del self._tokens[token]
        self.gone(token)
        key = (token.space.name, token.resource.name)
        others = self._by_resource[key]
        others.remove(token)
        if not others:
            del self._by_resource[key]
            if token.past.reused < 0:  # never had: whoever tries names leaves no trace
                del self._pasts[key]

    def _leave_client(self, token: Token) -> None:
        if token.client is not None and token in token.client.tokens:
            token.client.tokens.remove(token)
        token.client = None
