# SPDX-License-Identifier: LGPL-2.1-or-later
"""Typed reading of one TOML file: every getter notes what is wrong and goes on, so that all errors come at once."""

from __future__ import annotations

import re
import tomllib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from kvmsup import cpulist, sizes
from kvmsup.errors import ConfigError, Diagnostic
from kvmsup.model import nesting
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any, TypeVar

    Parsed = TypeVar("Parsed")

Path = tuple[str | int, ...]
# Patterns are strings here and in the other parts of a TOML: re compiles those that a file has need of, once.
_BARE = r"[A-Za-z0-9_-]+"
_ALMOST_SIZE = r"([0-9]{1,15}) *([KMGT])(?:i?B)?"
# What is told of one section of a file, and what is looked for in all of it: somebody has to read that.
_MOST_TOLD, _MOST_FOUND = 50, 1000
_LONGEST_TOLD = 400
# PATH_MAX, and twice what Linux takes as its command line (arch/x86/include/asm/setup.h, COMMAND_LINE_SIZE).
_LONGEST_TEXT = 4096
# The CPUs that all lists of a file name together; 512 vCPUs that may each run on 1024 CPUs are as many.
_MOST_CPUS = 1 << 19


class Problem(NamedTuple):
    """One finding, by the key path it is about; `at_key` marks the key itself rather than its value."""

    path: Path
    what: str
    hint: str
    at_key: bool
    severity: str


class Document:
    """One TOML file: its text, its values and what was found wrong with them so far."""

    def __init__(self, file: str, content: bytes) -> None:
        """Read `content`, the bytes of the file called `file` in messages.

        Raises ConfigError when it is not UTF-8 or not TOML.
        """
        self.file = file
        self.problems: list[Problem] = []
        self.cpus_left = _MOST_CPUS
        self._found: Counter[tuple[Path, str]] = Counter()
        try:
            # A byte order mark is what some editors leave; tomllib would take it for a part of the first key.
            self.text = content.removeprefix(BOM_UTF8).decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode()  # without the mark
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            what = f"not UTF-8: byte 0x{error.object[error.start]:02x}"
            raise ConfigError([Diagnostic(file, line, column, what, "save the file as UTF-8")]) from None
        self.values: Mapping[str, Any] = self._parsed()

    def _parsed(self) -> dict[str, Any]:
        file = self.file
        if line := nesting.crowded(self.text):
            raise ConfigError([Diagnostic(file, line, 1, f"not read: a key of over {nesting.MOST} parts")])
        try:
            values = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError([_syntax(file, self.text, str(error))]) from None
        except RecursionError:
            raise ConfigError([Diagnostic(file, 0, 0, "not TOML: nested too deeply")]) from None
        except ValueError:  # of int(), which takes 4300 digits at the most
            raise ConfigError([Diagnostic(file, 0, 0, "not TOML: a number with thousands of digits")]) from None
        if nesting.is_deep(values):
            raise ConfigError([Diagnostic(file, 0, 0, f"not read: tables in tables, over {nesting.MOST} deep")])
        return values

    def note(self, path: Path, what: str, hint: str = "", *, at_key: bool = False, severity: str = "error") -> None:
        """Keep a finding, or count it where its section has many already. Raises ConfigError when there is no end."""
        section = path[:1] if len(path) > 1 else ()
        self._found[section, severity] += 1
        if self._found[section, severity] <= _MOST_TOLD:
            self.problems.append(Problem(path, what, hint, at_key, severity))
        if self._found.total() > _MOST_FOUND:
            what = f"not read any further after {_MOST_FOUND} findings"
            raise ConfigError([Diagnostic(self.file, 0, 0, what), *self.diagnostics()])

    def diagnostics(self) -> list[Diagnostic]:
        """What was found, with its places in the file, sorted by place."""
        if not self.problems:
            return []
        from kvmsup.model import positions

        places = positions.places(self.text)
        problems = [*self.problems, *self._uncounted()]
        return sorted(self._diagnostic(problem, places, positions) for problem in problems)

    def _uncounted(self) -> Iterator[Problem]:
        """One for each section that has more than are told."""
        for (section, severity), count in self._found.items():
            if count > _MOST_TOLD:
                what = f"{count} findings like these, of which {_MOST_TOLD} are told"
                yield Problem(section, what, "", False, severity)

    def _diagnostic(self, problem: Problem, places: Mapping[Path, Any], positions: Any) -> Diagnostic:
        path = problem.path
        while path and path not in places:
            path = path[:-1]
        what = _short(f"{dotted(problem.path)}: {problem.what}" if problem.path else problem.what)
        hint = _short(problem.hint)
        if not path:
            return Diagnostic(self.file, 0, 0, what, hint, severity=problem.severity)
        place = places[path]
        ends = (place.key, place.key_end) if problem.at_key else (place.value, place.value_end)
        found = positions.spot(self.text, *ends)
        return Diagnostic(
            self.file,
            found.line,
            found.column,
            what,
            hint,
            found.source,
            found.width,
            problem.severity,
        )


