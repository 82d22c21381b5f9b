# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd's quoting, the only place that knows it (systemd.syntax(7); systemd.service(5), "Command lines").

A value that comes from a TOML must come out of systemd's parser as exactly the same value, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvmsup.records import NamedTuple

# What an unquoted word may consist of; everything else is put into double quotes.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,=+@")
_IN_UNITS = _PLAIN - frozenset("-/,=+@")
_ESCAPED = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$", "\n": "\\n", "\t": "\\t"}
_TABLE = str.maketrans(_ESCAPED)
_IN_PATHS = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%"})


class Variable(NamedTuple):
    """A variable of the unit's environment that systemd expands inside a word when it starts the command."""

    name: str


Part = str | Variable
Word = Sequence[Part]


def word(parts: Word) -> str:
    """One word of a command line: strings are taken literally, variables are left for systemd."""
    text = "".join([f"${{{part.name}}}" if isinstance(part, Variable) else _escaped(part) for part in parts])
    plain = _PLAIN.issuperset("".join([part for part in parts if isinstance(part, str)]))
    return text if plain and text else f'"{text}"'


def _escaped(text: str) -> str:
    # All words of all guests come by here at every daemon-reload, and one that needs more than a table is rare.
    if text.isprintable():
        return text.translate(_TABLE)
    return "".join(_ESCAPED.get(char, char if char.isprintable() else _numeric(char)) for char in text)


def _numeric(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())


def assignment(name: str, value: str) -> str:
    """`NAME=value` for Environment=, which takes words; a dollar sign means itself there (systemd.exec(5))."""
    return f'"{name}={_escaped(value).replace("$$", "$")}"'


def path(value: str) -> str:
    """A path as a word of a directive that takes paths, where a backslash takes the next character literally."""
    return f'"{value.translate(_IN_PATHS)}"'


def command(program: str, options: Iterable[Sequence[Word]]) -> str:
    """A command line over several lines: the program, then one option with its value to a line."""
    lines = [program, *(" ".join(map(word, option)) for option in options)]
    return " \\\n    ".join(lines)


def path_unit(path: str) -> str:
    """`path`, an absolute one, as the name of a unit without its suffix (systemd.unit(5), "String Escaping")."""
    names = [name for name in path.split("/") if name]
    return "-".join(_unit_name(name, first=index == 0) for index, name in enumerate(names))


def _unit_name(name: str, *, first: bool) -> str:
    plain = "".join(char if char in _IN_UNITS else _numeric(char) for char in name)
    return _numeric(".") + plain[1:] if first and plain.startswith(".") else plain


def text(value: str) -> str:
    """`value` for a directive that takes free text, such as Description=.

    Specifiers are resolved there, and a backslash at the end of the line would join the next one to it; a space
    behind the backslash prevents that and is stripped by systemd.
    """
    escaped = value.replace("%", "%%")
    return f"{escaped} " if escaped.endswith("\\") else escaped
