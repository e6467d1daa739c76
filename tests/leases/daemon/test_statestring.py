"""Lockspaces, resources and states as text: beside the reference's library, byte for byte."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leases.daemon.statestring import (
    BadText,
    export_path,
    format_lockspace,
    format_resource,
    format_state,
    parse_index,
    parse_index_entry,
    parse_lockspace,
    parse_resource,
    parse_state,
)
from leases.daemon.wire import Disk, Index, IndexEntry, Lockspace, Resource
from paxos.errors import InvalidUse
from tests.support.peers import SYSTEM_PYTHON

#: reads (function, text) a line, answers with what the reference's library makes of it
_LIBRARY = r"""
import ctypes, sys
from ast import literal_eval
L = ctypes.CDLL("libsanlock.so.1")
u32, u64, char = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_char
class Disk(ctypes.Structure):
    _fields_ = [("path", char * 1024), ("offset", u64), ("pad1", u32), ("pad2", u32)]
class Res(ctypes.Structure):
    _fields_ = [("ls", char * 48), ("name", char * 48), ("lver", u64), ("data64", u64), ("data32", u32),
                ("unused", u32), ("flags", u32), ("num_disks", u32), ("disks", Disk * 4)]
class Space(ctypes.Structure):
    _fields_ = [("name", char * 48), ("host_id", u64), ("flags", u32), ("disk", Disk)]
def plain(r):
    return (r.ls, r.name, [(d.path, d.offset) for d in r.disks[: r.num_disks]], r.flags, r.lver)
def resource(text):
    found = ctypes.POINTER(Res)()
    result = L.sanlock_str_to_res(ctypes.create_string_buffer(text), ctypes.byref(found))
    return result if result else plain(found[0])
def resource_text(text):
    found, out = ctypes.POINTER(Res)(), ctypes.c_char_p()
    result = L.sanlock_str_to_res(ctypes.create_string_buffer(text), ctypes.byref(found))
    if result:
        return result
    L.sanlock_res_to_str(found, ctypes.byref(out))
    return out.value
def lockspace(text):
    found = Space()
    result = L.sanlock_str_to_lockspace(ctypes.create_string_buffer(text), ctypes.byref(found))
    return result if result else (found.name, found.host_id, found.disk.path, found.disk.offset)
def state(text):
    count, found = ctypes.c_int(), ctypes.POINTER(ctypes.POINTER(Res))()
    result = L.sanlock_state_to_args(ctypes.create_string_buffer(text), ctypes.byref(count), ctypes.byref(found))
    return result if result else [plain(found[i][0]) for i in range(count.value)]
def path(text):
    out = ctypes.create_string_buffer(3000)
    L.sanlock_path_export(out, ctypes.create_string_buffer(text), 3000)
    return out.value
for line in sys.stdin:
    name, text = literal_eval(line)
    print(repr(globals()[name](text)), flush=True)
