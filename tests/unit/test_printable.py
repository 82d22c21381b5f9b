# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing that is printed can be an order to a terminal: names of files, and what a QEMU says, are others' choice."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kvmsup.cli import check, listing, plan, show
from kvmsup.effects import glance, models, outdated, overview, qmp
from kvmsup.entry import generator
from kvmsup.errors import ConfigError, Diagnostic, KvmsupError
from tests.unit import fake_qemu, trees
from tests.unit.trees import systemctl

__all__ = ["systemctl"]

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


def test_systemd_is_asked_for_guests_only(
    root: str, systemctl: trees.Systemctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc/kvmsup/*.toml").write_text("x = 1\n")
    (tmp_path / "etc/kvmsup/web.toml").write_text('memory.size = "1G"\nnet.lan.user = true\n')
    log = systemctl({})
    assert [one.name for one in glance.guests(root)] == ["*", ODD, BYTES, "web"]
    assert log.read_text().split("-- ")[1] == "kvm@web.service\n"
    monkeypatch.setattr(outdated, "changed", lambda *_: None)
    rows = [listing.row(one, *outdated.outline(root, one.name, b"", one.claim)) for one in overview.guests(root)]
    assert [one["sound"] for one in rows] == [False, False, False, True]
    assert rows[3]["description"] == "KVM guest web" and not rows[3]["enabled"]
    assert all(map(is_shown, show.table(("GUEST",), [[one["name"]] for one in rows])))


def test_a_plan_places_guests_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The addresses of interfaces and of vsock derive from the name, which has to be one."""
    root = str(tmp_path)
    trees.cpus(root, {0: "0", 1: "1"}, {0: "0-1"})
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    text = 'memory.size = "1G"\n[machine]\ntype = "pc-q35-7.2"\n[net.lan]\nuser = true\n[guest]\nready = true\n'
    (tmp_path / f"etc/kvmsup/{BYTES}.toml").write_text(text)
    assert plan.run(argparse.Namespace(guest="", root=root, json=False)) == 1
    assert "cannot name a guest" in capsys.readouterr().out


def test_a_file_called_dash_is_not_standard_input(tmp_path: Path) -> None:
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    (tmp_path / "etc/kvmsup/-.toml").write_text("x = 1\n")
    (found,) = check.findings([], str(tmp_path))
    assert (found.file, found.what) == ("/etc/kvmsup/-.toml", "'-' cannot name a guest")


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
