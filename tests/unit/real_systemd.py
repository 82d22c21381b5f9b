# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd itself as an oracle: `systemd --test` loads units from a directory and prints what it has read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

_SYSTEMD = "/usr/lib/systemd/systemd"
_NOBODY = 65534


@contextmanager
def unit_directory(files: Mapping[str, str]) -> Iterator[Path]:
    """A directory with `files` that every user can read."""
    directory = Path(tempfile.mkdtemp(prefix="units-"))
    try:
        (directory / "no-generators").mkdir()
        for name, text in files.items():
            path = directory / "units" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        for path in [directory, *directory.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield directory
    finally:
        shutil.rmtree(directory)


def load(files: Mapping[str, str], unit: str) -> str:
    """What systemd prints about `unit` and what it pulls in; the test is skipped where it cannot be asked."""
    with unit_directory(files) as directory:
        empty = str(directory / "no-generators")
        done = subprocess.run(
            [program(), "--test", "--system", "--no-pager", f"--unit={unit}"],
            env={
                "PATH": os.environ["PATH"],
                "SYSTEMD_UNIT_PATH": f"{directory}/units:",
                "SYSTEMD_GENERATOR_PATH": empty,
                "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": empty,
                "SYSTEMD_LOG_TARGET": "console",
            },
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            **({"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
        )
    if done.returncode and not done.stdout:
        pytest.skip(f"systemd --test does not run here: {done.stderr.strip()[:200]}")
    return str(done.stdout).replace("\u2192 ", "-> ")  # as 257 draws it where 252 does not


def program() -> str:
    """Where systemd is; the test is skipped where it is not."""
    if not os.path.exists(_SYSTEMD):
        pytest.skip(f"there is no {_SYSTEMD}")
    return _SYSTEMD


def command_lines(dump: str, unit: str) -> list[list[str]]:
    """The argv of every command of `unit`, environment variables not yet resolved."""
    _, _, after = dump.partition(f"-> Unit {unit}:\n")
    block = after.partition("-> Unit ")[0]
    return [_unquoted(line) for line in re.findall(r"^\t+Command Line: (.*)$", block, re.MULTILINE)]


def _unquoted(line: str) -> list[str]:
    """Undo systemd's own rendering: words in double quotes where needed, with a backslash before " \\ ` and $."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)
    return [plain or re.sub(r"\\(.)", r"\1", quoted) for quoted, plain in found]
