"""Our clients send, byte for byte, what the reference's clients sent when they were recorded."""

# mypy: disable-error-code="func-returns-value"
from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from leases import sanlock
from leases.client import Client, Holder, Registration
from leases.connection import Connection
from leases.daemon import exchange
from leases.daemon.conversation import Exchange
from leases.daemon.naming import as_index, as_resource, with_flags
from leases.daemon.numbers import (
    ConfigCommand,
    RequestMode,
    ResourceFlag,
    RestrictFlag,
    SizeFlag,
    StatusDepth,
)
from leases.daemon.wire import Disk, HostEvent, Resource
from paxos.errors import LeaseholdError
from paxos.geometry import MIB, Geometry
from tests.support.playback import Playback, recorded_cases

FILES = (
    "01-cli-format-read-errors.json",
    "02-lockspace.json",
    "03-resources.json",
    "04-events-requests.json",
    "05-rindex.json",
    "07-client-sequences.json",
)
CASES = {name: case for file in FILES for name, case in recorded_cases(file).items()}
CLI = [name for name, case in CASES.items() if case["client"] == "sanlock CLI"]
#: `sanlock client command` and a daemon that is gone have tests of their own
CLI_APART = {"cli_command", "no_daemon"}


def result_of(call: Callable[[], Any]) -> int:
    """As the reference's client library would return it."""
    try:
        call()
    except LeaseholdError as error:
        return error.code
    return 0


# ------------------------------------------------------------------------------------ the reference's command line


def geometry_option(options: dict[str, str]) -> Geometry | None:
    if "-A" not in options:
        return None
    return Geometry(int(options.get("-Z", "512")), int(options["-A"].rstrip("M")) * MIB)


def run_cli(client: Client, argv: list[str]) -> object:
    """Do with our client what this command line of the reference does."""
    action = argv[2]
    options = dict(zip(argv[3::2], argv[4::2], strict=False))
    lockspace, resource, index = options.get("-s", ""), options.get("-r", ""), options.get("-x", "")
    entry = options.get("-e", "")
    name = lockspace.split(":")[0]
    seconds = options.get("-o", "")
    io_timeout = int(seconds) if seconds.isdigit() else 10
    process = client.process(int(options["-p"])) if "-p" in options else None
    match action:
        case "version":
            return client.version()
        case "status":
            return client.status()
        case "gets":
            return [client.hosts(found.name) for found in client.lockspaces()]
        case "init" if lockspace:
            return client.write_lockspace(lockspace, geometry_option(options), io_timeout)
        case "init" if "-n" in options:
            # the reference's command line puts the number only where its daemon does not look
            return run(client, exchange.write_resource(resource, num_hosts=int(options["-n"])))
        case "init":
            return client.write_resource(resource, geometry_option(options), clear="-z" in options)
        case "read" if lockspace:
            return client.read_lockspace(lockspace)
        case "read" if "-h" in options:
            return client.resource_owners(resource)
        case "read":
            return client.read_resource(resource)
        case "align":
            return client.align(lockspace.split(":")[2])
        case "add_lockspace":
            return client.add_lockspace(lockspace, int(options.get("-o", "0")))
        case "inq_lockspace":
            if client.inquire_lockspace(lockspace) is False:
                raise sanlock.SanlockException(2)
            return None
        case "rem_lockspace":
            return client.remove_lockspace(lockspace)
        case "host_status" if lockspace:
            return client.host_status(name)
        case "host_status":
            status = run(client, exchange.status(StatusDepth.LOCKSPACES))
            return [client.host_status(record.state.name) for record in status.lockspaces]
        case "renewal":
            return client.renewals(name)
        case "log_dump":
            return client.log()
        case "set_config":
            chosen = {
                ("-u", "1"): ConfigCommand.USED,
                ("-u", "0"): ConfigCommand.UNUSED,
                ("-O", "1"): ConfigCommand.USED_BY_ORPHANS,
                ("-O", "0"): ConfigCommand.UNUSED_BY_ORPHANS,
            }
            what = [command for option, command in chosen.items() if option in options.items()]
            return client.configure(name, what[0] if what else 0)  # type: ignore[arg-type]
        case "set_event":
            numbers = (int(options.get(option, "0"), 0) for option in ("-i", "-g", "-e", "-d"))
            return client.set_event(name, HostEvent(*numbers))
        case "inquire":
            assert process is not None
            return process.held()
        case "acquire" if "-n" in options:
            assert process is not None
            wanted = with_flags(resource, ResourceFlag.NUM_HOSTS)
            return process.acquire(replace(wanted, num_hosts=int(options["-n"])))
        case "acquire":
            assert process is not None
            return process.acquire(resource, orphan="-O" in options, persistent="-P" in options)
        case "release" if "-a" in options:
            assert process is not None
            return process.release_all()
        case "release" if "-O" in options:
            assert process is not None
            return run(client, release_orphan(resource or lockspace, process.pid))
        case "release":
            assert process is not None
            return process.release(resource)
        case "convert":
            assert process is not None
            return process.convert(resource)
        case "request":
            wanted = as_resource(resource)
            return client.request(wanted, RequestMode(int(options["-f"])), wanted.lver)
        case "examine" if lockspace:
            return client.examine_lockspace(lockspace)
        case "examine":
            return client.examine_resource(resource)
        case "format" if "-Z" in options and "-A" not in options:
            return client.format_index(replace(as_index(index), flags=int(SizeFlag.SECTOR512)))
        case "format":
            return client.format_index(index, geometry_option(options))
        case "create":
            return client.create_resource(index, entry)
        case "delete":
            return client.delete_resource(index, entry)
        case "lookup":
            return client.lookup(index, entry)
        case "update":
            return client.update_index(index, entry, remove="-z" in options)
        case "rebuild":
            return client.rebuild_index(index)
        case "shutdown":
            return client.shutdown(force="-f" in options)
    raise AssertionError(f"what does {argv} do?")


