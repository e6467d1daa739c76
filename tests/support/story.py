"""Lease stories: a script of commands, told with what came of each; `tell` gives it back with the outcomes written in.

A script is text, a command a line; lines that begin with # are the teller's, indented ones the outcome. After each
command stand the events, with the true time in seconds, and the lines of the disk that are new or changed. Hosts are
called by `h` and their id, or by name. Commands:

    volume 2 leases 8 hosts 4096 sectors 1 io_timeout index     before all others; leases are called r0, r1, ...
    host 1 as alice [called twin] [io 2]      a machine, switched on; the second one of an id is called by its name
    reference h1                   from now on it follows the reference's rules
    join h1, leave h1, renew h1    renew: until its next renewal has ended
    acquire h1 r0 [shared] [nowait] [lver 3] [num_hosts 9] [for 20]     for: seconds after which it is stopped
    release h1 r0 [value text|x*600], convert h1 r0 shared|exclusive, verify h1 r0, value h1 r0, owners r0
    request h2 r0 [force|graceful|clear] [lver 3]
    settle h1 r0                   begins to settle what is in doubt; that ends when the disk has given it back
    create h1 vm1 [num_hosts 4], delete h1 vm1, rebuild h1, lookup vm1, entry h1 2 vm1|none
    begin ...                      a command of the above, to be driven by hand:
    step h1 3, finish h1 [for 20]  its next 3 I/Os, or to its end
    start ...                      a command of the above, which goes on while time passes
    hold back h1 [2nd] [r0] leader write     the next such I/O times out, and lands when it is told to
    fail h1 [2nd] [r0] block write           it fails
    stale h1 [2nd] [r0] area read            it is served by the copy of the disk made by `copy disk`
    land [2], lose [2]             the first (or 2nd) I/O held back happens now, or never
    cut h1, mend h1                all its I/O fails
    tick 20                        seconds pass
    pause h1 [80], resume h1       it stands still, with its clock and its watchdog (a suspended virtual machine)
    stall h1 80                    its programs stand still, but clock and watchdog go on
    kill h1, restart h1 [as bob]   power off and on; it does not join by itself
    stubborn h1                    its clients do not end at SIGTERM
    corrupt r0 leader|block 3|request, corrupt id 2, repair ...   other hands on the disk
    wipe r0 block 3, move r0 block 1 to block 3, lay out lockspace
    show disk, show hosts, show in flight

`with io` at the end of a line adds the I/O of that host.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from paxos import index as index_module
from paxos import resource
from paxos.errors import LeaseholdError
from paxos.index import Index
from paxos.lease_area import LeaseArea, survey
from paxos.owners import owners
from paxos.request import Force
from paxos.resource import Want
from paxos.steps import Steps
from tests.support.cast import Host, Work, number
from tests.support.memory import Endless
from tests.support.plot import Story, Volume
from tests.support.stage import Machine, Rule, What
from tests.support.words import ScriptError, Words

#: seconds after which an operation that the story waits for is taken for endless
PATIENCE = 500.0


class Teller:
    """Reads the commands of a script, and lets them happen."""

    def __init__(self) -> None:
        self._story: Story | None = None

    @property
    def story(self) -> Story:
        if self._story is None:
            self._story = Story(Volume())
        return self._story

    def obey(self, line: str) -> list[str]:
        """Carry out one command; returns the lines of its outcome. Raises ScriptError."""
        with_io = line.endswith(" with io")
        words = Words(line.removesuffix(" with io"))
        verb = words.next()
        command = getattr(self, f"do_{verb}", None)
        if command is None:
            if verb not in self._operations:
                raise ScriptError(f"no such command: {verb}")
            command = partial(self._now, verb)
        if verb == "volume":
            command(words)
            return []
        story = self.story
        story.lines.clear()
        story.stage.seen.clear()
        command(words)
        words.end()
        story.stage.pass_until(story.stage.time)
        outcome = list(story.lines)
        if with_io:
            machine = self._host_in(line).machine
            outcome += [f"             {text}" for by, text in story.stage.seen if by is machine]
        return outcome + [f"             {text}" for text in story.changes()]

    def _host_in(self, line: str) -> Host:
        return next(self.host(word) for word in line.split() if word in self.story.hosts)

    # --- finding things ---

    def host(self, word: str) -> Host:
        for label, host in self.story.hosts.items():
            if word in (label, host.name):
                return host
        raise ScriptError(f"no host {word}")

    def lease(self, word: str) -> LeaseArea:
        try:
            return self.story.leases[word]
        except KeyError:
            raise ScriptError(f"no lease {word}") from None

    # --- the volume and its hosts ---

    def do_volume(self, words: Words) -> None:
        if self._story is not None:
            raise ScriptError("the volume comes first")
        facts: dict[str, Any] = {}
        while words:
            word = words.next()
            if word == "index":
                facts["index"] = True
            elif word.isdigit():
                name = words.next()
                facts[name + "s" if name == "lease" else name] = int(word)
            else:
                facts[word] = int(words.next())
        try:
            self._story = Story(Volume(**facts))
        except TypeError as odd:
            raise ScriptError(str(odd)) from odd

    def do_host(self, words: Words) -> None:
        host_id = words.number()
        words.expect("as")
        name = words.next()
        io_timeout = words.number() if words.take("io") else self.story.volume.io_timeout
        label = (
            words.next() if words.take("called") else f"h{host_id}" if f"h{host_id}" not in self.story.hosts else name
        )
        self.story.hosts[label] = Host(self.story, host_id, name, label, io_timeout)

    def do_reference(self, words: Words) -> None:
        while words:
            self.host(words.next()).reference = True

    def do_stubborn(self, words: Words) -> None:
        self.host(words.next()).obedient = False

    # --- operations ---

    @property
    def _operations(self) -> dict[str, Callable[[Host, Words], Work]]:
        return {
            "join": lambda host, _: host.join(),
            "leave": lambda host, _: host.leave(),
            "acquire": self._acquire,
            "release": self._release,
            "convert": self._convert,
            "verify": lambda host, rest: host.verify(self.lease(rest.next())),
            "settle": lambda host, rest: host.settle(self.lease(rest.next())),
            "request": self._request,
            "value": self._value,
            "create": self._create,
            "delete": self._delete,
            "rebuild": self._rebuild,
            "entry": self._entry,
        }

    def _work(self, verb: str, words: Words) -> tuple[Host, Work]:
        if verb not in self._operations:
            raise ScriptError(f"no such operation: {verb}")
        host = self.host(words.next())
        if not host.machine.on:
            raise ScriptError(f"{host.label} is off")
        return host, self._operations[verb](host, words)

    def _now(self, verb: str, words: Words) -> None:
        host, work = self._work(verb, words)
        within = float(words.number()) if words.take("for") else PATIENCE
        self._finish(host, host.start(work), within)

    def _finish(self, host: Host, task: Any, within: float) -> None:
        try:
            self.story.stage.finish(task, within)
        except Endless:
            host.busy.clear()
            host.begun = None
            host.say(f"is still at it after {within:.0f} s, and is stopped")

    def do_join(self, words: Words) -> None:
        while words:
            self._now("join", Words(words.next()))

    def do_settle(self, words: Words) -> None:
        host, work = self._work("settle", words)
        host.start(work)

    def do_begin(self, words: Words) -> None:
        host, work = self._work(words.next(), words)
        host.begin(work, by_hand=True)

    def do_start(self, words: Words) -> None:
        host, work = self._work(words.next(), words)
        host.begin(work, by_hand=False)

    def do_step(self, words: Words) -> None:
        host = self.host(words.next())
        self.story.stage.by_hand(self._begun(host), words.number() if words else 1)
        for machine, text in self.story.stage.seen:
            if machine is host.machine:
                self.story.remark(text)

    def do_finish(self, words: Words) -> None:
        host = self.host(words.next())
        within = float(words.number()) if words.take("for") else PATIENCE
        self._finish(host, self._begun(host), within)

    def _begun(self, host: Host) -> Any:
        if host.begun is None:
            raise ScriptError(f"{host.label} has begun nothing, or it has ended")
        return host.begun

    def _acquire(self, host: Host, words: Words) -> Work:
        lease = self.lease(words.next())
        wants: dict[str, Any] = {}
        while words and words.peek() != "for":
            word = words.next()
            if word in ("shared", "nowait"):
                wants[word] = True
            elif word in ("lver", "num_hosts", "sh_retries"):
                wants[word] = words.number()
            else:
                raise ScriptError(f"acquire what? {word}")
        return host.acquire(lease, Want(**wants))

    def _release(self, host: Host, words: Words) -> Work:
        lease = self.lease(words.next())
        value = words.next() if words.take("value") else None
        if value is not None and (times := re.fullmatch(r"(.)\*(\d+)", value)):
            value = times[1] * int(times[2])
        return host.release(lease, value)

    def _convert(self, host: Host, words: Words) -> Work:
        lease = self.lease(words.next())
        return host.convert(lease, shared=words.one_of("shared", "exclusive") == "shared")

    def _request(self, host: Host, words: Words) -> Work:
        lease = self.lease(words.next())
        kinds = {"force": Force.FORCE, "graceful": Force.GRACEFUL, "clear": Force.NONE}
        kind = words.one_of(*kinds) if words and words.peek() in kinds else ""
        lver = words.number() if words.take("lver") else None
        return host.ask(lease, 0 if kind == "clear" else lver, kinds.get(kind, Force.NONE))

    def _value(self, host: Host, words: Words) -> Work:
        lease = self.lease(words.next())
        steps = resource.read_lvb(lease, host.timing.io_timeout)
        return Work(steps, lambda value: host.say(f"reads {value.rstrip(b'%c' % 0).decode()!r}"), host.refused)

    # --- the index ---

    @property
    def _index(self) -> Index:
        if self.story.index is None:
            raise ScriptError("this volume has no index")
        return self.story.index

    def _create(self, host: Host, words: Words) -> Work:
        index, name = self._index, words.next()
        hosts = words.number() if words.take("num_hosts") else self.story.volume.hosts

        def done(lease: LeaseArea) -> None:
            self.story.leases[name] = lease
            host.say(f"created {name} in place {index.number(lease.place.offset)}")

        return host.change(index.guard, lambda m: index_module.create(m, index, name.encode(), hosts), done)

    def _delete(self, host: Host, words: Words) -> Work:
        index, name = self._index, words.next()
        steps = index_module.delete
        return host.change(index.guard, lambda m: steps(m, index, name.encode()), lambda _: host.say(f"deleted {name}"))

    def _rebuild(self, host: Host, words: Words) -> Work:
        index = self._index

        def done(entries: index_module.Entries) -> None:
            names = ", ".join(f"{name.decode()} in place {place}" for place, name in entries.names.items())
            host.say(f"rebuilt the index: {names or 'nothing'}")

        return host.change(index.guard, lambda m: index_module.rebuild(m, index), done)

    def _entry(self, host: Host, words: Words) -> Work:
        index, place, name = self._index, words.number(), words.next()
        named = b"" if name == "none" else name.encode()

        def steps(member: Any) -> Steps[None]:
            return index_module.set_entry(member, index, index.offset(place), named)

        return host.change(index.guard, steps, lambda _: host.say(f"set the entry of place {place}"))

    def do_lookup(self, words: Words) -> None:
        index, name = self._index, words.next()
        try:
            _, offset = self.story.stage.run(index_module.lookup(index, 1.0, name.encode()))
        except LeaseholdError as error:
            self.story.say(number(error))
        else:
            self.story.say(f"{name} is in place {index.number(offset)}")

    # --- faults ---

    def _rule(self, words: Words, fate: str | bytes) -> None:
        host = self.host(words.next())
        nth = int(words.next()[:-2]) if re.fullmatch(r"\d+(st|nd|rd|th)", words.peek()) else 1
        rest = words.rest()
        verb = rest.pop()
        if verb not in ("read", "write"):
            raise ScriptError("a rule ends with read or write")
        area = rest.pop(0) if rest and (rest[0] in self.story.leases or rest[0] == "index") else None
        if rest and rest[0] == "place":
            area = " ".join((rest.pop(0), rest.pop(0)))
        self.story.stage.rules.append(Rule(host.machine, verb, area, " ".join(rest) or None, nth, fate))

    def do_hold(self, words: Words) -> None:
        words.expect("back")
        self._rule(words, "hold")

    def do_fail(self, words: Words) -> None:
        self._rule(words, "fail")

    def do_copy(self, words: Words) -> None:
        words.expect("disk")
        self.story.old_disk = bytes(self.story.disk)

    def do_stale(self, words: Words) -> None:
        if self.story.old_disk is None:
            raise ScriptError("there is no copy of the disk")
        self._rule(words, self.story.old_disk)

    def _late(self, words: Words) -> Any:
        flying = [late for late in self.story.stage.late if not late.landed]
        which = words.number() if words else 1
        if which > len(flying):
            raise ScriptError(f"only {len(flying)} I/Os are held back")
        return flying[which - 1]

    def do_land(self, words: Words) -> None:
        late = self._late(words)
        late.land()
        self.story.say(f"landed: {_noun(self.story.what(late.step))}")

    def do_lose(self, words: Words) -> None:
        late = self._late(words)
        late.lose()
        self.story.say(f"lost: {_noun(self.story.what(late.step))}")

    def do_cut(self, words: Words) -> None:
        self.story.stage.cut.add(self.host(words.next()).machine)

    def do_mend(self, words: Words) -> None:
        self.story.stage.cut.discard(self.host(words.next()).machine)

    # --- time, life and death ---

    def do_tick(self, words: Words) -> None:
        self.story.stage.pass_until(self.story.stage.time + float(words.next()))

    def do_renew(self, words: Words) -> None:
        host = self.host(words.next())
        before, stage = host.renewals, self.story.stage
        deadline = stage.time + PATIENCE
        while host.renewals == before and host.member is not None and stage.time < deadline:
            stage.pass_until(stage.time + 0.25)
        assert host.lease is not None
        if host.vitals is not None and host.vitals.trouble is None:
            host.say(f"renewed at {host.lease.record.timestamp}")

    def do_pause(self, words: Words) -> None:
        host = self.host(words.next())
        host.machine.suspended = True
        if words:
            self.do_tick(words)
            self._resume(host)

    def do_resume(self, words: Words) -> None:
        self._resume(self.host(words.next()))

    def _resume(self, host: Host) -> None:
        host.machine.suspended = False
        host.say("goes on")
        for use in host.uses:
            for other in self.story.hosts.values():
                if other is not host and any(theirs.lease == use.lease for theirs in other.uses):
                    self.story.remark(
                        f"!! {host.label} still uses {use.lease.name.decode()}, which {other.label} holds"
                    )

    def do_stall(self, words: Words) -> None:
        machine: Machine = self.host(words.next()).machine
        machine.stalled = True
        self.do_tick(words)
        machine.stalled = False

    def do_kill(self, words: Words) -> None:
        self.host(words.next()).kill()

    def do_restart(self, words: Words) -> None:
        host = self.host(words.next())
        host.kill()
        host.machine.switch_on()
        if words.take("as"):
            host.name = words.next()

    # --- other hands on the disk ---

    def do_corrupt(self, words: Words) -> None:
        at = self._sector(words)
        self.story.disk[at + 33] ^= 0x40  # within what every record's checksum covers
        if not words and at % self.story.volume.geometry.align_size == self.story.volume.geometry.request_offset:
            self.story.disk[at] ^= 0x40

    def do_repair(self, words: Words) -> None:
        """Undo `corrupt`."""
        self.do_corrupt(words)

    def do_wipe(self, words: Words) -> None:
        at, size = self._sector(words), self.story.volume.sectors
        self.story.disk[at : at + size] = bytes(size)

    def do_move(self, words: Words) -> None:
        """A write that went astray: one host's block over another's."""
        source = self._sector(words)
        lease = source - source % self.story.volume.geometry.align_size
        words.expect("to")
        words.expect("block")
        size = self.story.volume.sectors
        target = lease + self.story.volume.geometry.block_offset(words.number())
        self.story.disk[target : target + size] = self.story.disk[source : source + size]

    def do_lay(self, words: Words) -> None:
        words.expect("out")
        words.expect("lockspace")
        self.story.lay_out_lockspace()

    def _sector(self, words: Words) -> int:
        geometry = self.story.volume.geometry
        if words.take("id"):
            return geometry.delta_offset(words.number())
        place = self.lease(words.next()).place
        record = words.one_of("leader", "request", "block")
        if record == "block":
            return place.at(geometry.block_offset(words.number()))
        return place.at(geometry.request_offset if record == "request" else 0)

    # --- showing ---

    def do_show(self, words: Words) -> None:
        what = words.one_of("disk", "hosts", "in")
        if what == "disk":
            for subject, line in self.story.disk_lines(times=True):
                self.story.remark(f"{subject}: {line}")
        elif what == "hosts":
            for label, host in self.story.hosts.items():
                self.story.remark(f"{label} {host.state()}")
        else:
            words.expect("flight")
            for late in self.story.stage.late:
                if not late.landed:
                    self.story.remark(_noun(self.story.what(late.step)))

    def do_owners(self, words: Words) -> None:
        """Who holds it by the disk, and what the reference would say of it."""
        name = words.next()
        protocol = survey(self.lease(name), 1, 1.0)
        try:
            scene = self.story.stage.run(protocol)
        except LeaseholdError as error:
            self.story.say(number(error))
            return
        found = [f"h{o.host_id}.{o.generation} {'shared' if o.shared else 'exclusive'}" for o in owners(scene)]
        self.story.say(f"{name} is held by {', '.join(found) or 'nobody'}")


def _noun(what: What) -> str:
    return f"{what.verb} of {what.area} {what.record}".replace("  ", " ")


@dataclass(frozen=True)
class Told:
    """A script with the outcome of each command in it, and what must not have happened."""

    text: str
    violations: list[str]


def tell(script: str) -> Told:
    """Carry out a script; outcomes that stand in it are replaced. Raises ScriptError with the line's number."""
    teller = Teller()
    told: list[str] = []
    for at, line in enumerate(script.splitlines(), 1):
        if line.startswith(" "):
            continue
        told.append(line)
        if line and not line.startswith("#"):
            try:
                told += teller.obey(line)
            except ScriptError as wrong:
                raise ScriptError(f"line {at}: {line}: {wrong}") from wrong
    return Told("\n".join(told) + "\n", teller.story.violations)
