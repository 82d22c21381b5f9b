# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables, their values and what is said about them → the text of a guest's file; pure.

The comments come from whoever asks, the values are quoted by the toml package. tomllib reads the text back, and a
value that does not come out as it went in is an error: two grammars never decide about one guest (docs/design.md, 8).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence

from kvmsup.errors import KvmsupError
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class Section(NamedTuple):
    """One table: its name, what is said about it, and its keys with their values.

    One that is not `there` is written as a comment, for somebody to complete.
    """

    table: str  # "": the keys above all tables
    comment: str
    values: dict[str, Any]
    there: bool = True


def head(name: str) -> list[str]:
    """What stands above everything in the file of the guest called `name`."""
    return [
        f"The KVM guest {name}: systemctl start kvm@{name}",
        f"All keys: kvmsup.guest(5). Mistakes: kvmsup check {name}. An edit applies from the next start on.",
    ]


def render(head: Iterable[str], sections: Iterable[Section], tail: Sequence[str] = ()) -> str:
    """The text of the file: `head` and `tail` are lines of comments.

    Raises KvmsupError where a value cannot be written, or there is no toml package.
    """
    lines = [*_comments(head), ""]
    wanted: dict[str, Any] = {}
    for section in sections:
        table = [f"[{section.table}]"] if section.table else []
        text = _assignments(section.values)
        if section.there:
            lines += [*table, *_comments([section.comment] if section.comment else []), text]
            _put(wanted, section)
        else:
            lines += [*_comments([section.comment, *table, *text.splitlines()]), ""]
    lines += [*_comments(tail), *([""] if tail else [])]
    whole = "\n".join(lines)
    _check(whole, wanted)
    return whole


def _comments(lines: Iterable[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]


def _put(wanted: dict[str, Any], section: Section) -> None:
    into = wanted
    for part in filter(None, section.table.split(".")):
        into = into.setdefault(part, {})
    into.update(section.values)


def _assignments(values: dict[str, Any]) -> str:
    try:
        import toml
    except ImportError:
        raise KvmsupError(
            "there is no Python package toml, which writes the file", "apt install python3-toml"
        ) from None
    encoder = toml.TomlEncoder()
    # toml 0.10.2 makes another string of one with \\x in it. JSON's escapes are TOML's, which has DEL besides.
    encoder.dump_funcs[str] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(toml.dumps(values, encoder=encoder))


def _check(text: str, wanted: dict[str, Any]) -> None:
    try:
        found = tomllib.loads(text.encode().decode())
    except ValueError:  # of either: a file's name need not be UTF-8
        found = {}
    if found != wanted:
        raise KvmsupError("what was asked for cannot be written as TOML", "use paths and a description of plain text")