def _short(text: str) -> str:
    """`text`, in which a value from the file may be thousands of characters long."""
    return text if len(text) <= _LONGEST_TOLD else f"{text[:_LONGEST_TOLD]}…"


def _syntax(file: str, text: str, said: str) -> Diagnostic:
    """tomllib tells the place only within its message: "… (at line 3, column 7)" or "… (at end of document)"."""
    from kvmsup.model.positions import spot

    what, _, where = said.rpartition(" (at ")
    words = where.rstrip(")").replace(",", "").split()
    if words[:1] == ["line"]:
        lines = text.split("\n")
        start = sum(len(line) + 1 for line in lines[: int(words[1]) - 1]) + int(words[3]) - 1
    else:
        start = len(text.rstrip("\n"))
    found = spot(text, start, start + 1)
    return Diagnostic(file, found.line, found.column, f"not TOML: {what or said}", "", found.source, 1)


def dotted(path: Path) -> str:
    """`path` as the user writes it: placement.vcpu.0, cpu.features[1], "odd key"."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if re.fullmatch(_BARE, part) else ascii(part) if not part.isprintable() else f'"{part}"'
            text += f".{key}" if text else key
    return text


def nearest(word: str, known: Sequence[str]) -> str:
    """The one of `known` that `word` most likely means, or ""."""
    if len(word) > 60:  # nothing is called so
        return ""
    import difflib

    return next(iter(difflib.get_close_matches(word, known, 1)), "")


_KINDS = {bool: "true or false", int: "a whole number", str: "a string", list: "a list", dict: "a table"}


def _told(value: object) -> str:
    """`value` as a message names it."""
    if isinstance(value, str):
        return f'"{value}" is a string' if len(value) <= 40 and value.isprintable() else "this is a string"
    if isinstance(value, bool):
        return f"{str(value).lower()} is true or false"
    if isinstance(value, int):
        return f"{_figures(value)} is a whole number"
    if isinstance(value, float):
        return f"{value} is a number"
    kinds: dict[type, str] = {list: "this is a list", dict: "this is a table"}
    return kinds.get(type(value), "this is a date or time")


def _figures(value: int) -> str:
    """`value` in digits; what TOML allows and nobody means would be thousands of them."""
    return str(value) if -(1 << 63) <= value < 1 << 63 else "this"


class Table:
    """One table of a Document. Getters return their default where the key is absent or wrong."""

    def __init__(self, document: Document, path: Path, values: Mapping[str, Any], known: Sequence[str]) -> None:
        """Notes every key of `values` that is not in `known`, with the nearest one that is."""
        self.document = document
        self.path = path
        self.values = values
        for key in values:
            if known and key not in known:
                near = nearest(key, known)
                hint = f"did you mean {near}?" if near else f"known here: {', '.join(known)}"
                self.note(key, "unknown key", hint, at_key=True)

    def note(self, key: str, what: str, hint: str = "", *, at_key: bool = False, severity: str = "error") -> None:
        """Note a finding about `key`, or about the table itself where `key` is ""."""
        path = (*self.path, key) if key else self.path
        self.document.note(path, what, hint, at_key=at_key, severity=severity)

    def _typed(self, key: str, kind: type, example: str) -> Any:
        value = self.values.get(key)
        if value is None or type(value) is kind:
            return value
        self.note(key, f"{_told(value)}; expected {_KINDS[kind]}", f"{key} = {example}" if example else "")
        return None

    def boolean(self, key: str, default: bool) -> bool:
        value = self._typed(key, bool, str(default).lower())
        return default if value is None else bool(value)

    def integer(self, key: str, low: int, high: int) -> int | None:
        value: int | None = self._typed(key, int, str(low))
        if value is not None and not low <= value <= high:
            self.note(key, f"{_figures(value)} is out of range", f"{low} to {high}")
            return None
        return value

    def text(self, key: str, default: str, example: str = '"…"') -> str:
        """A string of one printable line; for anything else a problem is noted and the default returned."""
        value: str | None = self._typed(key, str, example)
        if value is None:
            return default
        # Line ends and whatever else cannot be seen have no place in a unit file, an argv or a journal line.
        bad = next((char for char in value if not char.isprintable()), "")
        if bad:
            what = f"has a character that cannot be printed: U+{ord(bad):04X}"
            self.note(key, what, "use one line of printable text")
            return default
        if len(value.encode()) > _LONGEST_TEXT:
            self.note(key, f"has {len(value.encode())} bytes", f"{_LONGEST_TEXT} at the most")
            return default
        return value

    def choice(self, key: str, options: Sequence[str], default: str) -> str:
        value = self.text(key, default, f'"{options[0]}"')
        if value in options or key not in self.values or value == default:
            return value
        near = nearest(value, options)
        self.note(key, f'"{value}" is not one of {", ".join(options)}', f"did you mean {near}?" if near else "")
        return default

    def size(self, key: str) -> int | None:
        """Bytes, or None where the key is absent or wrong."""
        size = self._parsed(key, sizes.parse, '"4G"', _size_hint)
        text = str(self.values.get(key)).strip()
        if size and text.isdigit() and size < sizes.UNITS["M"]:
            # Legal, and never what is meant.
            self.note(key, f'"{text}" without a unit are {text} bytes', _size_hint(text))
            return None
        return size

    def cpus(self, key: str, example: str) -> frozenset[int] | None:
        """A list of CPUs or nodes, never empty; None where the key is absent or wrong."""
        found = self._parsed(key, cpulist.parse, example, _no_hint)
        if found is not None and not found:
            self.note(key, "is an empty list", f"leave {key} out, or name at least one: {key} = {example}")
            return None
        self.document.cpus_left -= len(found or ())
        if self.document.cpus_left < 0:
            what = f"the lists of this file name over {_MOST_CPUS} CPUs together"
            self.note(key, what, "name a vCPU's own CPUs for it, or leave the choice to kvmsup")
            return None
        return found

    def _parsed(
        self, key: str, parse: Callable[[str], Parsed], example: str, hint: Callable[[str], str]
    ) -> Parsed | None:
        text: str | None = self._typed(key, str, example)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            shown = text if text.isprintable() else ascii(text)[1:-1]
            self.note(key, f'"{shown}" {error}', hint(text))
            return None

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings of one line each."""
        values: list[object] = self._typed(key, list, '["…"]') or []
        found = []
        for index, value in enumerate(values):
            path = (*self.path, key, index)
            if not isinstance(value, str):
                self.document.note(path, f"{_told(value)}; expected a string")
            elif not value.isprintable():
                self.document.note(path, "has a character that cannot be printed", "use one line of printable text")
            else:
                found.append(value)
        return tuple(found)

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers from `low` to `high`; none where the key is absent or one of them is wrong."""
        values: list[object] = self._typed(key, list, f"[{low}]") or []
        found = []
        for index, value in enumerate(values):
            path = (*self.path, key, index)
            if not isinstance(value, int) or isinstance(value, bool):
                self.document.note(path, f"{_told(value)}; expected a whole number")
            elif not low <= value <= high:
                self.document.note(path, f"{_figures(value)} is out of range", f"{low} to {high}")
            else:
                found.append(value)
        return tuple(found) if len(found) == len(values) else ()

    def table(self, key: str, known: Sequence[str]) -> Table:
        """The table under `key`; an empty one where it is absent. No `known` means: any key."""
        path, values = (*self.path, key), self.values.get(key)
        if isinstance(values, list) and values and isinstance(values[0], dict):
            self.note(key, "this is a list of tables; expected a table", f"write [{dotted(path)}], with one bracket")
            return Table(self.document, (*path, 0), values[0], known)  # what is in it is looked at all the same
        return Table(self.document, path, self._typed(key, dict, "") or {}, known)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)


def _no_hint(_: str) -> str:
    return ""


def _size_hint(text: str) -> str:
    if near := re.fullmatch(_ALMOST_SIZE, text, re.IGNORECASE):
        written = f"{near[1]}{near[2].upper()}"
    elif text.isascii() and text.isdigit() and len(text) <= 15:
        written = f"{text}{'G' if len(text) < 4 else 'M'}"
    else:
        return 'such as "4G": K, M, G and T count to the base 1024'
    return f'write "{written}": K, M, G and T count to the base 1024' if written != text else ""
