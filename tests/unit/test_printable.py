# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing that is printed can be an order to a terminal: names of files, and what a QEMU says, are others' choice."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kvmsup.cli import check, plan, show
from kvmsup.effects import models, qmp
from kvmsup.entry import generator
from kvmsup.errors import ConfigError, Diagnostic, KvmsupError
from tests.unit import fake_qemu, trees

ODD = "a\x1b[2J\u202e\x07"
# As os.listdir gives what is not UTF-8.
BYTES = "b\udcff\udc9b"


def is_shown(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_an_error_s_words() -> None:
    assert str(KvmsupError(f"{ODD} is gone", f"\x1bc {BYTES}")) == "a?[2J?? is gone\n  hint: ?c b??"
    assert is_shown(str(ConfigError([Diagnostic(ODD, 1, 1, BYTES, ODD, "x", 1)])))


def test_a_table() -> None:
    assert all(map(is_shown, show.table(("GUEST", "STATE"), [[ODD, BYTES]])))


@pytest.fixture
def root(tmp_path: Path) -> str:
    trees.cpus(str(tmp_path), {0: "0", 1: "1"}, {0: "0-1"})
    directory = tmp_path / "etc/kvmsup"
    directory.mkdir(parents=True, exist_ok=True)
    for name in (ODD, BYTES):
        (directory / f"{name}.toml").write_text("x = 1\n")
    return str(tmp_path)


@pytest.mark.parametrize("verb", ["check", "plan"])
def test_files_with_odd_names(verb: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = argparse.Namespace(guests=[], guest="", root=root, json=False)
    assert {"check": check.run, "plan": plan.run}[verb](asked) == 1
    told = capsys.readouterr()
    assert "a?[2J??" in told.out + told.err
    assert is_shown(told.out + told.err)


def test_the_generator(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main([str(tmp_path / "out")], root) == 1
    told = capsys.readouterr().err
    assert told
    assert is_shown(told)


def test_the_generator_is_brief(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    (tmp_path / "etc/kvmsup/web.toml").write_text("".join(f"a{number} = 1\n" for number in range(45)))
    assert generator.main([str(tmp_path / "out")], str(tmp_path)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 26 more findings: kvmsup check"


def test_the_names_of_iothreads() -> None:
    with fake_qemu.running("iothread-of-orders") as fake, qmp.Monitor(fake.path, fake.pid) as monitor:
        monitor.negotiate()
        assert qmp.iothreads(monitor) == {"a?[2J": 1}


def test_the_names_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_qemu.program("models-of-orders") as program:
        monkeypatch.setattr(models, "BINARY", program)
        models.catalogue.cache_clear()
        found = models.catalogue("q35", "tcg")
    models.catalogue.cache_clear()
    (one,) = found.models.values()
    assert is_shown("".join((*found.models, one.name, one.alias_of, *one.missing)))
    assert len(one.name) <= 100
