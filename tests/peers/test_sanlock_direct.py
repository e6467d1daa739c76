"""`leasehold sanlock direct` beside `sanlock direct`: the same words, the same bytes, the same exit codes."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leasehold_daemon import ROOT
from tests.support.peers import zeroed_image

pytestmark = pytest.mark.peers

VECTORS = Path(__file__).resolve().parents[1] / "data" / "vectors"
OURS = [sys.executable, "-m", "leases.cli.main", "sanlock", "direct"]
THEIRS = ["sanlock", "direct"]


def run(argv: list[str], words: tuple[str, ...], directory: Path) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SANLOCK_RUN_DIR": "/nonexistent"}
    done = subprocess.run([*argv, *words], cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.fixture
def twins(images: Path) -> tuple[Path, Path]:
    """Two directories with the same images: one for the real command, one for ours."""
    places = []
    for name in ("theirs", "ours"):
        place = images / name
        place.mkdir()
        zeroed_image(place / "a.img", 32)
        for vector in ("ls_512_1m_two_joined", "res_512_1m_ex_host1", "res_512_1m_sh_two", "rindex_512_1m_five"):
            (place / f"{vector}.img").write_bytes(lzma.decompress((VECTORS / f"{vector}.img.xz").read_bytes()))
        places.append(place)
    return places[0], places[1]


#: command lines in the order in which they are run on the same image
STEPS: list[tuple[str, ...]] = [
    ("init", "-s", "LS:0:a.img:0", "-o", "1"),
    ("init", "-r", "LS:RA:a.img:1M"),
    ("init", "-r", "LS:RB:a.img:2097152", "-n", "5"),
    ("init", "-r", "LS:RC:a.img:8M", "-Z", "4096", "-A", "8M"),
    ("init", "-r", "LS:RX:none.img:0"),
    ("init", "-r", "LS:RX:a.img:3M", "-Z", "512"),
    ("read_leader", "-s", "LS:1:a.img:0"),
    ("read_leader", "-s", "LS:2:a.img:0"),
    ("read_leader", "-r", "LS:RA:a.img:1M"),
    ("read_leader", "-r", "LS:RB:a.img:2M"),
    ("read_leader", "-r", "LS:RX:a.img:1M"),
    ("format", "-x", "LS:a.img:20M"),
    ("lookup", "-x", "LS:a.img:20M"),
    ("lookup", "-x", "LS:a.img:20M", "-e", "V1"),
    ("update", "-x", "LS:a.img:20M", "-e", f"V1:{22 << 20}"),
    ("lookup", "-x", "LS:a.img:20M", "-e", "V1"),
    ("lookup", "-x", "LS:a.img:20M", "-e", f":{22 << 20}"),
    ("update", "-x", "LS:a.img:20M", "-e", f"V1:{22 << 20}", "-z", "1"),
    ("init", "-r", f"LS:V2:a.img:{23 << 20}"),
    ("rebuild", "-x", "LS:a.img:20M"),
    ("lookup", "-x", "LS:a.img:20M", "-e", "V2"),
    ("lookup", "-x", "XX:a.img:20M", "-e", "V2"),
    ("dump", "a.img:0:1048576"),
    ("dump", "a.img:1048576:1048576"),
    ("dump", "ls_512_1m_two_joined.img"),
    ("dump", "res_512_1m_ex_host1.img"),
    ("dump", "res_512_1m_sh_two.img"),
    ("dump", "rindex_512_1m_five.img"),
    ("dump", "none.img"),
    ("bogus",),
    ("init", "-r", "LS:RB:a.img:2097152", "-z", "1"),
]


#: padding of the request record beside the index's guarding lease: whatever the reference's memory held there
PADDING = slice((21 << 20) + 512 + 20, (21 << 20) + 512 + 24)


def content(image: Path) -> bytes:
    found = bytearray(image.read_bytes())
    found[PADDING] = bytes(4)
    return bytes(found)


def test_the_same_words_and_the_same_bytes(twins: tuple[Path, Path]) -> None:
    theirs, ours = twins
    for words in STEPS:
        assert run(OURS, words, ours) == run(THEIRS, words, theirs), words
        if words[-1] != "1" or words[0] != "init":  # a cleared lease has the time of its clearing in it
            assert content(ours / "a.img") == content(theirs / "a.img"), words