"""


class Library:
    """The reference's library, in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _LIBRARY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, function: str, text: bytes) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(repr((function, text)) + "\n")
        return ast.literal_eval(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    running = Library()
    yield running
    running.close()


def plain(resource: Resource) -> tuple[Any, ...]:
    places = [(disk.path.encode("utf-8", "surrogateescape"), disk.offset) for disk in resource.disks]
    return resource.lockspace, resource.name, places, resource.flags, resource.lver


RESOURCES = [
    b"LS:RA:/p:1",
    b"LS:RA:/p:010",
    b"LS:RA:/p:5:7",
    b"LS:RA:/p:5:010",
    b"LS:RA:/p:5:0x1f",
    b"LS:RA:/p:5:SH",
    b"LS:RA:/p:5:SHARED",
    b"LS:RA:/p:0:18446744073709551615",
    b"LS:RA",
    b":RA:/p:1",
    b"LS::/p:1",
    b"a\\:b:c\\ d:/p\\:x:1",
    b"a:b:/p:1:/q:2",
    b"a:b:/p:1:/q:2:3",
    b"a:b:/1:1:/2:2:/3:3:/4:4:5",
    b"a:b:/p\\\\x:1",
    b"x" * 47 + b":" + b"y" * 48 + b":/p:1",
    b"LS:RA:/" + b"x" * 1022 + b":1",
    b"L\xffS:R\xfe:/p\xfd:1",
]
#: none of these is a resource to either
BAD_RESOURCES = [
    b"",
    b"LS",
    b"LS:RA:/p",
    b"LS:RA:/p:abc",
    b"LS:RA:/p:",
    b"LS:RA:/p:5:",
    b"LS:RA::5",
    b"LS:RA:/p:1\\",
    b"a:b:/1:1:/2:2:/3:3:/4:4:/5:5",
    b"x" * 49 + b":RA:/p:1",
    b"LS:" + b"x" * 49 + b":/p:1",
    b"LS:RA:/" + b"x" * 1023 + b":1",
]
#: the reference takes what it can read of a number, and says nothing
HALF_READ = [b"LS:RA:/p:12x", b"LS:RA:/p:0x10", b"LS:RA:/p:-1", b"LS:RA:/p:5:7x", b"LS:RA:/p:18446744073709551616"]


@pytest.mark.peers
@pytest.mark.parametrize("text", RESOURCES)
def test_a_resource_is_read_and_written_as_the_library_does(text: bytes, library: Library) -> None:
    found = parse_resource(text)
    assert plain(found) == library.ask("resource", text)
    assert format_resource(found) == library.ask("resource_text", text)


@pytest.mark.peers
@pytest.mark.parametrize("text", BAD_RESOURCES)
def test_what_the_library_refuses_as_a_resource_is_a_typed_error(text: bytes, library: Library) -> None:
    with pytest.raises(BadText):
        parse_resource(text)
    assert library.ask("resource", text) < 0


@pytest.mark.parametrize("text", HALF_READ)
def test_numbers_are_read_whole_or_not_at_all(text: bytes) -> None:
    with pytest.raises(BadText, match="resource"):
        parse_resource(text)


def test_offsets_may_be_given_in_mib() -> None:
    assert parse_resource(b"LS:RA:/p:3M").disks == (Disk("/p", 3 << 20),)


@pytest.mark.peers
@pytest.mark.parametrize(
    "text",
    [
        b"LS:1:/p:0",
        b"LS",
        b"LS:1",
        b"LS:1:/p",
        b":0:/p:3",
        b"",
        b"LS:010:/p\\:a:16",
        b"L\\:S:1:/p:0",
        b"LS:1:/p\\\\q:0",
    ],
)
def test_a_lockspace_is_read_as_the_library_does(text: bytes, library: Library) -> None:
    found = parse_lockspace(text)
    path = found.disk.path.encode("utf-8", "surrogateescape")
    assert (found.name, found.host_id, path, found.disk.offset) == library.ask("lockspace", text)


@pytest.mark.parametrize("text", [b"LS:x:/p:0", b"LS:1:/p:x", b"LS:1:/p:0:5", b"x" * 49 + b":1:/p:0", b"LS:1:/p:0\0"])
def test_what_is_no_lockspace_is_a_typed_error(text: bytes) -> None:
    with pytest.raises(BadText, match="lockspace"):
        parse_lockspace(text)


@pytest.mark.peers
@pytest.mark.parametrize("path", [b"/a b:c", b"/a\\ b", b"/a\\", b"\\\\ x", b"a\\\\:", b"::  ", b"", b"/\xff :"])
def test_a_path_is_escaped_as_the_library_does(path: bytes, library: Library) -> None:
    assert export_path(path) == library.ask("path", path)


@pytest.mark.peers
@pytest.mark.parametrize(
    "text",
    [
        b"LS:RA:/p:1:3 LS:RB:/p:2:SH",
        b"LS:RA:/p q:1:3 LS:RB:/p:2:SH",
        b"LS:R A:/p:1:3",
        b"LS:RA:/p\\ q:1:3 LS:RB:/p:2:SH",
        b"LS:RA:/p:1:3  LS:RB:/p:2:SH",
    ],
)
def test_a_state_is_read_as_the_library_does(text: bytes, library: Library) -> None:
    assert [plain(resource) for resource in parse_state(text)] == library.ask("state", text)


@pytest.mark.parametrize("text", [b"", b" ", b"LS:RA:/p:1:3 ", b"LS:RA:/p:1:3 x", b"junk"])
def test_a_state_that_makes_no_sense_is_a_typed_error(text: bytes) -> None:
    with pytest.raises(BadText):
        parse_state(text)


def test_indexes_and_their_entries() -> None:
    assert parse_index(b"LS:/p\\:q:1M") == Index(b"LS", Disk("/p:q", 1 << 20))
    assert parse_index(b"LS:/p") == Index(b"LS", Disk("/p"))
    assert parse_index_entry(b"V1") == IndexEntry(b"V1")
    assert parse_index_entry(b"V1:5") == IndexEntry(b"V1", 5)
    assert parse_index_entry(b":5") == IndexEntry(b"", 5)
    for bad in (b"LS", b"LS::0", b"LS:/p:x", b"LS:/p:0:0"):
        with pytest.raises(BadText):
            parse_index(bad)
    with pytest.raises(BadText):
        parse_index_entry(b"a:1:2")


def test_a_text_that_would_be_too_long_is_not_written() -> None:
    disks = (Disk("/" + "x" * 1000 + ":" * 22),) * 4
    assert len(format_resource(Resource(b"LS", b"RA", disks[:3]))) < 4400
    with pytest.raises(InvalidUse, match="4400"):
        format_resource(Resource(b"LS", b"RA", (Disk("/" + ":" * 1022),) * 4))


# a name with a separator in it, or a path with a backslash, has no text that says just this
names = st.binary(max_size=48).filter(lambda raw: not set(raw) & set(b"\0:\\ "))
paths = st.binary(min_size=1, max_size=60).filter(lambda raw: not set(raw) & set(b"\0\\"))
disks = st.builds(Disk, paths.map(lambda raw: raw.decode("utf-8", "surrogateescape")), st.integers(0, (1 << 64) - 1))
resources = st.builds(
    lambda lockspace, name, places, shared, lver: Resource(
        lockspace, name, tuple(places), 4 if shared else 1, 0 if shared else lver
    ),
    names,
    names,
    st.lists(disks, min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, (1 << 64) - 1),
)


@given(st.lists(resources, min_size=1, max_size=4))
def test_what_is_written_is_read_again(held: list[Resource]) -> None:
    assert parse_state(format_state(held)) == held


@given(names, st.integers(0, (1 << 64) - 1), disks)
def test_a_lockspace_that_is_written_is_read_again(name: bytes, host_id: int, disk: Disk) -> None:
    lockspace = Lockspace(name, host_id, disk)
    assert parse_lockspace(format_lockspace(lockspace)) == lockspace


@given(st.binary(max_size=80) | st.text(alphabet="LS:R\\ /p0123xMH", max_size=80).map(str.encode))
def test_any_text_is_read_or_a_typed_error(text: bytes) -> None:
    for parse in (parse_resource, parse_lockspace, parse_state, parse_index, parse_index_entry):
        try:
            parse(text)
        except BadText as error:
            assert str(error)
