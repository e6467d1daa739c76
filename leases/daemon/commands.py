"""The table of commands: what each takes, who may give it, what carries it out (daemon.md sections 6 and 7).

What needs the disk's side of leasehold (and with it numpy) lives in modules that are imported by a worker after the
daemon listens; the table knows them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from sys import modules
from typing import cast

from leases.daemon import shapes
from leases.daemon.call import Call, Outcome
from leases.daemon.numbers import Command
from leases.daemon.policy import Right
from leases.daemon.shapes import Shape

Handler = Callable[[Call], Outcome]

#: modules with handlers: those that are quick to import, and those that need numpy
LIGHT = ("about_processes", "about_daemon", "about_hosts")
HEAVY = ("about_lockspaces", "about_leases", "about_values", "about_requests", "about_volumes", "about_index")


class Target(Enum):
    """Which client a command is about."""

    NONE = "none"
    #: the connection's own, or by `data2` another process
    OWN_OR_PID = "own or pid"
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Entry:
    """`home`: module and function of the handler. `closes`: the daemon closes the connection after the answer."""

    home: str
    shape: Shape = shapes.nothing
    target: Target = Target.NONE
    right: Right = Right.LOOK
    closes: bool = False

    @property
    def module(self) -> str:
        return f"leases.daemon.{self.home.split('.')[0]}"

    @property
    def ready(self) -> bool:
        """Whether the handler is there without an import."""
        return self.module in modules

    def handler(self) -> Handler:
        return cast(Handler, getattr(import_module(self.module), self.home.split(".")[1]))


_OWN_OR_PID = Target.OWN_OR_PID

COMMANDS: dict[int, Entry] = {
    Command.REGISTER: Entry("about_processes.register"),
    Command.RESTRICT: Entry("about_processes.restrict"),
    Command.KILLPATH: Entry("about_processes.kill_path", shapes.kill_path, Target.OWN),
    Command.VERSION: Entry("about_daemon.version"),
    Command.STATUS: Entry("about_daemon.status", closes=True),
    Command.LOG_DUMP: Entry("about_daemon.log_dump", closes=True),
    Command.SHUTDOWN: Entry("about_daemon.shutdown", right=Right.ADMIN, closes=True),
    Command.SHUTDOWN_WAIT: Entry("about_daemon.shutdown_wait", right=Right.ADMIN),
    Command.GET_LOCKSPACES: Entry("about_daemon.get_lockspaces", closes=True),
    Command.GET_HOSTS: Entry("about_hosts.get_hosts", shapes.lockspace, closes=True),
    Command.HOST_STATUS: Entry("about_hosts.host_status", shapes.lockspace, closes=True),
    Command.RENEWAL: Entry("about_hosts.renewal", shapes.lockspace, closes=True),
    Command.REG_EVENT: Entry("about_hosts.reg_event", shapes.event, closes=True),
    Command.END_EVENT: Entry("about_hosts.end_event", shapes.lockspace, closes=True),
    Command.SET_EVENT: Entry("about_hosts.set_event", shapes.event, right=Right.ADMIN),
    Command.SET_CONFIG: Entry("about_daemon.set_config", shapes.lockspace, right=Right.ADMIN, closes=True),
    Command.ADD_LOCKSPACE: Entry("about_lockspaces.add", shapes.lockspace, right=Right.ADMIN),
    Command.INQ_LOCKSPACE: Entry("about_lockspaces.inquire", shapes.lockspace),
    Command.REM_LOCKSPACE: Entry("about_lockspaces.remove", shapes.lockspace, right=Right.ADMIN),
    Command.ACQUIRE: Entry("about_leases.acquire", shapes.acquire, _OWN_OR_PID),
    Command.RELEASE: Entry("about_leases.release", shapes.release, _OWN_OR_PID),
    Command.INQUIRE: Entry("about_leases.inquire", shapes.nothing, _OWN_OR_PID),
    Command.CONVERT: Entry("about_leases.convert", shapes.resource, _OWN_OR_PID),
    Command.SET_LVB: Entry("about_values.set_lvb", shapes.value_block),
    Command.GET_LVB: Entry("about_values.get_lvb", shapes.resource),
    Command.REQUEST: Entry("about_requests.request", shapes.resource_with_disks, right=Right.ADMIN),
    Command.EXAMINE_LOCKSPACE: Entry("about_requests.examine_lockspace", shapes.lockspace),
    Command.EXAMINE_RESOURCE: Entry("about_requests.examine_resource", shapes.resource),
    Command.ALIGN: Entry("about_volumes.align", shapes.disk),
    Command.READ_LOCKSPACE: Entry("about_volumes.read_lockspace", shapes.lockspace),
    Command.WRITE_LOCKSPACE: Entry("about_volumes.write_lockspace", shapes.lockspace, right=Right.FORMAT),
    Command.READ_RESOURCE: Entry("about_volumes.read_resource", shapes.resource_with_disks),
    Command.READ_RESOURCE_OWNERS: Entry("about_volumes.read_owners", shapes.resource_with_disks),
    Command.WRITE_RESOURCE: Entry("about_volumes.write_resource", shapes.resource_with_disks, right=Right.FORMAT),
    Command.FORMAT_RINDEX: Entry("about_index.format_index", shapes.index, right=Right.FORMAT),
    Command.LOOKUP_RINDEX: Entry("about_index.lookup", shapes.index_entry),
    Command.UPDATE_RINDEX: Entry("about_index.update", shapes.index_entry, right=Right.FORMAT),
    Command.CREATE_RESOURCE: Entry("about_index.create", shapes.index_entry, right=Right.FORMAT),
    Command.DELETE_RESOURCE: Entry("about_index.delete", shapes.index_entry, right=Right.FORMAT),
    Command.REBUILD_RINDEX: Entry("about_index.rebuild", shapes.index, right=Right.FORMAT),
}

#: names that clients have in `status` while they give one of these commands, as the reference calls them
NAMES = {
    Command.STATUS: "status",
    Command.HOST_STATUS: "host_status",
    Command.RENEWAL: "renewal",
    Command.LOG_DUMP: "log_dump",
    Command.SHUTDOWN: "shutdown",
    Command.GET_LOCKSPACES: "get_lockspaces",
    Command.GET_HOSTS: "get_hosts",
    Command.REG_EVENT: "reg_event",
    Command.END_EVENT: "end_event",
    Command.SET_CONFIG: "set_config",
}


def name_of(command: int) -> str:
    """What a client that is not registered is called while it gives this command."""
    return NAMES.get(Command(command), f"cmd{command}") if command in COMMANDS else ""
