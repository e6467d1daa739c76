"""The protocol as bytes: every recorded message is understood and made again, and hostile bytes are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leases.daemon import wire
from leases.daemon.numbers import MAX_DISKS, Command, HostState, StateType
from leases.daemon.wire import (
    BadMessage,
    Disk,
    EventMessage,
    Header,
    Host,
    HostEvent,
    Index,
    IndexEntry,
    Lockspace,
    Options,
    Resource,
    State,
)
from paxos.errors import InvalidUse
from paxos.geometry import MAX_HOSTS, Geometry
from tests.support.playback import RECORDINGS, recorded_cases

LAYOUTS = {
    Header: 32,
    Disk: 1040,
    Lockspace: 1104,
    Resource: 128,
    Options: 56,
    Host: 32,
    HostEvent: 32,
    EventMessage: 80,
    Index: 1104,
    IndexEntry: 64,
    State: 80,
}


def test_structures_have_the_sizes_of_the_specification() -> None:
    assert {kind: kind.layout.size for kind in LAYOUTS} == LAYOUTS  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------- recorded messages


def recorded_requests() -> Iterator[tuple[str, bytes]]:
    """What real clients sent, connection by connection. The edge cases are made by hand, and are left out."""
    for path in sorted(RECORDINGS.glob("0[1-57]-*.json")):
        for name, case in recorded_cases(path.name).items():
            for connection in case["connections"]:
                sent = [message["hex"] for message in connection["messages"] if message["dir"] == "c2d"]
                yield name, bytes.fromhex("".join(sent))


def made_again(header: Header, raw: bytes) -> bytes:
    """The request at the beginning of `raw`, from its structures."""
    body = raw[32:]
    match header.command:
        case Command.ACQUIRE:
            made = b""
            for _ in range(header.data):
                resource = Resource.unpack_with_disks(body, len(made))
                made += resource.pack_with_disks()
            return header.pack() + made + Options.unpack(body, len(made)).pack()
        case Command.RELEASE:
            return header.pack() + b"".join(
                Resource.unpack(body, n * Resource.layout.size).pack() for n in range(header.data)
            )
        case Command.WRITE_RESOURCE | Command.READ_RESOURCE | Command.READ_RESOURCE_OWNERS | Command.REQUEST:
            return header.pack() + Resource.unpack_with_disks(body).pack_with_disks()
        case Command.CONVERT | Command.EXAMINE_RESOURCE | Command.GET_LVB:
            return header.pack() + Resource.unpack(body).pack()
        case Command.SET_LVB:
            return header.pack() + Resource.unpack(body).pack() + body[128 : header.payload]
        case Command.ALIGN:
            return header.pack() + Disk.unpack(body).pack()
        case Command.KILLPATH:
            return header.pack() + wire.pack_killpath(*wire.unpack_killpath(body))
        case Command.REG_EVENT | Command.SET_EVENT:
            return header.pack() + Lockspace.unpack(body).pack() + HostEvent.unpack(body, 1104).pack()
        case Command.FORMAT_RINDEX | Command.REBUILD_RINDEX:
            return header.pack() + Index.unpack(body).pack()
        case Command.UPDATE_RINDEX | Command.LOOKUP_RINDEX | Command.CREATE_RESOURCE | Command.DELETE_RESOURCE:
            return header.pack() + Index.unpack(body).pack() + IndexEntry.unpack(body, 1104).pack()
        case Command.HOST_STATUS | Command.RENEWAL:
            return header.pack() + Lockspace.unpack(body).pack()
        case _ if header.payload == Lockspace.layout.size:
            return header.pack() + Lockspace.unpack(body).pack()
    assert header.payload == 0
    return header.pack()


def test_every_recorded_request_is_understood_and_made_again() -> None:
    seen = set()
    for name, raw in recorded_requests():
        position = 0
        while position < len(raw):
            if raw[position:] == b"\1\0\0\0":  # the mark at the end of an event connection
                break
            header = Header.unpack(raw, position)
            header.check()
            again = made_again(header, raw[position:])
            assert raw[position : position + len(again)] == again, (name, header)
            position += len(again)
            seen.add(Command(header.command))
    assert seen == set(Command) - {Command.SHUTDOWN}


def test_every_recorded_reply_has_a_header_and_says_its_command() -> None:
    for path in sorted(RECORDINGS.glob("0[1-57]-*.json")):
        for name, case in recorded_cases(path.name).items():
            for connection in case["connections"]:
                asked = [m for m in connection["messages"] if m["dir"] == "c2d"]
                replies = [m for m in connection["messages"] if m["dir"] == "d2c" and m["len"]]
                for reply in replies[:1]:
                    header = Header.unpack(bytes.fromhex(reply["hex"]))
                    header.check()
                    assert header.reply(header.result, header.data2, header.payload) == header, name
                    assert asked


def test_a_reply_echoes_what_the_request_said_and_carries_its_result() -> None:
    asked = Header(Command.ACQUIRE, flags=9, length=5000, seq=7, data=3, data2=0xFFFFFFFF)
    answer = Header.unpack(asked.reply(-243, 5, 16).pack())
    assert answer == Header(Command.ACQUIRE, 9, 48, 7, (1 << 32) - 243, 5)
    assert (answer.result, answer.payload) == (-243, 16)
    assert asked.own_target and not answer.own_target


@pytest.mark.parametrize(
    "header",
    [
        Header(Command.STATUS, magic=0x04282011),
        Header(Command.STATUS, version=0x00010000),
        Header(Command.VERSION, magic=0),
    ],
)
def test_foreign_headers_are_refused(header: Header) -> None:
    with pytest.raises(BadMessage):
        Header.unpack(header.pack()).check()


@pytest.mark.parametrize(
    "header",
    [Header(Command.STATUS, version=0), Header(Command.STATUS, version=7), Header(Command.VERSION, version=1 << 16)],
)
def test_other_minor_versions_and_any_version_question_are_accepted(header: Header) -> None:
    Header.unpack(header.pack()).check()


# --------------------------------------------------------------------------------------------------- hostile bytes

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
names = st.binary(max_size=48).map(lambda raw: raw.split(b"\0")[0])
paths = st.binary(max_size=1023).map(lambda raw: raw.split(b"\0")[0].decode("utf-8", "surrogateescape"))
disks = st.builds(Disk, paths, u64)


@given(st.sampled_from(sorted(LAYOUTS, key=lambda kind: kind.__name__)), st.data())
def test_any_bytes_are_a_structure_or_a_typed_error(kind: Any, data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=kind.layout.size + 40) | st.binary(min_size=kind.layout.size))
    try:
        found = kind.unpack(raw)
    except BadMessage as error:
        assert str(error)
    else:
        assert len(raw) >= kind.layout.size
        assert isinstance(found, kind)


@given(names, names, st.lists(disks, max_size=4), u32, u64, u32)
def test_a_resource_comes_back_as_it_was_sent(
    lockspace: bytes, name: bytes, places: list[Disk], flags: int, lver: int, num_hosts: int
) -> None:
    sent = Resource(lockspace, name, tuple(places), flags, lver, num_hosts, len(places))
    assert Resource.unpack_with_disks(b"?" + sent.pack_with_disks() + b"rest", 1) == sent
    assert len(sent.pack_with_disks()) == sent.wire_size


@given(names, u64, disks, u32)
def test_a_lockspace_comes_back_as_it_was_sent(name: bytes, host_id: int, disk: Disk, flags: int) -> None:
    sent = Lockspace(name, host_id, disk, flags)
    assert Lockspace.unpack(sent.pack()) == sent


@given(names, u64, u32, st.sampled_from(list(StateType)))
def test_small_structures_come_back_as_they_were_sent(name: bytes, big: int, small: int, kind: StateType) -> None:
    sent: list[Any] = [
        Options(name, small),
        Host(big, big, big, small, small),
        HostEvent(big, big, big, big),
        EventMessage(HostEvent(big, 1, 2, 3), big, big),
        IndexEntry(name, big, small),
        Index(name, Disk("/p", big), small, small),
        State(kind, small, big, name, small % 4096, 0),
        Header(small, small, small, small, small, small),
    ]
    assert [type(item).unpack(item.pack()) for item in sent] == sent


@pytest.mark.parametrize("count", [MAX_DISKS + 1, 1 << 31, (1 << 32) - 1])
def test_a_resource_with_too_many_disks_is_refused_before_they_are_read(count: int) -> None:
    raw = Resource(b"LS", b"RA", num_disks=count).pack()
    assert Resource.unpack(raw).num_disks == count
    with pytest.raises(BadMessage, match=f"{count} disks"):
        Resource.unpack_with_disks(raw + bytes(5 * 1040))


def test_a_path_must_end() -> None:
    raw = bytearray(Disk("/p").pack())
    raw[:1024] = b"x" * 1024
    with pytest.raises(BadMessage, match="path"):
        Disk.unpack(bytes(raw))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Lockspace(b"L" * 49).pack(),
        lambda: Resource(b"LS", b"R" * 49).pack(),
        lambda: Disk("x" * 1024).pack(),
        lambda: Disk("/p\0").pack(),
        lambda: Disk("/p", -1).pack(),
        lambda: Disk("/p", 1 << 64).pack(),
        lambda: Host(1, flags=-1).pack(),
        lambda: wire.pack_killpath("x" * 128, b""),
        lambda: wire.pack_killpath("/x", b"y" * 128),
    ],
)
def test_what_no_structure_can_carry_is_the_callers_error(make: Any) -> None:
    with pytest.raises(InvalidUse):
        make()


def test_names_of_full_length_have_no_end_and_survive() -> None:
    full = b"n" * 48
    assert Lockspace.unpack(Lockspace(full).pack()).name == full


def test_paths_that_are_no_utf8_survive() -> None:
    path = b"/p\xff\xfe".decode("utf-8", "surrogateescape")
    assert b"/p\xff\xfe\0" in Disk(path).pack()
    assert Disk.unpack(Disk(path).pack()).path == path


def test_size_flags_come_in_valid_pairs_or_not_at_all() -> None:
    assert wire.geometry_of(0x7) is None
    for sector_size, align_size in MAX_HOSTS:
        geometry = Geometry(sector_size, align_size)
        assert wire.geometry_of(geometry.wire_flags | 0x4) == geometry
    for flags in (0x10, 0x100, 0x120, 0x110 | 0x20, 0x300, 0x310):
        with pytest.raises(BadMessage):
            wire.geometry_of(flags)


def test_a_host_has_a_state_or_none_is_told() -> None:
    assert Host(1, flags=3).state is HostState.LIVE
    assert Host(1, flags=0x13).state is HostState.LIVE
    assert Host(1).state is None
    with pytest.raises(BadMessage):
        _ = Host(1, flags=6).state


# ------------------------------------------------------------------------------------------------------ state texts


def test_state_texts_are_pairs_in_their_order_and_end_in_time() -> None:
    raw = wire.state_text({"our_host_name": "hostA", "uid": 0})
    assert raw == b"our_host_name=hostA uid=0\0"
    assert wire.parse_state_text(raw) == {"our_host_name": "hostA", "uid": "0"}
    long = wire.state_text({"key": "x" * 9000})
    assert len(long) == 4096 and long.endswith(b"x\0")


@given(st.binary(max_size=200))
def test_any_state_text_is_read_somehow(raw: bytes) -> None:
    assert all("=" not in key for key in wire.parse_state_text(raw))


def test_a_state_record_with_a_text_beyond_the_limit_is_refused() -> None:
    raw = bytearray(State(StateType.HOST, text_length=4096).pack())
    assert State.unpack(bytes(raw)).text_length == 4096
    raw[72:76] = (4097).to_bytes(4, "little")
    with pytest.raises(BadMessage, match="4097"):
        State.unpack(bytes(raw))


@given(paths.filter(lambda path: len(path.encode("utf-8", "surrogateescape")) < 128), st.binary(max_size=127))
def test_a_kill_path_comes_back_as_it_was_sent(path: str, args: bytes) -> None:
    args = args.split(b"\0")[0]
    assert wire.unpack_killpath(wire.pack_killpath(path, args)) == (path, args)
    with pytest.raises(BadMessage):
        wire.unpack_killpath(wire.pack_killpath(path, args)[:255])
