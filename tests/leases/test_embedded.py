"""The volume that a user has without having made one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leases.embedded import embedded_path, embedded_volume, ensure_lease
from leases.volume import Volume
from tests.support.volumes import Joiner

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state_home(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(directory))
    return directory


def test_it_lies_in_the_users_state_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embedded_path() == directory / "leasehold" / "volume"
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert embedded_path() == Path.home() / ".local/state/leasehold/volume"


def test_it_is_made_on_first_use_and_found_on_the_second() -> None:
    told: list[str] = []
    first = embedded_volume(lambda what, _seconds: told.append(what))
    assert "first use" in told[0] and first.lockspace == "local"
    status = embedded_path().stat()
    told.clear()
    second = embedded_volume(lambda what, _seconds: told.append(what))
    assert second.path == first.path and told == []
    assert embedded_path().stat().st_ino == status.st_ino
    assert first.check() == []


def test_programs_that_use_it_first_at_the_same_time_find_one_volume() -> None:
    program = "import os; from leases.embedded import embedded_volume as v; print(os.stat(v().path).st_ino)"
    runs = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT, text=True) for _ in range(4)
    ]
    numbers = {run.communicate()[0] for run in runs}
    assert len(numbers) == 1 and all(run.returncode == 0 for run in runs)
    assert sorted(path.name for path in embedded_path().parent.iterdir()) == ["making", "volume"]


def test_what_was_left_unfinished_does_not_disturb() -> None:
    embedded_path().parent.mkdir(parents=True)
    embedded_path().with_name("volume.new").write_bytes(b"half a volume")
    assert embedded_volume().lockspace == "local"


@pytest.mark.slow
def test_leases_are_made_as_they_are_needed(join: Joiner) -> None:
    volume = embedded_volume()
    first, second = join(volume, watchdog="none"), join(Volume(volume.path))
    ensure_lease(first, "vm1")
    ensure_lease(second, "vm1")
    ensure_lease(first, "vm1")
    assert [lease.name for lease in volume.leases()] == ["vm1"]
    first.acquire("vm1").release()
