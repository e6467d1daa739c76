"""The words of a command in a script, taken from left to right."""

from __future__ import annotations

import shlex


class ScriptError(Exception):
    """A line that can't be read, or that makes no sense where it stands."""


class Words:
    """The words of a command, from left to right."""

    def __init__(self, line: str) -> None:
        try:
            self._words = shlex.split(line)
        except ValueError as odd:
            raise ScriptError(str(odd)) from odd

    def __bool__(self) -> bool:
        return bool(self._words)

    def peek(self) -> str:
        return self._words[0] if self._words else ""

    def next(self) -> str:
        if not self._words:
            raise ScriptError("a word is missing at the end")
        return self._words.pop(0)

    def number(self) -> int:
        word = self.next()
        try:
            return int(word)
        except ValueError:
            raise ScriptError(f"{word} is no number") from None

    def take(self, word: str) -> bool:
        """Whether the next word is this one; then it is taken."""
        if self.peek() != word:
            return False
        self.next()
        return True

    def expect(self, word: str) -> None:
        if not self.take(word):
            raise ScriptError(f"{word!r} is missing")

    def one_of(self, *words: str) -> str:
        word = self.next()
        if word not in words:
            raise ScriptError(f"{word} is none of: {', '.join(words)}")
        return word

    def rest(self) -> list[str]:
        rest, self._words = self._words, []
        return rest

    def end(self) -> None:
        if self._words:
            raise ScriptError(f"too much: {' '.join(self._words)}")
