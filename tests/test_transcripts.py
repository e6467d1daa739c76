"""Lease stories in tests/transcripts: each is told anew, and must go as it stands there (tests/support/story.py).

`pytest tests/test_transcripts.py --rewrite-transcripts` writes the outcomes into them; the diff is then reviewed.
"""

from __future__ import annotations

from difflib import unified_diff
from pathlib import Path

import pytest

from tests.support.story import tell
from tests.support.words import ScriptError

FOLDER = Path(__file__).parent / "transcripts"
STORIES = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("*.txt"))]


@pytest.mark.parametrize("path", STORIES)
def test_a_story_goes_as_it_is_written(path: Path, pytestconfig: pytest.Config) -> None:
    written = path.read_text()
    told = tell(written)
    assert not told.violations, told.violations
    if pytestconfig.getoption("rewrite_transcripts"):
        path.write_text(told.text)
        return
    lines = unified_diff(written.splitlines(), told.text.splitlines(), "as written", "as it goes now", lineterm="")
    difference = "\n".join(lines)
    assert not difference, f"{path.name}\n{difference}"


@pytest.mark.parametrize("path", STORIES)
def test_a_story_says_first_what_it_shows(path: Path) -> None:
    assert path.read_text().startswith("# ")


def test_a_story_told_twice_goes_the_same_way() -> None:
    script = "host 1 as alice\njoin h1\nacquire h1 r0\nrelease h1 r0\n"
    once = tell(script).text
    assert tell(once).text == once


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("host 1 as alice\ndance h1", "line 2: dance h1: no such command: dance"),
        ("join h1", "line 1: join h1: no host h1"),
        ("host 1 as alice\nacquire h1 r7", "line 2: acquire h1 r7: no lease r7"),
        ("host 1 as alice\nfinish h1", "line 2: finish h1: h1 has begun nothing, or it has ended"),
        ("host 1 as alice\nkill h1 twice", "line 2: kill h1 twice: too much: twice"),
        ("land", "line 1: land: only 0 I/Os are held back"),
        ("host 1 as alice\nvolume 2 leases", "line 2: volume 2 leases: the volume comes first"),
    ],
)
def test_a_script_that_can_t_be_read_says_where(script: str, complaint: str) -> None:
    with pytest.raises(ScriptError) as wrong:
        tell(script)
    assert str(wrong.value) == complaint


def test_two_owners_of_whom_one_is_leasehold_s_are_never_written_off_as_an_outcome() -> None:
    """Here by other hands on the disk, which wipe a shared mark."""
    script = "host 1 as alice\nhost 2 as bob\njoin h1 h2\nacquire h1 r0 shared\nwipe r0 block 1\nacquire h2 r0\n"
    told = tell(script)
    assert told.violations == ["r0 has two owners: h2 and h1"]
    assert "!! two owners: h2 and h1" in told.text
