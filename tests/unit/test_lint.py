# SPDX-License-Identifier: LGPL-2.1-or-later
"""The linters as tests, so that `make check` is all there is to run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tree
from tests.tree import ROOT

SPDX = "SPDX-License-Identifier: LGPL-2.1-or-later"

# Files whose format has no comments, or that are the licence; and one whose bytes name the directory of the tools.
WITHOUT_SPDX = (
    "LICENSE",
    "tests/requirements.txt",
    "packaging/debian/control",
    "packaging/debian/copyright",
    "packaging/debian/dirs",
    "packaging/debian/docs",
    "packaging/debian/source/format",
)


def tracked() -> list[Path]:
    try:
        return tree.tracked()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository, or no git: there is no list of files to look at")


def first_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()[:5]
    except UnicodeDecodeError:
        return []


def python_programs() -> list[Path]:
    """Programs without a suffix, which the linters do not find by themselves."""
    return [path for path in tracked() if not path.suffix and "python" in "".join(first_lines(path)[:1])]


def run_tool(name: str, *arguments: str) -> None:
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.exists() else shutil.which(name)
    if not program:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def test_ruff() -> None:
    run_tool("ruff", "check", ".", *map(str, python_programs()))


def test_format() -> None:
    run_tool("ruff", "format", "--diff", ".", *map(str, python_programs()))


def test_types() -> None:
    run_tool("mypy", "--strict")


def test_types_of_programs() -> None:
    # One at a time: each of them is a module called __main__.
    programs = [path for path in python_programs() if path.parent.name in ("units", "packaging")]
    assert len(programs) >= 5
    for program in programs:
        run_tool("mypy", "--strict", str(program))


def test_licence_in_every_file() -> None:
    exempt = {ROOT / name for name in WITHOUT_SPDX}
    # What a golden case expects is compared byte by byte, and markdown would show the line.
    sources = [path for path in tracked() if path.suffix != ".md" and "expected" not in path.parts]
    texts = [path for path in sources if path not in exempt and path.stat().st_size]
    lines = {path: first_lines(path) for path in texts if first_lines(path)}
    assert len(lines) > 50
    missing = [str(path.relative_to(ROOT)) for path, head in lines.items() if SPDX not in "\n".join(head)]
    assert not missing


def test_exemptions_are_needed() -> None:
    assert not [name for name in WITHOUT_SPDX if (ROOT / name).exists() and SPDX in (ROOT / name).read_text("utf-8")]


def shell_scripts() -> list[Path]:
    heads = {path: "".join(first_lines(path)[:1]) for path in tracked()}
    return [path for path, head in heads.items() if head.startswith("#!") and head.split()[-1].endswith("sh")]


def test_shell_syntax() -> None:
    scripts = shell_scripts()
    assert scripts
    for script in scripts:
        run_tool("sh", "-n", str(script))
