"""Settings: built-in values, the configuration file, the command line; and kill path arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from leases.cli.sanlock import BadArguments, read_arguments
from leases.daemon.helper import split_arguments
from leases.daemon.settings import BadSetting, Settings, read_file, with_file, with_sanlock_options


def test_a_file_changes_what_it_names() -> None:
    lines = [
        "# a comment\n",
        "our_host_name = alpha and what comes after the first word\n",
        "renewal_history_size=7\n",
        "  sh_retries\t= 3\n",
        "use_watchdog = 0\n",
        "no_such_key = 5\n",
        "quiet_fail\n",
    ]
    found = with_file(Settings(), lines)
    assert found.our_host_name == "alpha"
    assert (found.renewal_history_size, found.sh_retries, found.watchdog) == (7, 3, "none")
    assert found.quiet_fail is True


def test_a_file_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    assert read_file(Settings(), str(tmp_path / "none")) == Settings()


def test_a_value_that_is_no_number_is_named() -> None:
    with pytest.raises(BadSetting, match="sh_retries: 'many' is no number"):
        with_file(Settings(), ["sh_retries = many\n"])


def test_the_command_line_has_the_last_word() -> None:
    from_file = with_file(Settings(), ["our_host_name = file\n", "use_watchdog = 1\n"])
    found = with_sanlock_options(
        from_file, ["-D", "-w", "0", "-e", "line", "-g", "5", "-b", "12", "-R", "1", "-o", "3"]
    )
    assert (found.our_host_name, found.watchdog, found.kill_grace) == ("line", "none", 5)
    assert found.bitmap_seconds == 12
    assert found.debug_renew is True


def test_a_grace_out_of_range_is_ignored() -> None:
    assert with_sanlock_options(Settings(), ["-g", "61"]).kill_grace is None


@pytest.mark.parametrize("words", [["-w"], ["-y", "1"], ["status"], ["-w0"]])
def test_options_that_are_none_are_refused(words: list[str]) -> None:
    with pytest.raises(BadSetting):
        with_sanlock_options(Settings(), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", []),
        (b"a b", ["a", "b"]),
        (b"  a \t b  ", ["a", "b"]),
        (rb"arg1 arg\ 2", ["arg1", "arg 2"]),
        (rb"back\\slash", ["back\\slash"]),
        (rb"odd\x", ["odd\\x"]),
    ],
)
def test_kill_path_arguments_are_split_as_the_reference_does(text: bytes, words: list[str]) -> None:
    assert split_arguments(text) == words


def test_every_option_of_the_sanlock_command_is_one_letter_with_a_value() -> None:
    found = read_arguments(["add_lockspace", "-s", "LS:1:/p:0", "-o", "2", "-D"], positional=False)
    assert (found.action, found.text("s"), found.number("o"), found.debug) == ("add_lockspace", "LS:1:/p:0", 2, True)


def test_a_command_to_run_keeps_its_own_options() -> None:
    found = read_arguments(["command", "-r", "LS:R:/p:0", "-c", "/bin/sh", "-c", "exit 3"], positional=False)
    assert found.values == {"r": ["LS:R:/p:0"]}
    assert found.rest == ["/bin/sh", "-c", "exit 3"]


def test_letters_that_do_not_exist_are_said() -> None:
    with pytest.raises(BadArguments, match="unknown option: q"):
        read_arguments(["status", "-q", "1"], positional=False)