def release_orphan(what: str, pid: int) -> Exchange[int]:
    if what.endswith(":x:0"):  # all of a lockspace
        return exchange.release_orphans(Resource(what.split(":")[0].encode()), pid)
    return exchange.release_orphans(what, pid)


def run(client: Client, command: Exchange[Any]) -> Any:
    with Connection(client.path) as connection:
        return connection.run(command)


@pytest.mark.parametrize("name", [name for name in CLI if name not in CLI_APART])
def test_the_client_sends_what_the_command_line_sent(name: str) -> None:
    case = CASES[name]
    told = case["client_result"]
    with Playback(case) as daemon:
        client = Client(str(daemon.run_dir / "sanlock.sock"), timeout=20)
        try:
            found = run_cli(client, told["argv"])
            code = 0
        except LeaseholdError as error:
            found, code = None, error.code
        except sanlock.SanlockException as error:
            found, code = None, -error.errno
        daemon.check()
    done = re.search(r"(?:done|error) (-?\d+)", told["stdout"])
    if done and int(done[1]) < 0:
        assert code == int(done[1])
    elif done and int(done[1]) > 0:
        assert found == int(done[1])
    else:
        assert code == 0 or told["exit"] == 1


# ------------------------------------------------------------------------------------------------ scripts

PLACE = "/tmp/lh/ls.img"


