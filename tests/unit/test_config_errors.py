# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong with a file, as the user reads it: the cases of findings.toml, and those it cannot hold."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvmsup.errors import ConfigError
from kvmsup.model import config
from kvmsup.model.topology import Topology
from tests.unit.hosts import topology as synthetic

CASES = tomllib.loads(Path(__file__).with_name("findings.toml").read_text("utf-8"))
HOST = synthetic(1, 4, 1, offline=(3,))
SOUND = b'[machine]\ntype = "pc-q35-7.2"\n[memory]\nsize = "1G"\n'


def said(content: bytes, topology: Topology | None = None) -> str:
    """Everything found in a guest's file, warnings too."""
    try:
        return "\n".join(map(str, config.read_guest("web", "web.toml", content, topology).document.diagnostics()))
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize("case", CASES["guest"], ids=lambda case: case["name"])
def test_guest_file(case: dict[str, Any]) -> None:
    found = said(case["text"].encode(), HOST)
    assert found == case["said"].removesuffix("\n")
    assert all(char.isprintable() or char == "\n" for char in found)


# Four cores of two siblings, 0,4 1,5 2,6 3,7, of which the last is isolated.
SIBLINGS = synthetic(2, 2, 2)._replace(isolated=frozenset((3, 7)))
PINNED = b"""[machine]
type = "pc-q35-7.2"
[memory]
size = "1G"
[cpu]
vcpus = 2
%s
[placement]
%s
[placement.vcpu]
0 = "%s"
1 = "%s"
"""


@pytest.mark.parametrize(
    ("threads", "wish", "pins", "expected"),
    [
        (1, 'cpus = "dedicated"', ("1", "2"), None),
        (2, 'cpus = "dedicated"', ("1", "5"), None),
        (2, 'cpus = "dedicated"', ("1", "2"), "CPU 2 is no SMT sibling of vCPU 0's CPU 1\n1 its core: 1,5"),
        (1, 'cpus = "dedicated"\nsmt = "isolate"', ("1", "2"), None),
        (1, 'cpus = "dedicated"\nsmt = "isolate"', ("1", "5"), "CPU 5 is on vCPU 0's core"),
        (1, 'cpus = "dedicated"\nsmt = "require"', ("1", "5"), None),
        (1, 'cpus = "dedicated"\nsmt = "require"', ("1", "6"), "CPU 5, its SMT sibling, is not the guest's"),
        (1, "", ("1-2", "3"), None),
        (1, "", ("2-3", "1"), "CPU 3 is isolated by isolcpus=, where the kernel does not spread threads"),
        (1, 'emulator = "3,7"', ("1", "2"), "CPU 3,7 is isolated by isolcpus=, where the kernel does not"),
    ],
)  # fmt: skip
def test_pins_on_this_host(threads: int, wish: str, pins: tuple[str, str], expected: str | None) -> None:
    text = PINNED.decode() % (f"threads = {threads}", wish, *pins)
    found = said(text.encode(), SIBLINGS)
    if expected is None:
        assert found == ""
    else:
        what, _, hint = expected.partition("\n1 ")
        assert what in found
        assert f"  hint: {hint}" in found


@pytest.mark.parametrize("case", CASES["host"], ids=lambda case: case["name"])
def test_host_file(case: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read_host("kvmsup.toml", case["text"].encode(), HOST)
    assert str(caught.value) == case["said"].removesuffix("\n")


@pytest.mark.parametrize(
    "content",
    [SOUND, b"\xef\xbb\xbf" + SOUND, SOUND.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + SOUND.replace(b"\n", b"\r\n")],
    ids=["plain", "mark", "CRLF", "mark and CRLF"],
)
def test_sound(content: bytes) -> None:
    assert said(content) == ""


def test_the_place_is_right_with_a_mark_and_carriage_returns() -> None:
    content = b"\xef\xbb\xbf# \xc3\xa4\r\nx = 1\r\n" + SOUND.replace(b"\n", b"\r\n")
    assert said(content).splitlines()[:3] == ["web.toml:2:1: x: unknown key", "  2 | x = 1", "    | ^"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'a = "\xff"', "web.toml:1:6: not UTF-8: byte 0xff\n  hint: save the file as UTF-8"),
        (b"\xef\xbb\xbf\xff", "web.toml:1:1: not UTF-8: byte 0xff\n  hint: save the file as UTF-8"),
        (b"# \xc3\xa4\n\xc3\xa4\xc3\xa4 \xe4", "web.toml:2:4: not UTF-8: byte 0xe4\n  hint: save the file as UTF-8"),
        (b"a\0", "web.toml:1:2: not TOML: Expected '=' after a key in a key/value pair\n  1 | a?\n    |  ^"),
        (b"x = " + b"[" * 3000, "web.toml: not TOML: nested too deeply"),
        (b"x = " + b"{a = " * 3000, "web.toml: not TOML: nested too deeply"),
        (b"x = " + b"1" * 5000, "web.toml: not TOML: a number with thousands of digits"),
    ],
    ids=["byte", "byte behind a mark", "byte behind umlauts", "NUL", "arrays", "inline tables", "digits"],
)
def test_not_even_toml(content: bytes, expected: str) -> None:
    assert said(content) == expected


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        ("cpu", "vcpus", "web.toml:6:9: cpu.vcpus: this is out of range"),
        ("cpu", "model", "web.toml:6:9: cpu.model: this is a whole number; expected a string"),
    ],
)
def test_number_too_long_to_show(table: str, key: str, expected: str) -> None:
    found = said(SOUND + f"[{table}]\n{key} = 0x{'f' * 5000}\n".encode())
    assert found.splitlines()[0] == expected


def test_long_string_of_the_wrong_type() -> None:
    found = said(SOUND + f'[cpu]\nvcpus = "{"x" * 50}"\n'.encode())
    assert found.splitlines()[0] == "web.toml:6:9: cpu.vcpus: this is a string; expected a whole number"


GIVEN_UP = "not TOML: nested too deeply"


@pytest.mark.parametrize("kind", ["[", "{a = "], ids=["arrays", "inline tables"])
def test_any_depth_of_nesting_is_told(kind: str) -> None:
    # Around the depth where tomllib gives up, nothing else may give up in another way.
    close = {"[": "]", "{a = ": "}"}[kind]
    for depth in [*range(1, 50), *range(150, 1000, 7)]:
        found = said(SOUND + f"[x]\ny = {kind * depth}1{close * depth}\n".encode())
        if depth < 30:
            assert found.startswith("web.toml:5:1: x: unknown key")
        elif depth > 32:
            assert found in (f"web.toml: {told}" for told in ("not read: tables in tables, over 32 deep", GIVEN_UP))


def test_a_node_without_memory() -> None:
    found = synthetic(2, 2, 1)._replace(memory={0: 1 << 30, 1: 0})
    assert said(SOUND + b'[placement]\nnodes = "0-1"\n', found) == ""
    assert said(SOUND + b'[placement]\nnodes = "1"\n', found).splitlines()[0::3] == [
        "web.toml:6:9: placement.nodes: node 1 of this host has no memory",
        "  hint: nodes with memory: 0",
    ]
    cells = b'[cpu]\nvcpus = 2\n[numa.0]\nvcpus = "0"\nhost-node = 0\n[numa.1]\nvcpus = "1"\nhost-node = %d\n'
    assert "numa.1.host-node: node 1 of this host has no memory\n" in said(SOUND + cells % 1, found)
    assert "numa.1.host-node: this host has no node 2\n" in said(SOUND + cells % 2, found)
