"""Lease stories in tests/transcripts: each is told anew, and must go as it stands there (tests/support/story.py).

`pytest tests/test_transcripts.py --rewrite-transcripts` writes the outcomes into them; the diff is then reviewed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.story import tell

FOLDER = Path(__file__).parent / "transcripts"
STORIES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in STORIES])
def test_a_story_goes_as_it_is_written(path: Path, pytestconfig: pytest.Config) -> None:
    text = path.read_text()
    told = tell(text)
    assert told.violations == []
    if pytestconfig.getoption("rewrite_transcripts"):
        path.write_text(told.text)
    else:
        assert told.text.splitlines() == text.splitlines()


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in STORIES])
def test_a_story_says_first_what_it_shows(path: Path) -> None:
    assert path.read_text().startswith("# ")
