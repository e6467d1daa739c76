"""The rules of the house that a machine can check: floors, purity of the protocol, sizes of modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("paxos", "leases", "backends")
#: a protocol opens nothing, starts no thread, reads no clock and rolls no dice of its own
WORLDLY = {
    "threading",
    "_thread",
    "socket",
    "time",
    "random",
    "os",
    "select",
    "asyncio",
    "subprocess",
    "multiprocessing",
}
#: a table with one entry for each way an operation can end; it is read entry by entry
TABLES = {"paxos/errors.py"}


def modules(floor: str) -> list[Path]:
    return sorted(p.relative_to(ROOT) for p in (ROOT / floor).rglob("*.py"))


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path)) for path in paths]


def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a module imports, wherever in it, type checking included."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


PROTOCOL = [path for path in modules("paxos") if "disk" not in path.parts]


@pytest.mark.parametrize("path", named(PROTOCOL))
def test_the_protocol_touches_neither_threads_nor_sockets_nor_clocks_nor_dice(path: Path) -> None:
    assert not roots(path) & WORLDLY


@pytest.mark.parametrize("path", named(PROTOCOL))
def test_the_protocol_does_not_know_the_engine_that_drives_it(path: Path) -> None:
    assert not [name for name in imported(path) if name.startswith("paxos.disk")]


@pytest.mark.parametrize("path", named(modules("paxos")))
def test_paxos_knows_no_floor_above_it(path: Path) -> None:
    assert not roots(path) & {"leases", "backends", "tests", "bench"}


@pytest.mark.parametrize("path", named(modules("leases")))
def test_leases_reaches_backends_only_through_the_registry(path: Path) -> None:
    assert not roots(path) & {"backends", "tests", "bench"}


@pytest.mark.parametrize("path", named([path for floor in FLOORS for path in modules(floor)]))
def test_every_module_says_in_its_first_line_what_it_is_about(path: Path) -> None:
    tree = tree_of(path)
    if not tree.body:
        return  # an empty __init__ marks a package
    text = ast.get_docstring(tree)
    assert text, f"{path} has no docstring"
    assert text.splitlines()[0].strip()
    first = tree.body[0]
    assert first.lineno == 1


@pytest.mark.parametrize("path", named(modules("paxos")))
def test_a_module_of_the_protocol_is_short(path: Path) -> None:
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= (500 if str(path) in TABLES else 400)


@pytest.mark.parametrize("path", named(modules("paxos")))
def test_a_function_of_the_protocol_can_be_seen_at_once(path: Path) -> None:
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long


def test_paxos_imports_nothing_but_the_standard_library_numpy_and_checksums() -> None:
    allowed = {"paxos", "numpy", "crc32c", "crcmod"} | sys.stdlib_module_names
    strangers = {str(path): roots(path) - allowed for path in modules("paxos")}
    assert not {path: names for path, names in strangers.items() if names}


@pytest.mark.parametrize(
    "module", ["leases", "leases.client", "paxos.steps", "paxos.errors", "paxos.timing", "paxos.records"]
)
def test_what_a_client_imports_comes_without_numpy(module: str) -> None:
    """A client that only talks to the daemon must not pay 0.1 s and 20 MB for decoding areas."""
    check = f"import sys, {module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
