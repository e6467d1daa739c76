"""libvirt's qemu hook as a lock manager, for a libvirt on which nothing else is installed (lockmanager.md 10).

libvirt runs the hook at the stations of a guest's life, and each time waits for its end. So the locks are held by a
process that the hook starts for each guest (`libvirt_holder`):

    prepare, begin      the holder takes the locks; refused: libvirt refuses to start the guest
    started, begin      the holder is told of QEMU's process, which is stopped when the locks are lost
    reconnect, begin    libvirtd was restarted: a holder that is gone is started anew, if the locks are still free
    stopped, end        the holder gives the locks back and ends
    release, end        the same, in case there was no `stopped`

A guest that migrates to this host is announced by `migrate, begin`. Its locks are at the source until the guest is
stopped there, after it went on here; so its holder waits for them, and takes them only if nobody else had them since
(with lock managers that know that), else it kills the guest here.

What a hook can't know: that a guest was paused or resumed (it keeps its locks), and that a disk was plugged in or out
or a medium changed while it runs (that is not locked). Hence of the failure actions only `poweroff` is taken.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from backends.libvirt_domain import Domain, parse_domain
from leases.manager import Access, FailureAction, Kind, Resource
from paxos.errors import InvalidUse, LeaseholdError, TryAgain

CONFIG = "/etc/leasehold/libvirt-hook.toml"
RUN_DIR = "/run/leasehold/libvirt-hook"
#: where libvirt's QEMU driver writes its guests' process ids
QEMU_RUN_DIR = "/run/libvirt/qemu"
#: seconds the holder may take to say that it has the locks: joining a lockspace takes its time
PATIENCE = 300.0


class HolderGone(LeaseholdError):
    code, name = -201, "ERROR"
    template = "the process that held the locks of {guest} is gone"
    advice = "the guest can't be protected; its locks may be somebody else's by now"


@dataclass(frozen=True, slots=True)
class Config:
    """`lock_manager` and its settings; without a file: locks on the images themselves."""

    lock_manager: str = "fcntl"
    settings: dict[str, Any] = field(default_factory=dict)
    run_dir: str = RUN_DIR

    @classmethod
    def read(cls, path: str) -> Config:
        """Raises InvalidUse."""
        try:
            with open(path, "rb") as file:
                return cls(**tomllib.load(file))
        except FileNotFoundError:
            return cls()
        except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
            raise InvalidUse(reason=f"{path}: {error}") from error


def run(guest: str, operation: str, suboperation: str, xml: TextIO, config: str = CONFIG) -> None:
    """One call of the hook. What it raises, libvirt is to take for a refusal."""
    act = _OPERATIONS.get((operation, suboperation))
    if act is None:
        return
    domain = parse_domain(xml.read())
    if domain.owner.name != guest:
        raise InvalidUse(reason=f"the hook was called for {guest} with the XML of {domain.owner.name}")
    act(_Guest(domain, Config.read(config)))


class _Guest:
    """A guest and its files in the run directory."""

    def __init__(self, domain: Domain, config: Config) -> None:
        self.domain = domain
        self.config = config
        self.directory = Path(config.run_dir)
        self.socket = self.directory / f"{domain.owner.uuid}.sock"
        #: it is there while the guest is on its way to us
        self.incoming = self.directory / f"{domain.owner.uuid}.incoming"

    def qemu(self) -> int:
        """QEMU's process. Raises InvalidUse."""
        file = Path(QEMU_RUN_DIR) / f"{self.domain.owner.name}.pid"
        try:
            return int(file.read_text())
        except (OSError, ValueError) as error:
            raise InvalidUse(reason=f"QEMU's process is not known: {error}") from error

    def ask(self, question: str) -> str:
        """What the holder answers. Raises HolderGone."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(PATIENCE)
            try:
                channel.connect(str(self.socket))
                channel.sendall(f"{question}\n".encode())
                answer = channel.makefile().readline().strip()
            except OSError as error:
                raise HolderGone(guest=self.domain.owner.name) from error
        if not answer:
            raise HolderGone(guest=self.domain.owner.name)
        return answer

    def start_holder(self, pid: int = 0) -> None:
        """Raises what the holder was refused."""
        if self.domain.on_failure is not FailureAction.POWEROFF:
            reason = f"on_lockfailure {self.domain.on_failure.value} can't be promised by a hook: only poweroff can"
            raise InvalidUse(reason=reason)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = self.domain.owner
        order = {
            "lock_manager": self.config.lock_manager,
            "settings": self.config.settings,
            "uuid": str(owner.uuid),
            "name": owner.name,
            "pid": pid,
            "wait": self.incoming.exists(),
            "socket": str(self.socket),
            "resources": [as_json(resource) for resource in self.domain.resources],
        }
        said = self.socket.with_suffix(".log")
        with open(said, "ab") as log:
            holder = subprocess.Popen(
                [sys.executable, "-m", "backends.libvirt_holder"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
                text=True,
            )
        assert holder.stdin is not None
        assert holder.stdout is not None
        with suppress(BrokenPipeError):
            holder.stdin.write(json.dumps(order))
            holder.stdin.close()
        word = holder.stdout.readline().strip()
        if word != "ok":
            last = "".join(said.read_text(errors="replace").splitlines()[-1:])
            raise TryAgain(reason=word or f"the process that was to hold the locks of {owner.name} ended: {last}")


def _migrate(guest: _Guest) -> None:
    guest.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    guest.incoming.touch()


def _prepare(guest: _Guest) -> None:
    with suppress(HolderGone):  # left from an earlier life of the guest
        guest.ask("release")
    guest.start_holder()


def _started(guest: _Guest) -> None:
    answer = guest.ask(f"adopt {guest.qemu()}")
    guest.incoming.unlink(missing_ok=True)
    if answer != "ok":
        raise TryAgain(reason=answer)


def _reconnect(guest: _Guest) -> None:
    try:
        guest.ask("here?")
    except HolderGone:
        guest.start_holder(guest.qemu())


def _stopped(guest: _Guest) -> None:
    guest.incoming.unlink(missing_ok=True)
    with suppress(HolderGone):
        guest.ask("release")
    guest.socket.with_suffix(".log").unlink(missing_ok=True)


_OPERATIONS = {
    ("migrate", "begin"): _migrate,
    ("prepare", "begin"): _prepare,
    ("started", "begin"): _started,
    ("reconnect", "begin"): _reconnect,
    ("stopped", "end"): _stopped,
    ("release", "end"): _stopped,
}


def as_json(resource: Resource) -> dict[str, Any]:
    return {
        "kind": resource.kind.value,
        "name": resource.name,
        "access": resource.access.value,
        "path": resource.path,
        "offset": resource.offset,
        "lockspace": resource.lockspace,
    }


def from_json(resource: dict[str, Any]) -> Resource:
    kind, access = Kind(resource.pop("kind")), Access(resource.pop("access"))
    return Resource(kind=kind, access=access, **resource)
