# SPDX-License-Identifier: LGPL-2.1-or-later
"""Drop-ins that are kept for the next daemon-reload are those that would be made, or are not used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvmsup
from kvmsup.effects import rendered
from kvmsup.entry import generator, reload

GUEST = 'description = "an odd one: \\\\ % $ é"\n[memory]\nsize = "64M"\n'
HOST = '[cpu]\nhousekeeping = "0"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two guests, one host's file, and nothing kept yet."""
    (tmp_path / "etc/kvmsup").mkdir(parents=True)
    (tmp_path / "var/cache/kvmsup").mkdir(parents=True)
    for name in ("web", "db"):
        (tmp_path / f"etc/kvmsup/{name}.toml").write_text(GUEST)
    (tmp_path / "etc/kvmsup.toml").write_text(HOST)
    return tmp_path


def made(root: Path) -> dict[str, str]:
    """All that a run of the generator writes, by path."""
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    assert generator.main([str(out)], str(root)) == 0
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}


def entry(root: Path, name: str = "web") -> Path:
    return root / "var/cache/kvmsup" / name


def never(*_: object) -> None:
    raise AssertionError("a TOML was read")


def test_nothing_is_read_anew_and_the_result_is_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = made(root)
    assert len(fresh) == 4
    generator.remember(str(root))
    monkeypatch.setattr(generator, "_made", never)
    monkeypatch.setattr(generator, "_host", never)
    assert made(root) == fresh


def a_directory(root: Path) -> None:
    entry(root).unlink()
    entry(root).mkdir()


def newer_programs(_: Path) -> None:
    home = Path(kvmsup.__file__).parent / "plan"
    os.utime(home, ns=(home.stat().st_atime_ns, home.stat().st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "guest": lambda root: (root / "etc/kvmsup/web.toml").write_text(GUEST.replace("64M", "65M")),
    "host": lambda root: (root / "etc/kvmsup.toml").write_text(HOST.replace("0", "1")),
    "gone": lambda root: (root / "etc/kvmsup/web.toml").unlink(),
    "added": lambda root: (root / "etc/kvmsup/more.toml").write_text(GUEST),
    "another's": lambda root: shutil.copy(entry(root, "db"), entry(root)),
    "a directory": a_directory,
    "programs": newer_programs,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_made_of_something_else_is_not_used(root: Path, change: Callable[[Path], object]) -> None:
    generator.remember(str(root))
    change(root)
    found = made(root)
    shutil.rmtree(root / "var")
    assert found == made(root)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 4000), by=st.integers(1, 255), cut=st.booleans())
def test_what_is_damaged_is_made_anew(root: Path, at: int, by: int, cut: bool) -> None:
    shutil.rmtree(root / "var")
    fresh = made(root)
    entry(root).parent.mkdir(parents=True)
    generator.remember(str(root))
    content = bytearray(entry(root).read_bytes())
    at %= len(content)
    if cut:
        del content[at:]
    else:
        content[at] ^= by
    entry(root).write_bytes(content)
    assert made(root) == fresh


def test_a_file_that_is_wrong_is_told_at_each_run(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "etc/kvmsup/web.toml").write_text("not = [toml")
    generator.remember(str(root))
    assert not entry(root).exists()
    for _ in range(2):
        assert generator.main([str(root)], str(root)) == 1
        assert "web.toml:1:" in capfd.readouterr().err
    assert (root / "kvm@db.service.d/50-kvmsup.conf").exists()


def test_a_host_file_that_is_wrong_is_told_and_nothing_kept_is_used(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    generator.remember(str(root))
    (root / "etc/kvmsup.toml").write_text("[cpu]\nhousekeeping = 7\n")
    assert generator.main([str(root)], str(root)) == 1
    assert "kvmsup.toml:2:" in capfd.readouterr().err
    assert "KVMSUP_LOADED=" in (root / "kvm-setup@web.service.d/50-kvmsup.conf").read_text()


def test_what_belongs_to_no_guest_any_more_goes(root: Path) -> None:
    generator.remember(str(root))
    (root / "etc/kvmsup/db.toml").unlink()
    (root / "etc/kvmsup/Bad_Name.toml").write_text(GUEST)
    generator.remember(str(root))
    assert os.listdir(root / "var/cache/kvmsup") == ["web"]


def test_an_entry_is_written_once(root: Path) -> None:
    generator.remember(str(root))
    before = entry(root).stat().st_ino
    generator.remember(str(root))
    assert entry(root).stat().st_ino == before


def test_an_entry_of_nobody_is_none(root: Path) -> None:
    assert rendered.read(str(root), "nobody", "any") is None


def test_an_edit_that_comes_while_it_is_kept_is_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path unit does not watch meanwhile."""
    loaded: list[bytes] = []
    file, keep = root / "etc/kvmsup/web.toml", generator.remember

    def edit_and_keep(where: str) -> None:
        keep(where)
        if not loaded:
            file.write_text(GUEST.replace("64M", "65M"))

    monkeypatch.setattr("kvmsup.effects.systemctl.daemon_reload", lambda: loaded.append(file.read_bytes()))
    monkeypatch.setattr(generator, "remember", edit_and_keep)
    assert reload.main(str(root)) == 0
    assert len(loaded) == 2
    assert b"65M" in loaded[1]
    assert "65M" in entry(root).read_text()
