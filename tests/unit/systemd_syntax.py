# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd's side of quoting, written again from systemd.syntax(7) and systemd.service(5) and from nothing else.

It is strict: what systemd would only warn about raises here.
"""

from __future__ import annotations

from collections.abc import Mapping

_WHITESPACE = " \t\n\r"
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39, "s": 32}


def directives(text: str) -> list[tuple[str, str]]:
    """Every NAME=VALUE of a unit file, continued lines joined; sections of others left out (systemd.unit(5), X-)."""
    found = []
    joined, ours = "", True
    for line in text.split("\n"):
        if line.lstrip(_WHITESPACE).startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        joined += line
        stripped = joined.strip(_WHITESPACE)
        joined = ""
        if stripped.startswith("[") and stripped.endswith("]"):
            ours = not stripped.startswith("[X-")
        elif stripped and ours:
            name, equals, value = stripped.partition("=")
            assert equals, f"neither a section nor an assignment: {stripped}"
            found.append((name.rstrip(_WHITESPACE), value.lstrip(_WHITESPACE)))
    return found


def words(value: str) -> list[str]:
    """The words of a command line, quotes and escapes resolved."""
    found: list[str] = []
    at = 0
    while True:
        while at < len(value) and value[at] in _WHITESPACE:
            at += 1
        if at == len(value):
            return found
        end = at
        while end < len(value) and value[end] not in _WHITESPACE:
            end += 1
        assert value[at:end] not in (";", "\\;"), "a semicolon of its own separates commands"
        word, at = _word(value, at)
        found.append(word.decode("utf-8"))


def _word(value: str, at: int) -> tuple[bytes, int]:
    word = bytearray()
    quote = ""
    while at < len(value):
        char = value[at]
        if char == "\\":
            escaped, at = _escape(value, at + 1)
            word += escaped
            continue
        at += 1
        if quote:
            if char == quote:
                quote = ""
            else:
                word += char.encode()
        elif char in "\"'":
            quote = char
        elif char in _WHITESPACE:
            return bytes(word), at
        else:
            word += char.encode()
    assert not quote, "a quote is not closed"
    return bytes(word), at


def _escape(value: str, at: int) -> tuple[bytes, int]:
    kind = value[at]
    if kind in _SIMPLE:
        return bytes((_SIMPLE[kind],)), at + 1
    if kind == "x":
        number, after = int(value[at + 1 : at + 3], 16), at + 3
    elif kind in "01234567":
        number, after = int(value[at : at + 3], 8), at + 3
    else:
        digits = {"u": 4, "U": 8}[kind]
        return chr(int(value[at + 1 : at + 1 + digits], 16)).encode(), at + 1 + digits
    assert 0 < number < 256
    return bytes((number,)), after


def specifiers(value: str) -> str:
    """`value` with %% resolved; a file of kvmsup's must not have any other."""
    text = ""
    at = 0
    while at < len(value):
        if value[at] == "%":
            assert value[at + 1 : at + 2] == "%", f"a specifier: {value[at : at + 2]}"
            at += 1
        text += value[at]
        at += 1
    return text


def environment(word: str, variables: Mapping[str, str]) -> str:
    """`word` with $$ and ${NAME} resolved, as when the command is run; a bare $NAME would be split into words."""
    text = ""
    at = 0
    while at < len(word):
        if word[at] != "$":
            text += word[at]
            at += 1
        elif word[at + 1] == "$":
            text += "$"
            at += 2
        else:
            assert word[at + 1] == "{", "an unescaped dollar sign"
            end = word.index("}", at)
            text += variables[word[at + 2 : end]]
            at = end + 1
    return text


def command(value: str, variables: Mapping[str, str]) -> list[str]:
    """The argv that a process gets from ExecStart=`value`."""
    return [environment(specifiers(word), variables) for word in words(value)]
