# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever a TOML contains comes out of systemd's parser as exactly the same value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup.plan import unitfile
from kvmsup.plan.unitfile import Variable
from tests.unit import real_systemd, systemd_syntax

# Anything that a program can be given: no NUL, and UTF-8.
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
HOSTILE = VALUES | st.text(
    st.sampled_from("\\\"'$%{};#= \t\n\r,ab|&<>()*?[]~`!@:+-xn0\x1b\x7f\x85é\u2028"), max_size=30
)
VARIABLES = {"KVMSUP_HOST_NODES": "0-1,host-nodes=3", "OTHER": "$5 100% \\"}
PARTS = st.lists(HOSTILE | st.sampled_from([Variable(name) for name in VARIABLES]), min_size=1, max_size=4)

TABLE = [
    "", " ", "a b", "'", '"', "\\", "\\\\", "a\\", "a\\\\", '\\"', "$", "$$", "$HOME", "${HOME}", "$${HOME}",
    "${", "%", "%%", "%n", "%%n", ";", "\\;", "a;b", "#", "# x", "\n", "\t", "a\nb", "-x", "@x", "+x", "!x",
    "!!x", ":x", "|x", "x=y", "[Service]", "ExecStart=/bin/false", "\nExecStart=/bin/false", "a\\\nb", "é",
    "日本", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "~", "*", "?", "`id`", "$(id)", "a,b", "a,,b",
    "x" * 5000,
]  # fmt: skip


def expanded(parts: unitfile.Word) -> str:
    return "".join(VARIABLES[part.name] if isinstance(part, Variable) else part for part in parts)


@given(PARTS)
def test_word_comes_back(parts: unitfile.Word) -> None:
    assert systemd_syntax.command(unitfile.word(parts), VARIABLES) == [expanded(parts)]


@pytest.mark.parametrize("value", TABLE)
def test_odd_word_comes_back(value: str) -> None:
    assert systemd_syntax.command(unitfile.word([value]), {}) == [value]


@given(st.lists(st.lists(PARTS, min_size=1, max_size=2), max_size=5))
def test_command_comes_back_from_a_unit(options: list[list[unitfile.Word]]) -> None:
    text = f"# a comment\n[Service]\nExecStart={unitfile.command('/bin/qemu', options)}\nSlice=kvm.slice\n"
    (first, line), second = systemd_syntax.directives(text)
    assert (first, second) == ("ExecStart", ("Slice", "kvm.slice"))
    assert systemd_syntax.command(line, VARIABLES) == [
        "/bin/qemu",
        *(expanded(word) for option in options for word in option),
    ]


@given(HOSTILE.filter(str.isprintable))
def test_text_comes_back_in_a_directive(value: str) -> None:
    text = f"[Unit]\nDescription={unitfile.text(f'KVM guest x: {value}')}\nAfter=y.service\n"
    (name, found), after = systemd_syntax.directives(text)
    assert after == ("After", "y.service")
    assert (name, systemd_syntax.specifiers(found)) == ("Description", f"KVM guest x: {value}".rstrip())


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("ends in \\", "ends in \\ "),
        ("100% \\\\", "100%% \\\\ "),
        ("50%", "50%%"),
        ('"quoted" $HOME', '"quoted" $HOME'),
    ],
)
def test_text(value: str, written: str) -> None:
    assert unitfile.text(value) == written


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        (["plain"], "plain"),
        ([""], '""'),
        (["a b"], '"a b"'),
        (["nodes=", Variable("N"), ",x"], "nodes=${N},x"),
        (["$", Variable("N"), " "], '"$$${N} "'),
        (["\x1b"], '"\\x1b"'),
        (["\x85"], '"\\xc2\\x85"'),
        ([";"], '";"'),
    ],
)
def test_word(parts: unitfile.Word, written: str) -> None:
    assert unitfile.word(parts) == written


def unit_of(values: list[str]) -> str:
    lines = [f"ExecStart={unitfile.command('/bin/true', [[[value]]])}" for value in values]
    return "\n".join(["[Unit]", "DefaultDependencies=no", "[Service]", "Type=oneshot", *lines, ""])


def test_systemd_itself_reads_the_same() -> None:
    # systemd's rendering is not exact for control characters, so those are left to the model above.
    values = [value for value in TABLE if value.isprintable()]
    dump = real_systemd.load({"probe.service": unit_of(values)}, "probe.service")
    found = real_systemd.command_lines(dump, "probe.service")
    assert [systemd_syntax.environment(argv[1], {}) for argv in found] == values


@given(st.lists(HOSTILE.filter(str.isprintable), min_size=30, max_size=60))
def fuzz_systemd(values: list[str]) -> None:
    dump = real_systemd.load({"probe.service": unit_of(values)}, "probe.service")
    found = real_systemd.command_lines(dump, "probe.service")
    assert [systemd_syntax.environment(argv[1], {}) for argv in found] == values


def test_systemd_itself_reads_anything() -> None:
    from hypothesis import settings

    settings(max_examples=5)(fuzz_systemd)()
