# SPDX-License-Identifier: LGPL-2.1-or-later
"""The man pages: well made, and the one of the units with each of them and with examples that systemd takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.golden import CASES
from tests.golden.test_units import PACKAGED, complaints, units

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "packaging/man").glob("*.rst"))
UNITS = ROOT / "packaging/man/kvm@.service.8.rst"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_well_made(page: Path, tmp_path: Path) -> None:
    for program in ("rst2man", "man"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    made = tmp_path / page.stem
    subprocess.run(["rst2man", "--strict", page, made], check=True)
    said = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", made],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stderr == ""


def test_every_unit_is_in_the_page_of_units() -> None:
    named = {path.name for path in PACKAGED}
    synopsis = UNITS.read_text("utf-8").partition("\nSYNOPSIS\n")[2].partition("\nDESCRIPTION\n")[0]
    assert {name.replace("@NAME", "@") for name in re.findall(r"\*([^*]+)\*", synopsis)} == named
    assert all(
        re.search(r"^Documentation=man:kvm@\.service\(8\)", path.read_text(), re.MULTILINE) for path in PACKAGED
    )


def test_every_unit_is_another_name_of_the_page() -> None:
    links = re.findall(
        r"^(\S+) usr/share/man/man8/(\S+)\.8$", (ROOT / "packaging/debian/links").read_text(), re.MULTILINE
    )
    assert {target for target, _ in links} == {"usr/share/man/man8/kvm@.service.8"}
    assert {name for _, name in links} == {path.name for path in PACKAGED} - {"kvm@.service"}


def drop_ins() -> list[str]:
    """The examples in the page that are drop-ins of a guest."""
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", UNITS.read_text("utf-8"))
    found = [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks]
    return [block for block in found if re.search(r"^\[(Unit|Service)\]$", block, re.MULTILINE)]


def test_systemd_takes_the_examples() -> None:
    assert len(drop_ins()) == 3
    files = units(CASES[0])
    for number, text in enumerate(drop_ins()):
        files[f"kvm@web.service.d/60-{number}.conf"] = text
    assert complaints(files, ["kvm@web.service"]) == []
