"""Spaces, clients and tokens as values of the ledger, and back."""

from __future__ import annotations

from leases.daemon.clients import Client, KillPath
from leases.daemon.ledger import Value
from leases.daemon.numbers import RestrictFlag
from leases.daemon.policy import Credentials
from leases.daemon.spaces import Space
from leases.daemon.tokens import Token
from leases.daemon.wire import Disk, Lockspace, Resource


def started_at(pid: int) -> int:
    """When a process began, in clock ticks since boot: with its pid this names it for ever. 0: there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _text(name: bytes) -> str:
    return name.decode("latin-1")


def of_space(space: Space) -> tuple[str, Value]:
    membership = space.joined.membership
    assert space.membership is not None
    return f"space {_text(space.name)}", {
        "name": _text(space.name),
        "number": space.membership.number,
        "host_id": space.wire.host_id,
        "path": space.wire.disk.path,
        "offset": space.wire.disk.offset,
        "flags": space.wire.flags,
        "io_timeout": space.io_timeout,
        "sector_size": membership.area.geometry.sector_size,
        "align_size": membership.area.geometry.align_size,
        "owner_name": _text(membership.owner_name),
        "used": space.external_used,
        "used_by_orphans": space.used_by_orphans,
    }


def wire_of_space(value: Value) -> Lockspace:
    disk = Disk(value["path"], value["offset"])
    return Lockspace(value["name"].encode("latin-1"), value["host_id"], disk, value["flags"])


def of_client(client: Client) -> tuple[str, Value]:
    who = client.credentials
    path = client.kill_path
    return f"client {client.slot}", {
        "slot": client.slot,
        "pid": who.pid,
        "uid": who.uid,
        "gid": who.gid,
        "groups": sorted(who.groups),
        "started": client.started,
        "name": client.name,
        "restricted": int(client.restricted),
        "kill_path": None if path is None else [list(path.argv), path.with_pid],
    }


def credentials_of(value: Value) -> Credentials:
    return Credentials(value["pid"], value["uid"], value["gid"], frozenset(value["groups"]))


def fill_client(client: Client, value: Value) -> None:
    """What a client of an earlier daemon had said of itself."""
    client.name = value["name"]
    client.restricted = RestrictFlag(value["restricted"])
    if value["kill_path"] is not None:
        client.kill_path = KillPath(*value["kill_path"])


def of_token(token: Token) -> tuple[str, Value]:
    return f"lease {token.key}", {
        "space": _text(token.space.name),
        "name": _text(token.name),
        "disks": [[disk.path, disk.offset] for disk in token.resource.disks],
        "flags": token.resource.flags,
        "state": token.state.value,
        "shared": token.shared,
        "lver": token.lver,
        "pid": token.pid,
        "client": token.client.slot if token.client is not None else None,
        "lvb": None if token.lvb is None else _text(token.lvb),
        "lvb_set": token.lvb_set,
    }


def resource_of(value: Value) -> Resource:
    disks = tuple(Disk(path, offset) for path, offset in value["disks"])
    return Resource(value["space"].encode("latin-1"), value["name"].encode("latin-1"), disks, value["flags"])
