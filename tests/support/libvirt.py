"""libvirt's own programs, and ours in their place, on a test machine of their own: a private mount namespace.

    with Machine(tmp) as machine:                      # /run, /etc/libvirt, /var/lib/libvirt, /srv are empty there
        daemon = machine.start_virtlockd(REAL)         # or OURS
        with LockClient(daemon.socket) as client: ...
        guests = machine.start_libvirtd("lockd")

The machine is a process that holds the namespace; everything else is started in it. Files in it are reached through
/proc, so that tests need not enter it: `machine.path("/srv/x")`.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import NAMESPACE_DNS, uuid4, uuid5

import pytest

PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[2]

#: which virtlockd
REAL, OURS = "real", "ours"
VIRTLOCKD_SOCKET = "/run/libvirt/virtlockd-sock"

_OWN_DIRECTORIES = ("/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/srv")
#: what libvirtd finds out about QEMU, once for all machines of this test run
_CACHE = "/var/cache/libvirt"


@functools.cache
def _kept() -> Path:
    """A directory that lasts for this test run."""
    kept = Path(tempfile.mkdtemp(prefix="leasehold-libvirt-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    return kept


def until(true: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {patience} s")
        time.sleep(0.02)


class Daemon:
    """A program that serves a socket, in the foreground. Its output is in `log`."""

    def __init__(self, machine: Machine, name: str, argv: Sequence[str], socket_path: str) -> None:
        self.machine = machine
        self.argv = list(argv)
        self.socket = machine.path(socket_path)
        self.log_path = machine.directory / f"{name}.log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.log_path, "ab") as log:
            process = self.machine.popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.argv[0]} did not come up (exit {process.poll()})\n{self.log()}")
            time.sleep(0.02)
        return process

    def restart(self) -> None:
        self.process = self._start()

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    @property
    def pid(self) -> int:
        """Of the daemon itself: nsenter becomes the program, so it is the one we started."""
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def terminate(self) -> int:
        """In order: its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Machine:
    """A mount namespace with empty state directories. Everything started in it ends with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        mounts = [f"mount -t tmpfs none {place}" for place in _OWN_DIRECTORIES]
        mounts.append(f"mount --bind {_kept()} {_CACHE}")
        made = [f"mkdir -p {place}" for place in (*_OWN_DIRECTORIES, _CACHE)]
        inside = "mkdir -p /run/libvirt /var/lib/libvirt/images /var/lib/libvirt/lockd/files /srv/lockd"
        script = " && ".join([*made, *mounts, inside, "echo ready", "exec sleep infinity"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for _ in range(50):
            left = list(self.left_over())
            if not left:
                break
            for pid in left:  # of our own namespace: started by us, or by what we started
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._holder.kill()
        self._holder.wait()

    def left_over(self) -> Iterator[int]:
        """Processes that run in the machine: daemons, guests, holders of locks."""
        ours = os.stat(f"/proc/{self._holder.pid}/ns/mnt").st_ino
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != self._holder.pid:
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}/ns/mnt").st_ino == ours:
                        yield int(name)

    def path(self, inside: str | Path) -> Path:
        """How a path of the machine is reached from outside."""
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    def popen(self, argv: Sequence[str], **how: object) -> subprocess.Popen[bytes]:
        """Start a program in the machine; it has the pid that is returned, and ends with the machine."""
        # sanlock's daemon needs no rights there that a container does not have
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SANLOCK_PRIVILEGED": "0"}
        environment.pop("SANLOCK_RUN_DIR", None)
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", f"--wd={self.directory}", "--"]
        process = subprocess.Popen([*enter, *argv], env=environment, **how)  # type: ignore[call-overload]
        self._stack.callback(_end, process)
        return process  # type: ignore[no-any-return]

    def run(self, *argv: str) -> str:
        """Run a program in the machine to its end; its output. AssertionError if it fails."""
        process = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{' '.join(argv)}: exit {process.returncode}\n{output.decode()}"
        return output.decode()

    def make_image(self, inside: str, size: int = 1 << 20) -> Path:
        image = self.path(inside)
        image.write_bytes(bytes(size))
        return image

    def start_virtlockd(self, which: str, *options: str, socket_path: str = VIRTLOCKD_SOCKET) -> Daemon:
        """The real virtlockd or ours, at the place where libvirt looks for it (ours elsewhere as well)."""
        if which == REAL:
            self.path("/etc/libvirt/virtlockd.conf").write_text("")
            argv = ["/usr/sbin/virtlockd", "-f", "/etc/libvirt/virtlockd.conf", "-p", "/run/virtlockd.pid", *options]
        else:
            argv = [sys.executable, "-m", "leases.cli.main", "virtlockd"]
            argv += ["--socket", socket_path, *options]
        return Daemon(self, f"virtlockd-{which}", argv, socket_path)

    def start_sanlock(self, which: str, host_name: str = "hostA") -> Daemon:
        """The real sanlock daemon or ours, at the place where libvirt looks for it, without a watchdog."""
        self.path("/run/sanlock").mkdir(exist_ok=True)
        if which == REAL:
            argv = [
                "sanlock",
                "daemon",
                "-D",
                "-w",
                "0",
                "-h",
                "0",
                "-l",
                "0",
                "-U",
                "root",
                "-G",
                "root",
                "-e",
                "hostA",
            ]
        else:
            argv = [sys.executable, "-m", "leases.cli.main", "daemon", "--watchdog", "none"]
            argv += ["--host-name", host_name]
        return Daemon(self, f"sanlock-{which}", argv, "/run/sanlock/sanlock.sock")

    def start_libvirtd(self, lock_manager: str, **plugin_settings: object) -> Libvirtd:
        """libvirtd with its QEMU driver, and this lock manager with these settings (qemu-LOCK_MANAGER.conf)."""
        return Libvirtd(self, lock_manager, plugin_settings)


#: without systemd, control groups or security modules
_QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
seccomp_sandbox = 0
stdio_handler = "file"
"""

