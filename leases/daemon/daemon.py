"""The daemon: its parts put together, what goes on when a client ends, and its own end."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from grp import getgrnam
from pwd import getpwnam
from typing import TYPE_CHECKING

from leases.daemon import commands
from leases.daemon.call import Task, Wait, work
from leases.daemon.clients import Client, ClientTable
from leases.daemon.helper import Helper
from leases.daemon.journal import Journal
from leases.daemon.leaving import leave
from leases.daemon.ledger import Ledger, Value
from leases.daemon.loop import READ, Loop
from leases.daemon.policy import Policy
from leases.daemon.records_of import of_token
from leases.daemon.rundir import RunDir
from leases.daemon.server import Server
from leases.daemon.settings import Settings
from leases.daemon.spaces import Space, SpaceTable
from leases.daemon.tasks import Tasks
from leases.daemon.tokens import Token, TokenState, TokenTable
from leases.daemon.workers import Workers
from leases.notify import tell_systemd
from paxos.errors import LeaseholdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leases.daemon.keeper_link import KeeperLink, KeptWatchdog

_MAX_HOST_NAME = 47
#: user and group that clients of the reference belong to
_USUAL_NAME = "sanlock"
#: seconds between two beats; the keeper misses us after ten of them
_BEAT = 0.5
#: seconds for which the keeper renews without a daemon
LINGER = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Daemon:
    """`helper` was forked before this process had anything to copy."""

    def __init__(self, settings: Settings, helper: Helper) -> None:
        self.settings = settings
        self.helper = helper
        self.helper_full = 0
        self.uid, self.gid = owner_ids(settings)
        self.host_name = _host_name(settings)
        self.journal = Journal(settings.log_level)
        self.loop = Loop(partial(self.fault, what="an event"))
        self.clients = ClientTable()
        self.spaces = SpaceTable(settings.renewal_history_size)
        self.ledger = Ledger(settings.run_dir)
        self.tokens = TokenTable(
            lambda token: self.ledger.put(*of_token(token)), lambda token: self.ledger.drop(f"lease {token.key}")
        )
        self.policy = Policy.of(self.uid, self.gid, _group_ids(settings.admin_groups))
        self.tasks = Tasks(self.loop, Workers(settings.max_worker_threads))
        self.server = Server(self, self.loop, self.tasks, self.clients)
        self.listener_fd = -1
        self.ending = False
        self._link: KeeperLink | None = None
        self._watchdog: KeptWatchdog | None = None
        self._keeper_lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------- running

    def run(self, run_dir: RunDir) -> None:
        """Listen in a locked run directory, and work until shut down."""
        resource_limit(resource.RLIMIT_NOFILE)
        for number in _SIGNALS:
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        listener = run_dir.listen()
        self.listener_fd = listener.fileno()
        self.server.listen(listener)
        self.loop.watch(self.helper.fileno(), READ, self._helper_gone)
        self.journal.info("listening", run_dir=run_dir.path, host=self.host_name, pid=os.getpid())
        tell_systemd("READY=1")
        if self.settings.adopt and (found := self.ledger.read()):
            self.server.hold_back()
            self.tasks.run_in_worker(_import_the_rest, partial(self._adopt, found))
        else:
            self.ledger.begin()
            self.tasks.run_in_worker(self.keeper, self._started)
            self.tasks.run_in_worker(_import_the_rest, self._started)
        try:
            self.loop.run()
        finally:
            self.journal.info("ended")
            tell_systemd("STOPPING=1")
            self.journal.close()

    def _adopt(self, found: dict[str, Value], _result: object, failure: BaseException | None) -> None:
        """Take up what an earlier daemon held, before anybody is served."""
        from leases.daemon.adoption import adopt

        self._started(None, failure)

        def task() -> Task[None]:
            try:
                yield from adopt(self, found)
            finally:
                self.ledger.begin()  # not before: killed meanwhile, the next one needs what the last one wrote
                self.server.go_on()
                self.tasks.run_in_worker(self.keeper, self._started)

        self.server.spawn(task(), "adopting")

    def _started(self, _result: object, failure: BaseException | None) -> None:
        if isinstance(failure, LeaseholdError):  # said again to whoever needs it
            self.journal.error("not ready for lockspaces", reason=failure)
        elif failure is not None:
            self.fault(failure, "starting")

    def _signalled(self, number: int, _frame: object) -> None:
        self.loop.post(partial(self.asked_to_end, signal.Signals(number).name))

    def asked_to_end(self, by: str) -> None:
        """A signal ends the daemon only while it has no lockspace, as with the reference."""
        if not len(self.spaces):
            self.loop.stop()
            return
        blocking = ", ".join(f"{space.text} ({space.state.value})" for space in self.spaces)
        held = len([token for token in self.tokens if token.state is TokenState.HELD])
        self.journal.warning("not ending: lockspaces are in use", asked_by=by, lockspaces=blocking, leases=held)

    def fault(self, error: BaseException, what: str) -> None:
        """Something went wrong that should not have: said with all there is to know, and the daemon goes on."""
        trace = "".join(traceback.format_exception(error))
        self.journal.error("fault", during=what, reason=repr(error), trace=trace[-2000:])

    def end_by_force(self) -> Task[None]:
        """Leave every lockspace, killing whoever uses them; returns when none is left. Then `stop` it."""
        self.ending = True
        while len(self.spaces):
            for space in self.spaces:
                self.server.spawn(leave(self, space), f"leaving {space.text}")
            yield Wait(0.1)

    def stop(self) -> None:
        """End, once what was answered just now is sent."""
        self.ending = True
        self.loop.after(0.05, self.loop.stop)

    # ------------------------------------------------------------------------------------- clients and their end

    def watch_process(self, client: Client) -> None:
        """See its process end, whoever else has the connection."""
        self.loop.watch(client.pidfd, READ, lambda _events: self.server.died(client))

    def client_gone(self, client: Client) -> None:
        """A connection has ended: release what it held, or keep it as an orphan."""
        if client.registered:
            self.ledger.drop(f"client {client.slot}")
        if client.tokens:
            self.journal.info("client gone", pid=client.credentials.pid, leases=len(client.tokens))
        for token in list(client.tokens):
            if token.persistent and token.space.usable:
                self.tokens.orphaned(token)
            else:
                self.tokens.releasing(token)
                self.server.spawn(
                    self.give_back_quietly(token), f"releasing {token.space.text}:{token.resource.name!r}"
                )

    def give_back(self, token: Token, new_name: bytes | None = None) -> Task[None]:
        """Release a token that is RELEASING, on disk too unless its lockspace is ending.

        Raises what the disk says; the token is gone in any case.
        """
        try:
            if token.space.usable and token.lease is not None:
                lease, lvb = token.lease, token.lvb if token.lvb_set else None
                yield from work(lambda: lease.release(lvb, new_name))
        except LeaseholdError as error:
            self.journal.warning(
                "released, but the disk did not take it", lease=token.resource.name, lockspace=token.space.text,
                code=error.code, reason=str(error),
            )  # fmt: skip
            raise
        finally:
            self.tokens.remove(token)

    def give_back_quietly(self, token: Token) -> Task[None]:
        """What the disk says against it is in the log, and settled in the background."""
        with suppress(LeaseholdError):
            yield from self.give_back(token)

    def space_left(self, space: Space) -> None:
        """A lockspace is no more: so are the leases in it, without a word to the disk."""
        for token in self.tokens.of_space(space):
            self.tokens.remove(token)
        self.spaces.remove(space)
        self.ledger.drop(f"space {space.name.decode('latin-1')}")

    # ------------------------------------------------------------------------------------- stopping processes

    def run_kill_path(self, client: Client, argv: Sequence[str]) -> None:
        try:
            self.helper.run(argv, client.credentials)
        except OSError as error:
            self.helper_full += 1
            self.journal.error("kill path not started", pid=client.pid, program=argv[0], reason=str(error))

    def _helper_gone(self, _events: int) -> None:
        """It was killed. Nobody could be stopped by kill paths without one."""
        self.loop.forget(self.helper.fileno())
        self.helper.close()
        self._reap(self.helper.pid)
        self.helper = Helper.spawn()
        self.loop.watch(self.helper.fileno(), READ, self._helper_gone)
        self.journal.error("the process for kill paths was gone: started another", pid=self.helper.pid)

    def _reap(self, pid: int) -> None:
        """Of a child that has ended, or is about to."""
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            self.loop.after(0.2, partial(self._reap, pid))

    # ---------------------------------------------------------------------------------- the keeper process

    @property
    def kill_grace(self) -> int:
        """Seconds from the start of recovery until SIGKILL."""
        if self.settings.kill_grace is not None:
            return self.settings.kill_grace
        fire = self.settings.watchdog_fire_timeout
        return 40 if fire >= 60 else 15 if fire >= 30 else 0

    def attach_to_keeper(self) -> KeeperLink:
        """The process that an earlier daemon left, which renews for it. By a worker. Raises OSError, KeeperGone."""
        from leases.daemon.keeper_link import KeeperLink

        with self._keeper_lock:
            self._link = KeeperLink.attach(self.settings.run_dir, self._keeper_ended)
            self.loop.post(partial(self._beat, self._link))
            return self._link

    def keeper(self) -> tuple[KeeperLink, KeptWatchdog]:
        """The process that renews, and its watchdog. Called by workers. Raises WatchdogUnavailable, KeeperGone."""
        from leases.daemon.keeper_link import KeeperLink, KeptWatchdog

        settings = self.settings
        with self._keeper_lock:
            if self._link is None:
                linger = LINGER if settings.adopt else 0.0
                urgency = (settings.high_priority, settings.mlock_level > 0)
                self._link = KeeperLink.start(settings.run_dir, linger, *urgency, self._keeper_ended)
                self.journal.info("keeper process started", pid=self._link.pid)
                for refusal in self._link.refused:
                    self.journal.warning("keeper process", refused=refusal)
                self.loop.post(partial(self._beat, self._link))
            if self._watchdog is None:
                self._watchdog = KeptWatchdog(self._link, settings.watchdog, settings.watchdog_fire_timeout)
                self.journal.info("watchdog", kind=self._watchdog.force, is_=self._watchdog.describe())
            return self._link, self._watchdog

    def _beat(self, link: KeeperLink) -> None:
        """Tell the keeper that this loop still runs, and what has changed."""
        if link is not self._link:
            return  # it has ended
        memberships = [space.membership for space in self.spaces if space.membership is not None]
        news = [(membership, told) for membership in memberships if (told := membership.news()) is not None]
        if not link.beat([told for _, told in news]):
            for membership, _ in news:
                membership.untold()
        self.loop.after(_BEAT, partial(self._beat, link))

    def _keeper_ended(self) -> None:
        """Its lockspaces have been told. The next one gets a new process."""
        self.journal.error("the keeper process has ended")
        if self._link is not None:
            self.loop.post(partial(self._reap, self._link.pid))
        self._link = self._watchdog = None


def owner_ids(settings: Settings) -> tuple[int, int]:
    """Whose the socket is: those of the settings, for root the user and group `sanlock` where there are such.

    Names that nobody has fall back to root, as with the reference.
    """
    uid, gid = os.geteuid(), os.getegid()
    if settings.uname or uid == 0:
        uid = _id_of(lambda: getpwnam(settings.uname or _USUAL_NAME).pw_uid)
    if settings.gname or gid == 0:
        gid = _id_of(lambda: getgrnam(settings.gname or _USUAL_NAME).gr_gid)
    return uid, gid


def _id_of(look_up: Callable[[], int]) -> int:
    try:
        return look_up()
    except KeyError:
        return 0


def _group_ids(names: Sequence[str]) -> list[int]:
    return [getgrnam(name).gr_gid for name in names]


def _host_name(settings: Settings) -> bytes:
    """How this host signs its host leases; unique, unless it was given."""
    if settings.our_host_name:
        return settings.our_host_name.encode("utf-8", "surrogateescape")[:_MAX_HOST_NAME]
    raw = secrets.token_hex(16)
    parts = (raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:])
    return f"{'-'.join(parts)}.{os.uname().nodename}".encode()[:_MAX_HOST_NAME]


def resource_limit(which: int) -> None:
    """As much as this process may have."""
    _, hard = resource.getrlimit(which)
    with suppress(ValueError, OSError):
        resource.setrlimit(which, (hard, hard))


def _import_the_rest() -> float:
    """Everything that needs numpy, so that the first client that asks for it need not wait; the seconds it took."""
    from importlib import import_module

    begun = time.monotonic()
    for module in (*commands.LIGHT, *commands.HEAVY):
        import_module(f"leases.daemon.{module}")
    return time.monotonic() - begun
