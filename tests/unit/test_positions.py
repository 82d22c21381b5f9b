# SPDX-License-Identifier: LGPL-2.1-or-later
"""The place of every key and value in a TOML text, held against what tomllib reads."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.model import positions

Path = tuple[str | int, ...]


def paths(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key path below `value`, with what is there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key), inner
        yield from paths(inner, (*path, key))


def located(text: str) -> dict[Path, tuple[str, str]]:
    return {
        path: (text[place.key : place.key_end], text[place.value : place.value_end])
        for path, place in positions.places(text).items()
    }


def check(text: str) -> None:
    """Every path of the document has a place, and the text there means what the document says."""
    found = located(text)
    wanted = dict(paths(tomllib.loads(text)))
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        key, written = found[path]
        assert key == key.strip() and written == written.strip()
        if written.startswith("[") and key == written and isinstance(path[-1], str):
            # A header: it names the table or one below it.
            names = tomllib.loads(written)
            assert path[0] in names
        elif isinstance(path[-1], int) or not isinstance(value, dict):
            assert_same(read(written), value)
        else:
            assert key and written


def read(written: str) -> Any:
    if written.startswith("[["):
        return None
    return tomllib.loads(f"x = {written}")["x"]


def assert_same(found: Any, value: Any) -> None:
    # By their text, because nan is not equal to itself.
    assert found is None or repr(found) == repr(value)


DOCUMENTS = {
    "empty": "",
    "only a comment": "# [a]\n",
    "no line end": "a = 1",
    "bare keys": "a = 1\nb-c_1 = 2\n1 = 3\n",
    "quoted keys": '"a b" = 1\n\'c.d\' = 2\n"" = 3\n"\\u0061\\"]" = 4\n"#" = 5\n',
    "dotted keys": "a.b.c = 1\na . d = 2\n\"x y\".'z' = 3\n",
    "headers": '[a]\nx = 1\n[a.b]\ny = 2\n[ c . "d e" ] # [z]\nz = 3\n',
    "header before its parent": "[a.b]\nx = 1\n[a]\ny = 2\n",
    "arrays of tables": "[[a]]\nx = 1\n[[a]]\nx = 2\n[a.b]\ny = 3\n[[a.c]]\n[[a.c]]\nz = 2\n[[a]]\n[[a.c]]\nz = 4\n",
    "same name below another table": "[[a]]\nx = 1\n[b]\na.c = 2\n[b.d]\na.e = 3\n",
    "same name in an inline table": "[[a]]\nx = 1\n[[a]]\nb = { a.c = 2, d = { a = 3 } }\n",
    "inline tables": 'a = { b = 1, c.d = "x}", e = {}, "f,g" = [1, 2] }\n',
    "arrays": "a = []\nb = [1, 2, 3,]\nc = [\n  1, # ]\n  [2, '],'],\n\n  { x = 1 }, { x = [2] },\n]\n",
    "strings": 'a = "x # y"\nb = \'x # "\'\nc = "\\"\\\\"\nd = ""\ne = \'\'\nf = "=[]{},"\n',
    "multi-line strings": "a = \"\"\"\n[b]\nc = 1\n\"\"\"\nd = '''\nx' = \"\n'''\nf = 1\n",
    "multi-line strings with quotes": 'e = """a "" \\""" b"""\nf = """"q"""""\ng = 1\n',
    "multi-line literal with quotes": "a = ''''x'''''\nb = ''''''\nc = \"\"\"\"\"\"\nd = 1\n",
    "line ends inside a string": 'a = """\\\n   b\\\n   """\nc = 2\n',
    "scalars": "a = -1_000\nb = 0xff\nc = 1e5\nd = inf\ne = nan\nf = true\ng = 1979-05-27 07:32:00\nh = 07:32:00.5\n",
    "comments everywhere": "a = 1 # b = 2\n[c] # [d]\n# e = 3\nf = [ # x\n 1 # ]\n , # y\n 2 ] # z\n",
    "tabs and blanks": "\ta\t=\t1\t\n  [ b ]  \n\n\n   c   =   2   \n",
    "other scripts": '"ключ" = "значение"\n["日本"]\na = "é"\n',
    "values that look like headers": 'a = "[b]"\nc = [["d"]]\n[e]\nf = [\n"[g]"\n]\n',
}


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_path_has_its_place(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    ("text", "path", "key", "value"),
    [
        ('a = "x"', ("a",), "a", '"x"'),
        ("[a]\nb.c = 1 # no", ("a", "b", "c"), "b.c", "1"),
        ("[a]\nb.c = 1", ("a", "b"), "b.c", "1"),
        ("[a.b]\nc = 1", ("a",), "[a.b]", "[a.b]"),
        ("[a.b]\nc = 1\n[a]", ("a",), "[a]", "[a]"),
        ("[[a]]\n[[a]]\nb = 2", ("a", 1, "b"), "b", "2"),
        ("[[a]]\n[b]\na.c = 1", ("b", "a", "c"), "a.c", "1"),
        ("a = [1, [2, 'x']]", ("a", 1, 1), "'x'", "'x'"),
        ("a = { b = 1 , c = 2 }", ("a", "b"), "b", "1"),
        ("a = 1979-05-27 07:32:00  # x", ("a",), "a", "1979-05-27 07:32:00"),
        ("a = 1  ", ("a",), "a", "1"),
    ],
)
def test_place(text: str, path: Path, key: str, value: str) -> None:
    assert located(text)[path] == (key, value)