#: QEMU without locks of its own, so that the lock manager decides alone
EMULATOR = f"{_CACHE}/qemu-without-locks"
_EMULATOR = r"""#!/bin/bash
arguments=()
for word in "$@"; do
    arguments+=("${word//\"driver\":\"file\",/\"driver\":\"file\",\"locking\":\"off\",}")
done
exec /usr/bin/qemu-system-x86_64 "${arguments[@]}"
"""

#: runs under the distribution's Python, for which its libvirt module is built: (method, arguments) in, results out
_CLIENT = """
import ast, libvirt, sys
libvirt.registerErrorHandler(lambda *_: None, None)
connection = libvirt.open("qemu:///system")
print("ready", flush=True)
for line in sys.stdin:
    name, method, arguments = ast.literal_eval(line)
    try:
        target = connection if name is None else connection.lookupByName(name)
        if method == "migrateTo":
            other = libvirt.open("qemu+unix:///system?socket=" + arguments[0])
            flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
            method, arguments = "migrate3", (other, {"migrate_uri": arguments[1]}, flags)
        result = getattr(target, method)(*arguments)
        answer = ("result", result if isinstance(result, (str, int, list, type(None))) else str(type(result)))
    except libvirt.libvirtError as error:
        answer = ("error", error.get_error_code(), error.get_error_domain(), error.get_error_message())
    print(repr(answer), flush=True)
"""


class LibvirtError(AssertionError):
    """What libvirt answered: its error number, the part of it that failed, the message."""

    def __init__(self, code: int, domain: int, message: str) -> None:
        super().__init__(f"{message} (code {code}, domain {domain})")
        self.code, self.domain, self.message = code, domain, message


