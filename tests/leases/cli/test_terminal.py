"""`leasehold run` in the foreground of a terminal: the keyboard works as if the command were run directly."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PATIENCE = 60


class Screen:
    """A terminal and the program that was started on it, the leader of a session."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.text = ""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, environment)
        self.status: int | None = None

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} does not appear in {self.text!r}"
            assert self._read(), f"ended without {text!r}: {self.text!r}"

    def end(self) -> int:
        """Wait for the program's end; its exit code."""
        while self._read():
            pass
        _, self.status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(self.status)

    def _read(self) -> bool:
        assert select.select([self.terminal], [], [], PATIENCE)[0], f"nothing happens after {self.text!r}"
        try:
            data = os.read(self.terminal, 4096)
        except OSError:  # nobody has the other side any more
            return False
        self.text += data.decode()
        return bool(data)


@pytest.fixture
def screen(cli: Any) -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def start(*argv: str) -> Screen:
        screens.append(Screen(list(argv), cli.environment))
        return screens[-1]

    yield start
    for one in screens:
        if one.status is None:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        os.close(one.terminal)


def test_the_keyboard_is_the_commands(cli: Any, volume: Any, screen: Callable[..., Screen]) -> None:
    script = "echo ready; read line; echo got $line; exit 5"
    shown = screen(*cli.argv("run", "--volume", volume.path, volume.lease(), "--", "sh", "-c", script))
    shown.wait_for("ready")
    shown.type("word\n")
    shown.wait_for("got word")
    assert shown.end() == 5


def test_ctrl_c_reaches_the_command(cli: Any, volume: Any, screen: Callable[..., Screen]) -> None:
    script = "trap 'echo asked; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    shown = screen(*cli.argv("run", "--volume", volume.path, volume.lease(), "--", "sh", "-c", script))
    shown.wait_for("ready")
    shown.type("\x03")
    assert shown.end() == 9
    assert shown.text.count("asked") == 1


def test_ctrl_c_before_the_command_runs_leaves(cli: Any, volume: Any, screen: Callable[..., Screen]) -> None:
    shown = screen(*cli.argv("run", "--volume", volume.path, volume.lease(), "--", "echo", "COMMAND"))
    shown.wait_for("about 2 s")
    shown.type("\x03")
    assert shown.end() == 130
    assert "COMMAND" not in shown.text


def test_ctrl_z_does_not_suspend_who_holds_a_lease(cli: Any, volume: Any, screen: Callable[..., Screen]) -> None:
    shown = screen(*cli.argv("run", "--volume", volume.path, volume.lease(), "--", "sh", "-c", "echo ready; cat"))
    shown.wait_for("ready")
    shown.type("\x1a")
    shown.wait_for("can't be suspended")
    shown.type("still here\n")
    shown.wait_for("still here\r\nstill here\r\n")
    shown.type("\x04")
    assert shown.end() == 0


def test_notices_leave_no_trace_on_the_screen(cli: Any, volume: Any, screen: Callable[..., Screen]) -> None:
    shown = screen(*cli.argv("run", "--volume", volume.path, volume.lease(), "--", "echo", "ran"))
    assert shown.end() == 0
    assert "about 2 s" in shown.text
    assert re.search(r"\r\x1b\[Kleasehold: holding \S+; in force: guardian process .*\r\nran\r\n$", shown.text)


def test_in_a_script_the_command_gets_the_terminal_when_it_reads(
    cli: Any, volume: Any, screen: Callable[..., Screen]
) -> None:
    name = volume.lease()
    run = [*cli.argv("run", "-q", "--volume", volume.path, name), "--"]
    command = ["sh", "-c", "echo ready; read line; echo got $line"]
    shown = screen("sh", "-c", '"$@"; read next; echo and $next', "sh", *run, *command)
    shown.wait_for("ready")
    shown.type("word\n")
    shown.wait_for("got word")
    shown.type("more\n")
    shown.wait_for("and more")
    assert shown.end() == 0


def test_a_shell_brings_it_to_the_foreground_again(cli: Any, volume: Any, screen: Callable[..., Screen]) -> None:
    words = " ".join(cli.argv("run", "-q", "--volume", volume.path, volume.lease()))
    shown = screen("bash", "--norc", "--noprofile", "-i")
    shown.type(f"PS1='$ '; {words} -- sh -c 'echo rea''dy; read line; echo g''ot $line' &\n")
    shown.wait_for("ready")
    shown.text = ""
    shown.type("fg\n")
    shown.wait_for("run -q")  # the shell says what it brings back
    shown.type("word\n")
    shown.wait_for("got word")
    shown.type("echo code $?\n")
    shown.wait_for("code 0")
    shown.type("exit\n")
    assert shown.end() == 0