class Printer:
    """`T` and `P` of the recorded scripts: print a result, or what was raised."""

    def __init__(self, errno_too: bool) -> None:
        self.lines: list[str] = []
        self.errno_too = errno_too

    def print(self, *parts: object) -> None:
        self.lines.append(" ".join(map(str, parts)))

    def module_call(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            self.print(repr(function(*args, **kwargs)))
        except sanlock.SanlockException as error:
            self.print(repr(("SanlockException", *error.args)))

    def named(self, name: str, result: object) -> object:
        self.print(name, repr(result))
        return result

    def named_call(self, name: str, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            self.named(name, function(*args, **kwargs))
        except sanlock.SanlockException as error:
            with_errno = ("SanlockException", error.args, error.errno)
            self.named(name, with_errno if self.errno_too else ("SanlockException", *error.args))
        except Exception as error:
            self.named(name, (type(error).__name__, *error.args))


MODULE_SCRIPTS = {
    # name: whether T is called with a function, or with a name and a result
    "get_hosts_early": True,
    "py_get_hosts": True,
    "async_add_inq_rem": True,
    "py_acquire_lvb": False,
    "rem_lockspace_unused_busy": False,
    "reg_event_errors": False,
    "reg_end_event": False,
    "get_event": False,
    "set_event_flags": False,
    "write_read_sizes": False,
}


@pytest.mark.parametrize("name", MODULE_SCRIPTS)
def test_scripts_written_for_the_sanlock_module_run_the_same_on_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    printer = Printer(errno_too=name == "py_acquire_lvb")
    told = case["client_result"]
    scope = {
        "sanlock": sanlock,
        "time": SimpleNamespace(time=lambda: 0.0, sleep=lambda seconds: None),
        "print": printer.print,
        "T": printer.module_call if MODULE_SCRIPTS[name] else printer.named,
        "P": printer.named_call,
    }
    with Playback(case) as daemon:
        monkeypatch.setenv("SANLOCK_RUN_DIR", str(daemon.run_dir))
        exec(told["argv"][-1], scope)
        if name == "py_acquire_lvb":
            os.close(int(str(scope["fd"])))  # where the recorded program ended
        daemon.check()
    assert about_the_daemon(printer.lines) == about_the_daemon(told["stdout"].splitlines())


def about_the_daemon(lines: list[str]) -> list[str]:
    """Without those about a file that was there when they were recorded, and about functions of the recorder."""
    return [line for line in lines if not line.startswith(("get_alignment", "constants", "exception str"))]


# --------------------------------------------------------------- programs that use the client library of the reference


class Library:
    """The calls of a recorded program's C library, made with our client; results as the library gives them."""

    def __init__(self, client: Client, pid: int) -> None:
        self.client = client
        self.pid = pid
        self.registered: list[Registration] = []

    def sanlock_register(self) -> Registration:
        self.registered.append(self.client.register())
        return self.registered[-1]

    def holder(self, registration: Registration | int, pid: int) -> Holder:
        return registration if isinstance(registration, Registration) else self.client.process(pid)

    def run_for(self, holder: Holder, command: Callable[[int | None], Exchange[Any]]) -> int:
        return result_of(lambda: holder._run(command(holder._pid)))

    def acquire(self, registration: Registration | int, pid: int, flags: int, wanted: list[Resource]) -> int:
        holder = self.holder(registration, pid)
        return self.run_for(holder, lambda pid: exchange.acquire(wanted, pid, flags))

    def release(self, registration: Registration | int, pid: int, flags: int, held: list[Resource]) -> int:
        holder = self.holder(registration, pid)
        if flags == 1:
            return result_of(holder.release_all)
        if flags == 2:
            return result_of(lambda: holder.rename(*held))
        return result_of(lambda: holder.release(*held))

    def convert(self, registration: Registration, pid: int, flags: int, wanted: Resource) -> int:
        return self.run_for(registration, lambda pid: exchange.convert(wanted, pid, flags))

    def inquire(self, registration: Registration | int, pid: int) -> tuple[int, int, bytes | None]:
        state = self.holder(registration, pid).state()
        return 0, len(exchange.parse_held(state)), state or None

    def sanlock_write_resource(self, resource: Resource, *numbers: int) -> int:
        return result_of(lambda: self.client.write_resource(resource))

    def sanlock_killpath(self, registration: Registration, flags: int, path: bytes, args: bytes) -> int:
        split = [arg for arg in args.split(b" ") if arg]
        return result_of(lambda: registration.killpath(path.decode(), *split, with_pid=bool(flags)))

    def sanlock_restrict(self, registration: Registration, flags: int) -> int:
        return result_of(lambda: registration.restrict(RestrictFlag(flags)))

    def sanlock_request(self, flags: int, mode: int, resource: Resource) -> int:
        return result_of(lambda: run(self.client, exchange.request_resource(resource, mode)))


def c_resource(
    lockspace: bytes, name: bytes, disks: list[tuple[bytes, int]], flags: int = 0, lver: int = 0
) -> Resource:
    return Resource(lockspace, name, tuple(Disk(path.decode(), offset) for path, offset in disks), flags, lver)


@pytest.mark.parametrize(
    "name",
    [
        "acquire_ex_cycle",
        "acquire_sh_convert",
        "acquire_two_with_lver",
        "acquire_errors",
        "killpath",
        "acquire_held_other_host",
        "orphan_only",
        "release_rename",
        "shared_two_pids_same_host",
        "two_disks",
        "request",
    ],
)
def test_programs_written_for_the_c_library_do_the_same_with_our_client(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    printer = Printer(errno_too=name == "acquire_held_other_host")
    told = case["client_result"]
    with Playback(case) as daemon:
        monkeypatch.setenv("SANLOCK_RUN_DIR", str(daemon.run_dir))
        client = Client(str(daemon.run_dir / "sanlock.sock"), timeout=20)
        library = Library(client, case["connections"][0]["client_pid"])
        scope = {
            "L": library,
            "T": printer.named,
            "P": printer.named_call,
            "Res": c_resource,
            "D": lambda n: [(PLACE.encode(), n << 20)],
            "acquire": library.acquire,
            "release": library.release,
            "convert": library.convert,
            "inquire": library.inquire,
            "ctypes": SimpleNamespace(byref=lambda value: value),
            "sanlock": sanlock,
        }
        exec(told["argv"][-1], scope)
        for registration in library.registered:
            registration.close()
        daemon.check()
    assert printer.lines == told["stdout"].splitlines()


def played(name: str) -> tuple[Playback, Client]:
    daemon = Playback(CASES[name])
    return daemon, Client(str(daemon.run_dir / "sanlock.sock"), timeout=20)


def test_a_lock_driver_starts_a_guest_moves_it_away_and_takes_it_back() -> None:
    daemon, client = played("lockmanager_sequence")
    pid = 22935
    with daemon:
        with client.register() as guest:
            guest.killpath("/usr/libexec/libvirt_sanlock_helper", "qemu:///system", "0123", "poweroff")
            guest.acquire(f"LS:RA:{PLACE}:1M", f"LS:RC:{PLACE}:3M:SH")
            guest.restrict(RestrictFlag.ALL)
            process = client.process(pid)
            state = process.state()
            assert state == f"LS:RA:{PLACE}:1048576:16 LS:RC:{PLACE}:3145728:SH".encode()
            process.release_all()
            process.acquire(*exchange.parse_held(state))
            process.release_all()
        daemon.check()


def test_a_volume_group_lock_daemon_uses_a_lock_value_block() -> None:
    daemon, client = played("lvm_lock_sequence")
    lease = f"LS:RA:{PLACE}:1M"
    with daemon:
        version = client.version()
        assert (str(version), version.protocol) == ("3.8.5", 1)
        with client.register() as me:
            me.killpath("/usr/sbin/lvmlockctl", "--kill", "vg0", with_pid=True)
            me.restrict(RestrictFlag.SIGKILL | RestrictFlag.SIGTERM)
            client.configure("LS", ConfigCommand.USED)
            me.acquire(lease, lvb=True)
            assert client.get_lvb(lease)[:8] == b"hello\0\0\0"
            client.set_lvb(lease, b"vb\x01\x00abcd".ljust(32, b"\0"))
            me.convert(lease, shared=True)
            me.convert(lease, nowait=True)
            me.release(lease)
            client.configure("LS", ConfigCommand.UNUSED)
        daemon.check()


def test_an_index_is_looked_up_without_its_lockspace() -> None:
    daemon, client = played("rindex_no_lockspace")
    with daemon:
        assert client.lookup("LS:/tmp/lh/rx.img", "V2", joined=False).offset == 3 * MIB
        with pytest.raises(LeaseholdError) as wrong:
            # the recorded program used its entry again, with the offset it had got
            client.lookup("XX:/tmp/lh/rx.img", f"V2:{3 * MIB}", joined=False)
        assert wrong.value.code == -276
        daemon.check()


def test_a_lease_whose_path_has_a_space_can_be_held_but_not_inquired() -> None:
    daemon, client = played("name_escaping")
    lease = "LS:RE:/tmp/lh/a\\ b\\:c.img:0"
    with daemon:
        client.write_resource(lease)
        with client.register() as me:
            me.acquire(lease)
            with pytest.raises(LeaseholdError) as refused:
                me.held()
            assert refused.value.code == -81
            me.release(lease)  # the connection is still in step
        daemon.check()


def test_leases_of_a_restricted_connection_are_changed_by_its_pid() -> None:
    daemon, client = played("restrict")
    pid = 26018
    with daemon:
        with client.register() as me:
            me.acquire(f"LS:RA:{PLACE}:1M")
            me.restrict(RestrictFlag.SIGKILL | RestrictFlag.SIGTERM)
            me.restrict(RestrictFlag.ALL)
            assert [held.name for held in client.process(pid).held()] == [b"RA"]
            client.process(pid).release(f"LS:RA:{PLACE}:1M")
        daemon.check()


def test_a_command_registers_acquires_and_closes() -> None:
    daemon, client = played("cli_command")
    with daemon:
        with client.register() as me:
            me.acquire(f"LS:RA:{PLACE}:1M")
        daemon.check()
