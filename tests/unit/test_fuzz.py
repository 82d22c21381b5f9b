# SPDX-License-Identifier: LGPL-2.1-or-later
"""A few inputs of the long fuzzing, and that it finds what is wrong: python3 -m tests.soak.fuzz is the long mode."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvmsup.errors import ConfigError, Diagnostic
from kvmsup.model import config
from kvmsup.plan import qemu, unitfile
from tests.soak import fuzz, grammar, guided
from tests.tree import ROOT


def test_a_few() -> None:
    assert fuzz.run(1, 400) == []


def test_the_goldens_guests() -> None:
    """The checks know all that kvmsup writes; what the grammar leaves out would else be found wrong for nothing."""
    for path in guided.GOLDEN.rglob("etc/kvmsup/*.toml"):
        assert fuzz.given(path.read_bytes()) == [], path


def test_the_grammar_knows_every_key() -> None:
    """In files that are sound: the keys of a broken one are never looked at."""
    missing = {(section, key) for section, keys in config.GUEST_KEYS.items() for key in keys}
    for number in range(4000):
        content = grammar.guest(Random(number))
        with contextlib.suppress(ConfigError):
            config.read_guest("web", "web.toml", content)
            missing -= used(tomllib.loads(content.decode()))
        if not missing:
            return
    raise AssertionError(missing)


def used(tree: dict[str, Any], above: str = "") -> set[tuple[str, str]]:
    """Every key of a file as (section, key), as config.GUEST_KEYS has them."""
    names = {"iothread": "NAME", "numa": "N", "disk": "NAME", "net": "NAME"}
    found = set()
    for key, value in tree.items():
        found.add((above, key))
        if isinstance(value, dict):
            found |= used(value, f"{above}.{names.get(above, key)}" if above else key)
    return found


def test_libfuzzers_report_is_read() -> None:
    text = "#2 INITED cov: 12 ft: 13 corp: 1/1b\n#9 DONE   cov: 34 ft: 40\nstat::number_of_executed_units: 9\n"
    assert guided.report(text) == guided.Report(9, 34)
    assert guided.report("No module named 'atheris'") == guided.Report(0, 0)
    wrong = "INFO: x\n\n === Uncaught Python exception: ===\nAssertionError: that\n==1== ERROR: libFuzzer: exited\n"
    assert guided.why(wrong).startswith("AssertionError: that\n")
    assert guided.why("==1== ERROR: timeout") == "==1== ERROR: timeout"


def test_nothing_of_kvmsup_is_there_before_it_is_instrumented() -> None:
    program = "import sys, tests.soak.guided; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {name for name in done.stdout.split() if name.split(".")[0] in ("kvmsup", "tomllib")}


def test_an_empty_corpus_is_planted_once(tmp_path: Path) -> None:
    guided.plant(tmp_path / "corpus")
    planted = sorted((tmp_path / "corpus").iterdir())
    assert len(planted) > 500
    planted[0].unlink()
    guided.plant(tmp_path / "corpus")
    assert sorted((tmp_path / "corpus").iterdir()) == planted[1:]
    assert {"vcpus", "base-format", "cloud-init"} <= set(guided.vocabulary())


def test_a_few_through_systemd() -> None:
    assert fuzz.through_systemd(1, 60) == []


def test_a_few_started_by_systemd() -> None:
    assert fuzz.started_by_systemd(1, 60) == []


def test_the_same_number_is_the_same_input(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(config, "read_guest", lambda *asked: seen.append(asked[2]))
    assert all("AttributeError" in failure.what for failure in fuzz.run(3, 5) + fuzz.run(3, 5))
    assert seen[:4] == seen[4:]
    assert len(set(seen[:4])) == 4


def broken_quoting(monkeypatch: pytest.MonkeyPatch, char: str = "%") -> None:
    """`char` is not escaped in words, neither in those that print nor in the others."""
    found = {key: value for key, value in unitfile._ESCAPED.items() if key != char}
    monkeypatch.setattr(unitfile, "_ESCAPED", found)
    monkeypatch.setattr(unitfile, "_TABLE", str.maketrans(found))


def test_quoting_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_quoting(monkeypatch)
    assert any("a specifier" in failure.what for failure in fuzz.run(1, 400))


def test_quoting_that_is_wrong_is_found_by_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_quoting(monkeypatch)
    assert fuzz.through_systemd(1, 60)


def test_quoting_that_is_wrong_is_found_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_quoting(monkeypatch, "$")
    assert fuzz.started_by_systemd(1, 60)


def test_a_directive_that_nobody_meant_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unitfile, "text", lambda value: f"{value}\nUser=root")
    assert "AssertionError" in fuzz.run(1, 20)[0].what


def test_a_property_that_nobody_meant_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(head: str, **values: Any) -> list[Any]:
        return [head, *(f",{name}={value}" for name, value in values.items() if isinstance(value, int | str)), ",x=y"]

    monkeypatch.setattr(qemu, "props", careless)
    assert "AssertionError" in fuzz.run(1, 20)[0].what


def test_what_takes_long_and_what_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        raise ConfigError([Diagnostic("x", 0, 0, "x")])

    monkeypatch.setattr(config, "read_guest", busy)
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    took = re.fullmatch(r"took (0\.\d) s", fuzz.one(1, 1)[0].what)
    assert took and float(took[1]) >= 0.2  # of CPU time, of which 0.2 s are the loop's
    monkeypatch.setattr(fuzz, "HANGS", 0.05)
    assert "Hang" in fuzz.one(1, 1)[0].what
