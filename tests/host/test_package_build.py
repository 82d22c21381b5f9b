# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package is the same bytes whoever builds it, wherever and whenever: no host is needed for that."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.conftest import REPOSITORY
from tests.tree import tracked

OTHER = {
    "PATH": os.environ["PATH"],
    "LANG": "C",
    "LANGUAGE": "tr",
    "TZ": "Pacific/Kiritimati",
    "DEB_BUILD_OPTIONS": "parallel=1",
}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory that another user can reach, with another name's length."""
    place = Path(tempfile.mkdtemp(prefix="kvmsup-built-elsewhere-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def source(place: Path) -> Path:
    """The files of the tree without their history, in another order, of another time, and of another user."""
    for number, source_file in enumerate(sorted(tracked(), reverse=True)):
        file = place / "tree" / source_file.relative_to(REPOSITORY)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source_file, file)
        os.utime(file, (10**9 + number, 10**9 + number))
    subprocess.run(["chown", "-R", "nobody:nogroup", place], check=True)
    return place / "tree"


def test_two_builds_are_identical(tmp_path: Path, elsewhere: Path) -> None:
    for tool in ("dpkg-buildpackage", "git", "setpriv"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    if os.geteuid() != 0:
        pytest.skip("only root can build as somebody else, too")
    here = tmp_path / "here.deb"
    subprocess.run([REPOSITORY / "packaging/build-deb", here], check=True)
    told = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    environment = {**OTHER, "HOME": str(elsewhere), "SOURCE_DATE_EPOCH": told.stdout.strip()}
    tree = source(elsewhere)
    script = 'umask 077; exec "$0" "$1"'
    command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh", "-c", script]
    there = elsewhere / "there.deb"
    subprocess.run([*command, tree / "packaging/build-deb", there], env=environment, check=True)
    assert members(here) == members(there)
    assert here.read_bytes() == there.read_bytes()


def members(package: Path) -> str:
    """What a difference is in, for whoever reads of one."""
    return subprocess.run(
        ["dpkg-deb", "-c", package],
        check=True,
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "PATH": OTHER["PATH"]},
    ).stdout
