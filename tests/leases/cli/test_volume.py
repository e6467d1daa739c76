"""`leasehold volume` and `leasehold lease`, `host`, `explain`: what they show, as people and programs read it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def path(cli: Any) -> str:
    return str(cli.home / "new")


def test_a_created_volume_shows_its_sizes(cli: Any, path: str) -> None:
    made = cli.json("volume", "create", path, "--lockspace", "LS", "--leases", "3")
    assert made == cli.json("volume", "show", path)
    assert made["lockspace"] == "LS"
    assert (made["sector_size"], made["align_size"], made["max_hosts"]) == (512, 1 << 20, 2000)
    assert (made["leases"], made["max_leases"], made["joined_hosts"]) == (0, 3, 0)
    assert (made["offset"], made["index_offset"]) == (0, 1 << 20)
    assert Path(path).stat().st_size == 6 << 20


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--sector-size", "512"], (512, 1)),
        (["--align-size", "1M"], (512, 1)),
        (["--sector-size", "4096"], (4096, 8)),
        (["--align-size", "2M"], (4096, 2)),
        (["--sector-size", "4096", "--align-size", "1M"], (4096, 1)),
        (["--sector-size", "4096", "--align-size", "4194304"], (4096, 4)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_of_two_sizes_one_is_enough(cli: Any, path: str, options: list[str], sizes: tuple[int, int]) -> None:
    made = cli.json("volume", "create", path, "--lockspace", "LS", "--leases", "1", *options)
    assert (made["sector_size"], made["align_size"] >> 20) == sizes


def test_sizes_that_no_volume_has_are_refused(cli: Any, path: str) -> None:
    for options in (["--sector-size", "512", "--align-size", "8M"], ["--sector-size", "1024"], ["--align-size", "3M"]):
        failed = cli("volume", "create", path, "--lockspace", "LS", *options)
        assert failed.returncode == 64
        assert "use 512 with 1M" in failed.stderr
        assert not Path(path).exists()


def test_a_volume_is_not_overwritten_unless_forced(cli: Any, path: str) -> None:
    create = ["volume", "create", path, "--leases", "1", "--lockspace"]
    assert cli(*create, "one").returncode == 0
    refused = cli(*create, "two")
    assert refused.returncode == 64
    assert "one" in refused.stderr
    assert cli.json("volume", "show", path)["lockspace"] == "one"
    assert cli(*create, "two", "--force").returncode == 0
    assert cli.json("volume", "show", path)["lockspace"] == "two"


def test_people_are_told_what_to_do_next(cli: Any, path: str) -> None:
    done = cli("volume", "create", path, "--lockspace", "LS", "--leases", "1")
    assert "lockspace LS" in done.stdout
    assert f"leasehold lease create --volume {path} NAME" in done.stdout
    shown = cli("volume", "show", path).stdout
    assert "0 of 1" in shown


def test_a_sound_volume_passes_the_check(cli: Any, path: str) -> None:
    cli("volume", "create", path, "--lockspace", "LS", "--leases", "1")
    assert cli.json("volume", "check", path)["sound"] is True
    assert cli("volume", "check", path).returncode == 0


def test_a_damaged_volume_fails_the_check(cli: Any, path: str) -> None:
    cli("volume", "create", path, "--lockspace", "LS", "--leases", "1")
    with open(path, "r+b") as file:
        file.seek(6 * 512 + 20)
        file.write(b"damage")
    checked = cli.json("volume", "check", path, code=65)
    assert checked["sound"] is False
    assert [(finding["severity"], finding["offset"]) for finding in checked["findings"]] == [("error", 6 * 512)]
    for_people = cli("volume", "check", path)
    assert for_people.returncode == 65
    assert "host id 7" in for_people.stdout


def test_what_is_no_volume_is_said(cli: Any, path: str) -> None:
    Path(path).write_bytes(bytes(4 << 20))
    for command in (["volume", "show", path], ["volume", "check", path], ["lease", "list", "--volume", path]):
        failed = cli(*command)
        assert (failed.returncode, failed.stdout) == (65, "")
        assert failed.stderr.count("\n") == 1
        assert path in failed.stderr
    error = cli.json("volume", "show", path, code=65)["error"]
    assert set(error) == {"code", "name", "message", "advice", "facts"}
    assert error["name"] == "LEADER_MAGIC"


def test_a_volume_that_is_not_there_is_an_io_error(cli: Any, path: str) -> None:
    failed = cli("volume", "show", path)
    assert failed.returncode == 74
    assert path in failed.stderr
    assert cli.json("volume", "show", path, code=74)["error"]["facts"]["errno"] == 2


def test_a_lease_is_made_shown_listed_and_deleted(cli: Any, path: str) -> None:
    cli("volume", "create", path, "--lockspace", "LS", "--leases", "2", "--io-timeout", "1", "--hosts", "8")
    made = cli.json("lease", "create", "--volume", path, "vm1")
    assert (made["name"], made["offset"], made["mode"], made["num_hosts"]) == ("vm1", 3 << 20, "free", 8)
    assert cli.json("lease", "show", "--volume", path, "vm1") == made
    assert cli.json("lease", "list", "--volume", path) == [made]
    assert "vm1" in cli("lease", "list", "--volume", path).stdout
    assert str(3 << 20) in cli("lease", "show", "--volume", path, "vm1").stdout
    taken = cli.json("lease", "create", "--volume", path, "vm1", code=64)["error"]
    assert (taken["name"], taken["facts"]["offset"]) == ("EEXIST", 3 << 20)
    assert cli("lease", "delete", "--volume", path, "vm1").returncode == 0
    assert cli.json("lease", "list", "--volume", path) == []
    assert cli("lease", "list", "--volume", path).stdout.strip() == "no leases"
    for action in ("show", "delete"):
        missing = cli("lease", action, "--volume", path, "vm1")
        assert missing.returncode == 64
        assert "leasehold lease create" in missing.stderr


def test_a_full_index_says_so(cli: Any, path: str) -> None:
    cli("volume", "create", path, "--lockspace", "LS", "--leases", "1", "--io-timeout", "1")
    assert cli("lease", "create", "--volume", path, "vm1").returncode == 0
    full = cli("lease", "create", "--volume", path, "vm2")
    assert full.returncode == 64
    assert "no free entry" in full.stderr


def test_hosts_that_came_and_went_are_listed(cli: Any, path: str) -> None:
    cli("volume", "create", path, "--lockspace", "LS", "--leases", "1", "--io-timeout", "1")
    assert cli.json("host", "list", "--volume", path) == []
    assert "no host" in cli("host", "list", "--volume", path).stdout
    cli("lease", "create", "--volume", path, "vm1")
    (host,) = cli.json("host", "list", "--volume", path)
    assert (host["state"], host["generation"], host["io_timeout"]) == ("free", 1, 1.0)
    assert "left" in cli("host", "list", "--volume", path).stdout


def test_a_held_lease_is_explained(cli: Any, volume: Any) -> None:
    name = volume.lease()
    free = cli.json("explain", "--volume", volume.path, name)
    assert (free["free_in"], free["holders"], free["why_not_before"]) == (0.0, [], "")
    words = ["run", "--volume", volume.path, "--host-id", "77", name, "--", "sh", "-c", "echo up; cat"]
    holding = cli.start(*words, stdin=subprocess.PIPE)
    assert holding.stdout.readline() == "up\n"
    held = cli.json("explain", "--volume", volume.path, name)
    assert held["free_in"] is None
    assert held["renewed_ago"] < 4
    assert held["holders"][0]["host_id"] == 77
    assert held["holders"][0]["name"] in held["summary"]
    assert "68 s" in held["why_not_before"]
    assert "--wait" in held["advice"]
    text = cli("explain", "--volume", volume.path, name).stdout
    assert held["holders"][0]["name"] in text
    assert "why not before" in text
    watched = cli.json("host", "list", "--volume", volume.path, "--watch", "4")
    assert {host["host_id"]: host["state"] for host in watched}[77] == "live"


def test_without_a_volume_there_is_nothing_to_look_at_yet(cli: Any) -> None:
    for command in (["explain", "vm1"], ["lease", "list"], ["host", "list"]):
        failed = cli(*command)
        assert failed.returncode == 64
        assert "leasehold run" in failed.stderr


def test_wrong_command_lines_end_with_64_and_one_line(cli: Any, path: str) -> None:
    for words in (
        ["frobnicate"],
        ["volume"],
        ["volume", "create", path],
        ["volume", "create", path, "--lockspace", "LS", "--align-size", "big"],
        ["volume", "create", path, "--lockspace", "LS", "--io-timeout", "0"],
        ["volume", "create", path, "--lockspace", "LS", "--io-timeout", "256"],
        ["volume", "create", path, "--lockspace", "a" * 49],
        ["lease", "show", "--volume", path],
        ["host", "list", "--watch", "soon"],
        ["explain"],
        ["run", "name", "true"],
        ["run", "name", "--"],
        ["run", "--", "true"],
        ["run", "--wat", "1", "name", "--", "true"],
        ["run", "--host-id", "-1", "name", "--", "true"],
    ):
        failed = cli(*words)
        assert failed.returncode == 64, words
        assert failed.stderr.startswith("leasehold: "), words
        assert failed.stderr.count("\n") == 1, words
        assert not Path(path).exists()


def test_wrong_command_lines_are_told_as_json_too(cli: Any) -> None:
    error = cli.json("lease", "show", code=64)["error"]
    assert (error["name"], error["code"]) == ("EINVAL", -22)
    assert "NAME" in error["message"]
    assert error["advice"] == "see leasehold lease show --help"


def test_help_is_at_hand_everywhere(cli: Any) -> None:
    for words in (["--help"], ["run", "--help"], ["volume", "create", "--help"], ["explain", "-h"]):
        helped = cli(*words)
        assert (helped.returncode, helped.stderr) == (0, "")
        assert "leasehold" in helped.stdout
    assert cli("--version").stdout.startswith("leasehold ")


def test_nobody_reading_is_no_traceback(cli: Any, volume: Any) -> None:
    process = cli.start("lease", "list", "--volume", volume.path, "--json")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stdout = None
