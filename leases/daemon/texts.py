"""The texts of STATUS, HOST_STATUS and RENEWAL: `key=value` pairs, their order as clients expect it (daemon.md 8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from leases.daemon.clients import HELPER_SLOT, LISTENER_SLOT, Client
from leases.daemon.clock import boot_time
from leases.daemon.numbers import PROTOCOL, StateType
from leases.daemon.spaces import RenewalRecord, Space, SpaceState
from leases.daemon.tokens import Token, TokenState
from leases.daemon.wire import Lockspace, Resource, State, state_text
from leases.keeper import jitter

if TYPE_CHECKING:
    from leases.daemon.daemon import Daemon
    from paxos.liveness import HostHistory

#: the reference's version whose protocol and behaviour this is
VERSION = (3, 8, 5)
VERSION_NUMBER = VERSION[0] << 24 | VERSION[1] << 16 | VERSION[2] << 8
#: which commands the reference logs by default; ours are all in the log's memory
_DEBUG_COMMANDS = 0xFFFFFFFFFE06FFFF
#: the reference's flag of a shared resource
_SHARED = 1


def record(kind: StateType, text: dict[str, object], between: bytes = b"", **facts: object) -> bytes:
    """A state record with its text, and the structures that some have between the two."""
    raw = state_text(text)
    state = State(kind, text_length=len(raw), **facts)  # type: ignore[arg-type]
    return state.pack() + raw + between


def daemon_record(daemon: Daemon) -> bytes:
    settings, now = daemon.settings, int(boot_time())
    version = ".".join(map(str, VERSION))
    text: dict[str, object] = {
        "our_host_name": daemon.host_name.decode("utf-8", "surrogateescape"),
        "use_watchdog": int(settings.use_watchdog),
        "high_priority": int(settings.high_priority),
        "mlock_level": settings.mlock_level,
        "quiet_fail": int(settings.quiet_fail),
        "debug_renew": int(settings.debug_renew),
        "debug_clients": int(settings.debug_clients),
        "debug_cmds": f"{_DEBUG_COMMANDS:#x}",
        "renewal_history_size": settings.renewal_history_size,
        "gid": daemon.gid,
        "uid": daemon.uid,
        "sh_retries": settings.sh_retries,
        "max_sectors_kb_ignore": 0,
        "max_sectors_kb_align": 0,
        "max_sectors_kb_num": 1024,
        "max_worker_threads": settings.max_worker_threads,
        "write_init_io_timeout": settings.write_init_io_timeout,
        "use_aio": int(settings.use_aio),
        "kill_grace_seconds": daemon.kill_grace,
        "helper_pid": daemon.helper.pid,
        "helper_kill_fd": daemon.helper.fileno(),
        "helper_full_count": daemon.helper_full,
        "helper_last_status": now,
        "monotime": now,
        "version_str": version,
        "version_num": version,
        "version_hex": f"{VERSION_NUMBER:08x}",
        "smproto_hex": f"{PROTOCOL:08x}",
    }
    return record(StateType.DAEMON, text, name=daemon.host_name)


def _client_text(slot: int, fd: int, client: Client | None) -> dict[str, object]:
    text: dict[str, object] = {"ci": slot, "fd": fd, "pid": client.pid if client else -1, "flags": "0"}
    text["restricted"] = f"{client.restricted if client else 0:x}"
    text["cmd_active"] = client.active.header.command if client and client.active else 0
    text["cmd_last"] = client.last_command if client else 0
    text["pid_dead"] = int(client.pid_dead) if client else 0
    text["kill_count"] = client.kill_count if client else 0
    text["kill_last"] = client.kill_last if client else 0
    text["suspend"] = int(client.registered and client.call is not None) if client else 0
    text["need_free"] = 0
    return text


def client_records(daemon: Daemon) -> Iterable[bytes]:
    """The process for kill paths, the listener, then each connection."""
    helper = _client_text(HELPER_SLOT, daemon.helper.fileno(), None)
    yield record(StateType.CLIENT, helper, data32=-1, name=b"helper")
    listener = _client_text(LISTENER_SLOT, daemon.listener_fd, None)
    yield record(StateType.CLIENT, listener, data32=-1, name=b"listener")
    for client in daemon.clients:
        text = _client_text(client.slot, client.socket.fileno(), client)
        name = client.name.encode("utf-8", "surrogateescape")[:48]
        yield record(StateType.CLIENT, text, data32=client.pid, name=name)


def space_record(daemon: Daemon, space: Space) -> bytes:
    lockspace = space.lockspace
    geometry = lockspace.membership.area.geometry if lockspace is not None else None
    extend = daemon.settings.renewal_read_extend_sec
    text: dict[str, object] = {
        "list": space.state.value,
        "space_id": space.number,
        "io_timeout": space.io_timeout,
        "sector_size": geometry.sector_size if geometry else 0,
        "align_size": geometry.align_size if geometry else 0,
        "host_generation": lockspace.generation if lockspace is not None else 0,
        "renew_fail": int(space.failing),
        "space_dead": int(space.failing or space.state is SpaceState.REMOVING),
        "killing_pids": int(space.killing),
        "used_retries": 0,
        "external_used": int(space.external_used),
        "used_by_orphans": int(space.used_by_orphans),
        "renewal_read_extend_sec": space.io_timeout if extend is None else extend,
        "set_max_sectors_kb": 0,
        "corrupt_result": space.corrupt_result,
        "acquire_last_result": space.acquiring.result,
        "renewal_last_result": space.renewing.result,
        "acquire_last_attempt": space.acquiring.attempt,
        "acquire_last_success": space.acquiring.success,
        "renewal_last_attempt": space.renewing.attempt,
        "renewal_last_success": space.renewing.success,
    }
    if space.membership is not None and space.membership.late:  # beyond what the reference tells
        text["renewal_late_ms"] = jitter.shown(space.membership.late)
    shown = Lockspace(space.name, space.wire.host_id, space.wire.disk)
    return record(StateType.LOCKSPACE, text, shown.pack(), data64=space.wire.host_id, name=space.name)


def token_record(token: Token) -> bytes:
    geometry = token.lease.held.lease.geometry if token.lease is not None else None
    text: dict[str, object] = {
        "list": token.state.value,
        "flags": f"{_SHARED if token.shared else 0:x}",
        "sector_size": geometry.sector_size if geometry else 0,
        "align_size": geometry.align_size if geometry else 0,
        "lver": token.lver,
        "reused": max(0, token.past.reused),
        "res_id": token.past.number,
        "token_id": 0 if token.state is TokenState.ORPHAN else token.number,
    }
    resource = token.resource
    shown = Resource(resource.lockspace, resource.name, resource.disks, 4 if token.shared else 0)
    structures = shown.pack_with_disks()
    return record(StateType.RESOURCE, text, structures, data32=token.pid, data64=token.lver, name=resource.name)


def host_record(host: HostHistory, last_request: int) -> bytes:
    text: dict[str, object] = {
        "last_check": int(host.last_check),
        "last_live": int(host.last_live),
        "last_req": last_request,
        "owner_id": host.owner_id,
        "owner_generation": host.generation,
        "timestamp": host.timestamp,
        "io_timeout": int(host.io_timeout),
        "owner_name": host.name.decode("utf-8", "surrogateescape"),
    }
    return record(StateType.HOST, text, data32=host.host_id, data64=host.timestamp)


def renewal_record(renewal: RenewalRecord) -> bytes:
    text: dict[str, object] = {
        "timestamp": renewal.timestamp,
        "read_ms": renewal.read_ms,
        "write_ms": renewal.write_ms,
        "next_timeouts": renewal.next_timeouts,
        "next_errors": renewal.next_errors,
    }
    return record(StateType.RENEWAL, text, data64=renewal.timestamp)
