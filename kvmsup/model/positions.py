# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where in a TOML text each key and value stands: tomllib reads values but forgets their places.

It is loaded only when there is something to complain about, and only ever sees text that tomllib has accepted, so
it follows the grammar (toml.io/en/v1.0.0) without checking it.
"""

from __future__ import annotations

import re
import tomllib

from kvmsup.records import NamedTuple

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})|' + r"'''.*?'''(?:'{0,2})|" + r'"(?:\\.|[^"\\])*"|' + r"'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


# What of a longer line is shown; a place beyond it is told by its numbers alone.
_LONGEST_LINE = 300


class Place(NamedTuple):
    """Offsets into the text: of a key (or a table's header), and of its value."""

    key: int
    key_end: int
    value: int
    value_end: int


class Spot(NamedTuple):
    """A stretch of one line: line and column from 1, the line's text, and the width in characters."""

    line: int
    column: int
    source: str
    width: int


def spot(text: str, start: int, end: int) -> Spot:
    """The place of text[start:end], cut at the end of its first line; what cannot be printed is a ? in `source`.

    Of a long line `source` is the beginning, and nothing where the place is not in that.
    """
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    line = text[line_start : min(line_end, line_start + _LONGEST_LINE)].rstrip("\r")
    if start - line_start > len(line):
        line = ""
    source = "".join(char if char.isprintable() or char == "\t" else "?" for char in line)
    width = max(1, min(end, line_start + len(source)) - start)
    return Spot(text.count("\n", 0, start) + 1, start - line_start + 1, source, width)


def places(text: str) -> dict[Path, Place]:
    """Every key path of `text` (elements of arrays by their index) with its place."""
    return _Walk(text).document()


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, Place] = {}
        self.lengths: dict[Path, int] = {}

    def document(self) -> dict[Path, Place]:
        table: Path = ()
        while self._skip(_BLANK) < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._assignment(table)
        return self.found

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return self.at

    def _header(self) -> Path:
        start = self.at
        array = self.text.startswith("[[", start)
        self.at += 2 if array else 1
        name = self._element(self._dotted())
        self._skip(_SPACE)
        self.at += 2 if array else 1
        if array:
            count = self.lengths.get(name, 0)
            self.lengths[name] = count + 1
            name = (*name, count)
        place = Place(start, self.at, start, self.at)
        self.found[name] = place
        for depth in range(1, len(name)):
            self.found.setdefault(name[:depth], place)
        return name

    def _element(self, name: Path) -> Path:
        """`name` with the index of the last element behind every array of tables on the way."""
        path: Path = ()
        for part in name:
            if path in self.lengths:
                path = (*path, self.lengths[path] - 1)
            path = (*path, part)
        return path

    def _dotted(self) -> Path:
        path: Path = ()
        while True:
            self._skip(_SPACE)
            start = self.at
            self._skip(_KEY)
            path = (*path, _name(self.text[start : self.at]))
            self._skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return path
            self.at += 1

    def _assignment(self, table: Path) -> None:
        start = self._skip(_SPACE)
        key = self._dotted()
        key_end = start + len(self.text[start : self.at].rstrip())
        self.at += 1  # the "="
        value = self._skip(_SPACE)
        self._value((*table, *key))
        for depth in range(1, len(key) + 1):
            place = Place(start, key_end, value, self.at)
            self.found.setdefault((*table, *key[:depth]), place)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline(path)
        elif opening in "\"'":
            self._skip(_STRING)
        else:
            start = self.at
            self._skip(_SCALAR)
            self.at = start + len(self.text[start : self.at].rstrip())

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self.text[self._skip(_BLANK)] != "]":
            start = self.at
            self._value((*path, index))
            self.found[(*path, index)] = Place(start, self.at, start, self.at)
            index += 1
            if self.text[self._skip(_BLANK)] == ",":
                self.at += 1
        self.at += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        while self.text[self._skip(_BLANK)] != "}":
            self._assignment(path)
            if self.text[self._skip(_BLANK)] == ",":
                self.at += 1
        self.at += 1


def _name(written: str) -> str:
    """The key as tomllib gives it: quotes and escapes resolved."""
    if written[:1] in "\"'":
        return str(tomllib.loads(f"key = {written}")["key"])
    return written
