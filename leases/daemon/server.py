"""Connections: accepted, read without ever waiting, each request handed to its handler, each answer sent.

    header complete --> checked --> payload complete --> handler --> answer queued --> sent --> next header

Every connection has its own buffers, so half a header keeps nobody else waiting. While a request is carried out its
connection is not read from, and neither while the answer is not sent yet: who does not read is not heard.

Bad messages. The reference ignores them without a word, and reads the payload as further headers. Here a message
with the wrong magic ends the connection, and one whose command or version is unknown is answered EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import TYPE_CHECKING

from leases.daemon.call import NOTHING, Call, Refused, Reply, Task
from leases.daemon.clients import Client, ClientTable
from leases.daemon.commands import COMMANDS, Entry, Target, name_of
from leases.daemon.loop import HANGUP, READ, WRITE, Loop
from leases.daemon.numbers import MAGIC, OWN_CONNECTION, Command
from leases.daemon.policy import Right
from leases.daemon.tasks import Running, Tasks
from leases.daemon.wire import Header
from paxos.errors import LeaseholdError

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon

_HEADER = Header.layout.size
_CHUNK = 1 << 16
#: bytes; a refused message that says it is longer ends the connection
_MAX_MESSAGE = 1 << 20
#: bytes of answers in parts that may wait for a client before the handler waits too
_MAX_WAITING = 1 << 18
#: connections accepted in one round
_ACCEPTS = 64


class Server:
    """`daemon` is what the handlers work on; it has the tables."""

    def __init__(self, daemon: Daemon, loop: Loop, tasks: Tasks, clients: ClientTable) -> None:
        self._daemon = daemon
        self._loop = loop
        self.tasks = tasks
        self._clients = clients
        self._listener: socket.socket | None = None
        self._held_back = False
        #: whose handlers wait until they have read more of their answers
        self._blocked: dict[Client, Running] = {}

    # ---------------------------------------------------------------------------------------------- connections

    def listen(self, listener: socket.socket) -> None:
        self._listener = listener
        self._loop.watch(listener.fileno(), READ, self._accept)

    def hold_back(self) -> None:
        """Accept connections, but serve nobody until `go_on`."""
        self._held_back = True

    def go_on(self) -> None:
        self._held_back = False
        for client in self._clients:
            self._parse(client)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        for _ in range(_ACCEPTS):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError as error:
                if not self._make_room():
                    self._daemon.journal.error("no more connections", reason=error.strerror, clients=len(self._clients))
                    self._rest()
                    return
                continue
            connection.setblocking(False)
            client = self._clients.add(connection)
            client.events = READ
            self._loop.watch(connection.fileno(), READ, partial(self._ready, client))

    def _make_room(self) -> bool:
        """Out of descriptors: whoever has been connected for longest without a word makes room."""
        idle = self._clients.oldest_idle()
        if idle is None:
            return False
        self._daemon.journal.warning("a silent connection makes room for a new one", pid=idle.credentials.pid)
        self.bury(idle)
        return True

    def _rest(self) -> None:
        """Look at the listener again in a while."""
        assert self._listener is not None
        listener = self._listener
        self._loop.forget(listener.fileno())
        self._loop.after(0.2, lambda: self._loop.watch(listener.fileno(), READ, self._accept))

    def _ready(self, client: Client, events: int) -> None:
        if events & WRITE:
            self._flush(client)
        if not client.closed and events & READ:
            self._receive(client)
        elif not client.closed and events & HANGUP:
            self._gone(client)

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._gone(client)
            return
        client.inbox += data
        self._parse(client)

    def _gone(self, client: Client) -> None:
        """Nothing more will come. What it asked for is brought to its end before it is buried."""
        client.gone = True
        if client.header is not None and client.call is None:
            self._answer(client, Call(self._daemon, client, client.header), Reply(-errno.ENOTCONN))
        if client.active is not None:
            client.active.abort.set("its process is gone")
        blocked = self._blocked.pop(client, None)
        if blocked is not None and client.call is not None:
            blocked.end()
            self._finish(client.call, NOTHING)
            return
        if client.call is None and client.active is None:
            self.bury(client)
        else:
            self._loop.forget(client.socket.fileno())

    def died(self, client: Client) -> None:
        """Its process has ended, whoever else still has the connection."""
        client.pid_dead = True
        self._loop.forget(client.pidfd)
        if not client.gone:
            self._gone(client)

    def bury(self, client: Client) -> None:
        """Close the connection and let go of everything it held."""
        if client.closed:
            return
        self._loop.forget(client.socket.fileno())
        if client.pidfd >= 0:
            self._loop.forget(client.pidfd)
        self._blocked.pop(client, None)
        self._clients.remove(client)
        self._daemon.client_gone(client)
        client.close()

    # ---------------------------------------------------------------------------------------------- requests

    def _parse(self, client: Client) -> None:
        """Begin the next request, if all of it is here."""
        while self._may_begin(client):
            if client.discard:
                cut = min(client.discard, len(client.inbox))
                del client.inbox[:cut]
                client.discard -= cut
            if client.discard or (client.header is None and not self._take_header(client)):
                break
            header = client.header
            assert header is not None
            try:
                entry = self._checked(client, header)
                needed = entry.shape(header, client.inbox)
                while needed <= len(client.inbox) and (more := entry.shape(header, client.inbox)) != needed:
                    needed = more
            except Refused as refusal:
                self._refuse(client, header, refusal.code)
                continue
            if len(client.inbox) < needed:
                break
            payload = bytes(client.inbox[:needed])
            del client.inbox[:needed]
            client.header = None
            self._begin(client, entry, header, payload)
        self._watch(client)

    def _may_begin(self, client: Client) -> bool:
        busy = client.call is not None or client.closing or bool(client.outbox)
        return not (busy or client.closed or self._held_back)

    def _take_header(self, client: Client) -> bool:
        while len(client.inbox) >= _HEADER:
            header = Header.unpack(bytes(client.inbox[:_HEADER]))
            if client.deaf:  # restricted: what it says is not heard, and that is not its fault
                client.inbox.clear()
                return False
            if header.magic != MAGIC:
                self._daemon.journal.warning("a connection sent no message", pid=client.credentials.pid)
                self._close(client)
                return False
            del client.inbox[:_HEADER]
            client.header = header
            return True
        if client.deaf:
            client.inbox.clear()
        return False

    def _checked(self, client: Client, header: Header) -> Entry:
        """The command's entry, if this client may give it now. Raises Refused."""
        entry = COMMANDS.get(header.command)
        if entry is None or (header.major > 0 and header.command != Command.VERSION):
            raise Refused(-errno.EOPNOTSUPP)
        if not self._daemon.policy.allows(client.credentials, entry.right):
            self._daemon.journal.warning("not allowed", command=name(header), **_who(client))
            raise Refused(-errno.EACCES)
        if entry.target is not Target.NONE:
            self._target(client, entry, header)
        return entry

    def _target(self, client: Client, entry: Entry, header: Header) -> Client:
        """The client that a command is about. Raises Refused (daemon.md section 3)."""
        target: Client | None = client
        if entry.target is Target.OWN_OR_PID and header.data2 != OWN_CONNECTION:
            target = self._clients.by_pid(header.data2)
            if target is None:
                raise Refused(-errno.ESRCH)
            if target.credentials.pid != client.credentials.pid and not self._daemon.policy.allows(
                client.credentials, Right.OTHERS
            ):
                raise Refused(-errno.EACCES)
        assert target is not None
        if not target.registered or target.gone or target.active is not None:
            raise Refused(-errno.EBUSY)
        if header.command == Command.ACQUIRE and target.kill_count:
            raise Refused(-errno.EBUSY)
        return target

    def _refuse(self, client: Client, header: Header, code: int) -> None:
        """Answer, and skip what the message says is still to come of it."""
        client.header = None
        client.discard = header.payload
        self._answer(client, Call(self._daemon, client, header), Reply(code))
        if header.payload > _MAX_MESSAGE:
            self._close(client)

    def _begin(self, client: Client, entry: Entry, header: Header, payload: bytes) -> None:
        client.last_command = header.command
        if not client.registered:
            client.name = name_of(header.command)
        call = Call(self._daemon, client, header, payload)
        if entry.target is not Target.NONE:
            call.target = self._target(client, entry, header)
            call.target.active = call
        client.call = call
        self._watch(client)
        if entry.ready:
            self._start(call, entry)
        else:
            self.tasks.run_in_worker(entry.handler, partial(self._imported, call, entry))

    def _imported(self, call: Call, entry: Entry, _handler: object, failure: BaseException | None) -> None:
        if failure is not None:
            self._failed(call, failure)
        else:
            self._start(call, entry)

    def _start(self, call: Call, entry: Entry) -> None:
        try:
            outcome = entry.handler()(call)
        except Exception as failure:
            self._failed(call, failure)
            return
        if isinstance(outcome, Reply):
            self._finish(call, outcome)
        else:
            self._drive(call, outcome)

    def _drive(self, call: Call, task: Task[Reply]) -> None:
        client = call.client

        def send(data: bytes) -> bool:
            self._queue(client, data)
            if len(client.outbox) > _MAX_WAITING:
                self._blocked[client] = running
                return False
            return True

        running = Running(self.tasks, task, partial(self._ended, call), send)
        running.go_on()

    def _ended(self, call: Call, reply: Reply | None, failure: BaseException | None) -> None:
        if failure is not None:
            self._failed(call, failure)
        else:
            assert reply is not None
            self._finish(call, reply)

    def spawn(self, task: Task[None], what: str) -> None:
        """Carry out something that nobody asked for on a connection."""

        def done(_result: object, failure: BaseException | None) -> None:
            if failure is not None:
                self._daemon.fault(failure, what)

        self.tasks.start(task, done)

    # ---------------------------------------------------------------------------------------------- answers

    def _failed(self, call: Call, failure: BaseException) -> None:
        if isinstance(failure, Refused):
            code = failure.code
        elif isinstance(failure, LeaseholdError):
            code = failure.code
            holders = failure.facts.get("holders")
            self._daemon.journal.info(
                "refused",
                command=name(call.header),
                code=code,
                reason=str(failure),
                holders=",".join(map(str, holders)) if holders else None,
                **_who(call.client),
            )
        elif isinstance(failure, OSError) and failure.errno:
            code = -failure.errno
        else:
            code = LeaseholdError.code
            self._daemon.fault(failure, name(call.header))
        self._finish(call, Reply(code))

    def _finish(self, call: Call, reply: Reply) -> None:
        client, target = call.client, call.target
        client.call = None
        if target is not None:
            target.active = None
        if not client.closed:
            self._answer(client, call, reply)
            if COMMANDS[call.header.command].closes:
                self._close(client)
        for one in {client, target}:
            if one is not None and one.gone and one.call is None and one.active is None:
                self.bury(one)
        if not client.closed:
            self._parse(client)

    def _answer(self, client: Client, call: Call, reply: Reply) -> None:
        if not reply.silent:
            self._queue(client, call.pack(reply))

    def _queue(self, client: Client, data: bytes) -> None:
        if client.closed:
            return
        client.outbox += data
        self._send(client)
        if client.outbox:
            self._watch(client)

    def _send(self, client: Client) -> None:
        while client.outbox:
            try:
                sent = client.socket.send(client.outbox[:_CHUNK], socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                client.outbox.clear()  # nobody is there to read it; the hang-up will be seen
                return
            del client.outbox[:sent]

    def _flush(self, client: Client) -> None:
        self._send(client)
        if client.outbox:
            return
        if client.closing and client.call is None:
            self.bury(client)
            return
        waiting = self._blocked.pop(client, None)
        if waiting is not None:
            waiting.go_on()
        if not client.closed:
            self._parse(client)

    def _close(self, client: Client) -> None:
        """Close once everything is sent."""
        client.closing = True
        if not client.outbox:
            self.bury(client)
        else:
            self._watch(client)

    def _watch(self, client: Client) -> None:
        """Read only while nothing is under way; write while something is left to send."""
        if client.closed or client.gone:
            return
        busy = client.call is not None or client.closing or bool(client.outbox)
        events = (0 if busy else READ) | (WRITE if client.outbox else 0)
        if events != client.events:
            client.events = events
            self._loop.change(client.socket.fileno(), events)


def name(header: Header) -> str:
    return Command(header.command).name.lower() if header.command in COMMANDS else str(header.command)


def _who(client: Client) -> dict[str, object]:
    return {"pid": client.credentials.pid, "uid": client.credentials.uid}
