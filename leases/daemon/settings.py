"""How a daemon is set up: built-in values < configuration file < command line (daemon.md section 11)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from leases.daemon.numbers import DEFAULT_RUN_DIR, RUN_DIR_VARIABLE

CONFIG_FILE = "/etc/sanlock/sanlock.conf"
#: a line of the file that is longer counts as several
_MAX_LINE = 127
MAX_KILL_GRACE = 60


def default_run_dir() -> str:
    return os.environ.get(RUN_DIR_VARIABLE, DEFAULT_RUN_DIR)


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds. The names are those of the configuration file, where it has them."""

    run_dir: str = field(default_factory=default_run_dir)
    our_host_name: str = ""
    #: a kind of leases.keeper.watchdog
    watchdog: str = "auto"
    watchdog_fire_timeout: int = 60
    io_timeout: int = 10
    #: from the start of recovery until SIGKILL; None: as the watchdog's time allows
    kill_grace: int | None = None
    #: how long another host's bit stays set; None: 6 io_timeouts
    bitmap_seconds: int | None = None
    high_priority: bool = True
    mlock_level: int = 1
    sh_retries: int = 8
    renewal_read_extend_sec: int | None = None
    renewal_history_size: int = 180
    write_init_io_timeout: int = 60
    max_worker_threads: int = 64
    quiet_fail: bool = True
    use_aio: bool = True
    debug_renew: bool = False
    debug_clients: bool = False
    #: the most detailed level that is written to stderr: 3 errors, 4 warnings, 6 what happens, 7 each command
    log_level: int = 6
    #: user and group that own the socket; "" for those of this process
    uname: str = ""
    gname: str = ""
    #: further groups whose members may do everything
    admin_groups: tuple[str, ...] = ()
    #: take up again what an earlier daemon held
    adopt: bool = True

    @property
    def use_watchdog(self) -> bool:
        return self.watchdog != "none"


class BadSetting(ValueError):
    """A value that can't be used; the message says which."""


def _flag(text: str) -> bool:
    return _number(text) != 0


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadSetting(f"{text!r} is no number") from None


def _watchdog(text: str) -> str:
    return "wdmd" if _flag(text) else "none"


def _grace(text: str) -> int | None:
    """Values that are out of range are ignored, as the reference does."""
    grace = _number(text)
    return grace if 0 <= grace <= MAX_KILL_GRACE else None


def _workers(text: str) -> int:
    return max(2, _number(text))


#: key of the file -> field, how its value is read
_KEYS: dict[str, tuple[str, Any]] = {
    "quiet_fail": ("quiet_fail", _flag),
    "debug_renew": ("debug_renew", _flag),
    "debug_clients": ("debug_clients", _flag),
    "use_aio": ("use_aio", _flag),
    "use_watchdog": ("watchdog", _watchdog),
    "watchdog": ("watchdog", str),
    "watchdog_fire_timeout": ("watchdog_fire_timeout", _number),
    "io_timeout": ("io_timeout", _number),
    "kill_grace_seconds": ("kill_grace", _grace),
    "high_priority": ("high_priority", _flag),
    "mlock_level": ("mlock_level", _number),
    "sh_retries": ("sh_retries", _number),
    "uname": ("uname", str),
    "gname": ("gname", str),
    "our_host_name": ("our_host_name", str),
    "renewal_read_extend_sec": ("renewal_read_extend_sec", _number),
    "renewal_history_size": ("renewal_history_size", _number),
    "write_init_io_timeout": ("write_init_io_timeout", _number),
    "max_worker_threads": ("max_worker_threads", _workers),
    "run_dir": ("run_dir", str),
    "log_level": ("log_level", _number),
    "admin_groups": ("admin_groups", lambda text: tuple(text.split(","))),
    "adopt": ("adopt", _flag),
}
#: option of `sanlock daemon` -> key of the file; None: read and without meaning here
OPTIONS: dict[str, str | None] = {
    "-Q": "quiet_fail",
    "-R": "debug_renew",
    "-a": "use_aio",
    "-L": None,
    "-S": None,
    "-w": "use_watchdog",
    "-h": "high_priority",
    "-l": "mlock_level",
    "-U": "uname",
    "-G": "gname",
    "-e": "our_host_name",
    "-H": "renewal_history_size",
    "-t": "max_worker_threads",
    "-g": "kill_grace_seconds",
    "-b": "bitmap_seconds",
    "-o": None,
}
#: options without a value -> what they change
FLAGS: dict[str, dict[str, object]] = {"-D": {"log_level": 7}}


def with_file(settings: Settings, lines: Iterable[str]) -> Settings:
    """Settings changed by a configuration file. Keys that are unknown have no effect. Raises BadSetting."""
    for line in lines:
        text = line[:_MAX_LINE]
        if text.startswith("#") or "=" not in text:
            continue
        key, _, value = text.partition("=")
        words = value.split()
        if key.split() and words:
            settings = _changed(settings, key.split()[0], words[0])
    return settings


def read_file(settings: Settings, path: str) -> Settings:
    """Settings changed by the file at `path`; a file that is not there changes nothing. Raises BadSetting, OSError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return with_file(settings, file)
    except FileNotFoundError:
        return settings


def with_sanlock_options(settings: Settings, words: Iterable[str]) -> Settings:
    """Settings changed by the options of `sanlock daemon`. Raises BadSetting for what is none."""
    rest = iter(words)
    for word in rest:
        if word in FLAGS:
            settings = replace(settings, **FLAGS[word])  # type: ignore[arg-type]
            continue
        if word not in OPTIONS:
            raise BadSetting(f"unknown option {word!r}")
        value = next(rest, None)
        if value is None:
            raise BadSetting(f"option {word} needs a value")
        key = OPTIONS[word]
        if key == "bitmap_seconds":
            settings = replace(settings, bitmap_seconds=_number(value))
        elif key is not None:
            settings = _changed(settings, key, value)
    return settings


def _changed(settings: Settings, key: str, value: str) -> Settings:
    if key not in _KEYS:
        return settings
    name, read = _KEYS[key]
    try:
        return replace(settings, **{name: read(value)})
    except BadSetting as error:
        raise BadSetting(f"{key}: {error}") from None