# Documents that are valid by construction: a tree of tables, written in one of the ways that TOML has.

KEYS = st.sampled_from(["a", "b", "cc", "d-1", '"q k"', "'l.k'", '"\\u00e9\\""', '"#=["'])
BASIC = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=6)
STRINGS = st.one_of(
    BASIC.map(lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'),
    BASIC.filter(lambda text: "'" not in text).map(lambda text: f"'{text}'"),
    BASIC.map(lambda text: '"""\n' + text.replace("\\", "\\\\").replace('"', '\\"') + '\n[x]\n"" """'),
    BASIC.filter(lambda text: "'" not in text).map(lambda text: f"'''\n{text}\na = ['\n'''"),
)
SCALARS = STRINGS | st.sampled_from(["1", "-0.5", "true", "nan", "1979-05-27", "07:32:00", "0xFF"])
GAP = st.sampled_from(["", " ", "\t", "  "])
NEWLINE = st.sampled_from(["", "\n", " # ] } , =\n", "\n\n\t"])


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(inner, max_size=3))
    trailing = draw(st.booleans())
    comma = "," if items and trailing else ""
    gaps = [draw(NEWLINE) for _ in range(2 * len(items) + 1)]
    text = "["
    for index, item in enumerate(items):
        text += gaps[2 * index] + item + gaps[2 * index + 1] + ("," if index + 1 < len(items) else "")
    return text + comma + gaps[-1] + "]"


@st.composite
def inline_tables(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(KEYS, max_size=3, unique=True))
    pairs = [f"{draw(GAP)}{key}{draw(GAP)}={draw(GAP)}{draw(inner)}{draw(GAP)}" for key in keys]
    return "{" + ",".join(pairs) + (draw(GAP) if not pairs else "") + "}"


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | inline_tables(inner), max_leaves=6)


@st.composite
def assignments(draw: st.DrawFn) -> str:
    lines = []
    for key in draw(st.lists(KEYS, max_size=3, unique=True)):
        # A second part that no other line has: a dotted key must not add to what is defined already.
        dotted = f"{key}{draw(GAP)}.{draw(GAP)}{draw(KEYS)}" if draw(st.booleans()) else key
        lines.append(f"{draw(GAP)}{dotted}{draw(GAP)}={draw(GAP)}{draw(VALUES)}{draw(GAP)}# = [x]\n")
    return "".join(lines)


@st.composite
def documents(draw: st.DrawFn) -> str:
    text = draw(assignments())
    for _ in range(draw(st.integers(0, 5))):
        name = f"{draw(GAP)}.{draw(GAP)}".join(draw(st.lists(KEYS, min_size=1, max_size=3)))
        header = f"[[{name}]]" if draw(st.booleans()) else f"[{name}]"
        text += f"{draw(GAP)}{header}{draw(GAP)}\n{draw(assignments())}"
    return text


def accepted(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


@given(documents().filter(accepted))
def test_any_document(text: str) -> None:
    check(text)


@given(st.text(st.sampled_from("ab.=[]{}\"'\\#, \n1\t"), max_size=25).filter(accepted))
def test_any_text_that_is_toml(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    ("text", "start", "end", "spot"),
    [
        ("a = 1\nb = 22\n", 10, 12, positions.Spot(2, 5, "b = 22", 2)),
        ("a = 1", 4, 5, positions.Spot(1, 5, "a = 1", 1)),
        ('a = """x\ny"""', 4, 13, positions.Spot(1, 5, 'a = """x', 4)),
        ("\tä = 1", 5, 6, positions.Spot(1, 6, "\tä = 1", 1)),
        ("a\n", 2, 3, positions.Spot(2, 1, "", 1)),
        ("", 0, 1, positions.Spot(1, 1, "", 1)),
        ('a = "\x1b[31m\u202e"', 4, 5, positions.Spot(1, 5, 'a = "?[31m?"', 1)),
    ],
)
def test_spot(text: str, start: int, end: int, spot: positions.Spot) -> None:
    assert positions.spot(text, start, end) == spot