class Libvirtd:
    """A running libvirtd and a connection to it. `guest` makes guests."""

    RUNNING, PAUSED, SHUT_OFF = 1, 3, 5

    def __init__(self, machine: Machine, lock_manager: str, plugin_settings: dict[str, object]) -> None:
        self.machine = machine
        manager = f'lock_manager = "{lock_manager}"\n' if lock_manager else ""
        self._write("/etc/libvirt/qemu.conf", _QEMU_CONF + manager)
        # machines of one kernel have one identity, between which libvirt would not migrate
        settings = f'auth_unix_rw = "none"\nhost_uuid = "{uuid4()}"\n'
        self._write("/etc/libvirt/libvirtd.conf", settings)
        if plugin_settings:
            lines = [f"{key} = {_conf_value(value)}\n" for key, value in plugin_settings.items()]
            self._write(f"/etc/libvirt/qemu-{lock_manager}.conf", "".join(lines))
        emulator = machine.path(EMULATOR)
        if not emulator.exists():
            emulator.write_text(_EMULATOR)
            emulator.chmod(0o755)
        argv = ["/usr/sbin/libvirtd", "-f", "/etc/libvirt/libvirtd.conf", "-p", "/run/libvirtd.pid"]
        self.daemon = Daemon(machine, "libvirtd", argv, "/run/libvirt/libvirt-sock")
        self._client = self._connect()

    def _connect(self) -> subprocess.Popen[str]:
        client = self.machine.popen(
            ["/usr/bin/python3", "-c", _CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n", self.daemon.log()
        return client  # type: ignore[return-value]

    def restart(self) -> None:
        """Stop libvirtd alone, and start it again."""
        self._client.kill()
        self.daemon.terminate()
        self.daemon.restart()
        self._client = self._connect()

    def _write(self, inside: str, text: str) -> None:
        self.machine.path(inside).write_text(text)

    def call(self, name: str | None, method: str, *arguments: object) -> Any:
        """Call a method of the guest called `name`, or of the connection. Raises LibvirtError."""
        assert self._client.stdin is not None and self._client.stdout is not None
        self._client.stdin.write(repr((name, method, arguments)) + "\n")
        self._client.stdin.flush()
        kind, *answer = ast.literal_eval(self._client.stdout.readline())
        if kind == "error":
            raise LibvirtError(*answer)
        return answer[0]

    def guest(
        self,
        name: str,
        *disks: str,
        leases: str = "",
        how: str = "",
        on_lockfailure: str = "",
        emulator: str = EMULATOR,
    ) -> LibvirtGuest:
        """A guest on these images, not started. `how`: more XML for each disk, e.g. <shareable/>."""
        return LibvirtGuest(self, name, disks, leases, how, on_lockfailure, emulator)


def _conf_value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(int(value))  # type: ignore[call-overload]


def disk_xml(path: str, target: str, how: str = "") -> str:
    return f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>
        <target dev='{target}' bus='virtio'/>{how}</disk>"""


def lease_xml(lockspace: str, key: str, path: str, offset: int = 0) -> str:
    return f"""<lease><lockspace>{lockspace}</lockspace><key>{key}</key>
        <target path='{path}' offset='{offset}'/></lease>"""


class LibvirtGuest:
    """A guest without an operating system: it runs the firmware."""

    def __init__(
        self, libvirtd: Libvirtd, name: str, disks: Sequence[str], leases: str, how: str, failure: str, emulator: str
    ) -> None:
        self.libvirtd = libvirtd
        self.name = name
        self.uuid = str(uuid5(NAMESPACE_DNS, name))
        on_failure = f"<on_lockfailure>{failure}</on_lockfailure>" if failure else ""
        devices = "".join(disk_xml(path, f"vd{'abcdef'[number]}", how) for number, path in enumerate(disks))
        self.xml = f"""<domain type='qemu'><name>{name}</name><uuid>{self.uuid}</uuid>
            <memory unit='MiB'>32</memory><vcpu>1</vcpu>
            <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>{on_failure}
            <devices><emulator>{emulator}</emulator>{leases}{devices}
            <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"""

    def start(self, paused: bool = False) -> None:
        self.libvirtd.call(None, "createXML", self.xml, 1 if paused else 0)

    def call(self, method: str, *arguments: object) -> Any:
        return self.libvirtd.call(self.name, method, *arguments)

    def state(self) -> int:
        """Libvirtd.RUNNING, PAUSED, or SHUT_OFF, which it also is when it does not exist any more."""
        try:
            state: int = self.call("state")[0]
        except LibvirtError as error:
            if error.code == 42:
                return Libvirtd.SHUT_OFF
            raise
        return state

    def suspend(self) -> None:
        self.call("suspend")

    def resume(self) -> None:
        self.call("resume")

    def destroy(self) -> None:
        self.call("destroy")

    def attach(self, xml: str) -> None:
        self.call("attachDevice", xml)

    def detach(self, xml: str) -> None:
        self.call("detachDevice", xml)

    def migrate(self, other: Libvirtd) -> None:
        """To another machine. The two QEMUs talk over a socket that both machines see."""
        channel = other.machine.directory / f"{self.name}.migration"
        self.call("migrateTo", str(other.daemon.socket), f"unix://{channel}")

    @property
    def pid(self) -> int:
        return int(self.libvirtd.machine.path(f"/run/libvirt/qemu/{self.name}.pid").read_text())


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@contextmanager
def new_machine() -> Iterator[Machine]:
    directory = Path(tempfile.mkdtemp(prefix="leasehold-machine-", dir="/var/tmp"))
    try:
        with Machine(directory) as started:
            yield started
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine of this test's own."""
    with new_machine() as started:
        yield started


@pytest.fixture
def other_machine() -> Iterator[Machine]:
    """A second one. The two share what is under /var/tmp, and nothing else."""
    with new_machine() as started:
        yield started
