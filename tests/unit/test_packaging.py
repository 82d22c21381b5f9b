# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the package is made of, as far as that is seen without building it."""

from __future__ import annotations

import fnmatch
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvmsup

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "packaging/debian"
SOMEBODY = "Some Body <some@body.invalid>"
NEWS = """\
# News

## 0.2.0 (unreleased)

A paragraph.

 - One thing, of which so much
   is said that it is on two lines.
 - Another thing.

## 0.1.0 (2027-01-31)

 - The first one.
"""
CHANGELOG = """\
kvmsup (0.2.0) UNRELEASED; urgency=medium

  * A paragraph.
  * One thing, of which so much is said that it is on two lines.
  * Another thing.

 -- Some Body <some@body.invalid>  Tue, 14 Nov 2023 22:13:20 +0000

kvmsup (0.1.0) unstable; urgency=medium

  * The first one.

 -- Some Body <some@body.invalid>  Sun, 31 Jan 2027 00:00:00 +0000
"""


def changelog(news: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(ROOT / "packaging/changelog"), str(news), SOMEBODY, "1700000000"]
    return subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"})


def test_the_changelog_has_an_entry_for_each_version(tmp_path: Path) -> None:
    (tmp_path / "NEWS.md").write_text(NEWS)
    assert changelog(tmp_path / "NEWS.md").stdout == CHANGELOG


@pytest.mark.parametrize(
    ("news", "told"),
    [
        ("# News\n", "there is no version in it"),
        (NEWS.replace("2027-01-31", "unreleased"), "0.1.0 is unreleased, and there is a newer one"),
        (NEWS.replace(" - The first one.\n", ""), "nothing is said of 0.1.0"),
        (NEWS.replace("(2027-01-31)", "of January"), "'## 0.1.0 of January' is neither"),
    ],
)
def test_news_that_make_no_changelog(tmp_path: Path, news: str, told: str) -> None:
    (tmp_path / "NEWS.md").write_text(news)
    done = changelog(tmp_path / "NEWS.md")
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_dpkg_reads_the_changelog_of_the_present_news(tmp_path: Path) -> None:
    if not shutil.which("dpkg-parsechangelog"):
        pytest.skip("dpkg-parsechangelog is not installed")
    (tmp_path / "changelog").write_text(changelog(ROOT / "NEWS.md").stdout, encoding="utf-8")
    command = ["dpkg-parsechangelog", "-l", str(tmp_path / "changelog"), "--all"]
    parsed = subprocess.run(command, capture_output=True, text=True)
    assert parsed.stderr == ""
    assert f"\nVersion: {kvmsup.__version__}\n" in parsed.stdout


def test_the_presets_decide_for_every_unit_that_can_be_enabled() -> None:
    rules = re.findall(r"^(enable|disable) (\S+)$", (ROOT / "units/90-kvmsup.preset").read_text(), re.MULTILINE)
    units = [path.name for path in (ROOT / "units").iterdir() if "\n[Install]\n" in path.read_text()]
    decided = {unit: [verb for verb, pattern in rules if fnmatch.fnmatch(unit, pattern)] for unit in units}
    assert decided == {"kvmsup-reload.path": ["enable"], "kvm@.service": ["disable"]}


def test_each_test_of_the_package_is_a_program() -> None:
    named = re.findall(r"^Tests: (.+)$", (DEBIAN / "tests/control").read_text(), re.MULTILINE)
    programs = {path.name: path for path in (DEBIAN / "tests").iterdir() if path.name != "control"}
    assert set(programs) == {name for names in named for name in names.replace(",", " ").split()}
    for path in programs.values():
        assert path.read_text().startswith("#!/bin/sh\n")
        assert path.stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("name", ["lintian-overrides", "source/lintian-overrides"])
def test_every_override_of_a_tag_says_why(name: str) -> None:
    lines = (DEBIAN / name).read_text().splitlines()[2:]
    assert lines[0].startswith("# ")
    for before, line in itertools.pairwise(lines):
        if not line.startswith("#"):
            assert before.startswith("# ") or before.split(": ")[1].split()[0] == line.split(": ")[1].split()[0]
