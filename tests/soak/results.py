# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has been run, as JSON lines: a record in the repository, which every run goes on with, here or elsewhere.

Each case has a line, that of the last time it was run, with the version of the programs that it was run with.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

PLACE = Path(__file__).with_name("record.jsonl")
_HEAD = "# SPDX-License-Identifier: LGPL-2.1-or-later\n"

Figure = float | int | str


class Record(NamedTuple):
    """One case that was run to its end; `at` is when, in UTC."""

    part: str  # faults | concurrency | hour | fuzz | guided
    name: str
    ok: bool
    seconds: float
    at: str
    detail: str = ""  # of one that failed: why
    figures: Mapping[str, Figure] = {}
    version: str = ""


def version(deb: Path) -> str:
    """A key for what a package installs to be run: the same code in another commit is the same version."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=True)
    return digest(unpacked.stdout)


def digest(archive: bytes) -> str:
    """The key of a package's tar archive: names, modes and contents, without documentation and dates."""
    import io

    sha = hashlib.sha256()
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in sorted(members, key=lambda one: one.name):
            file = members.extractfile(member) if member.isfile() else None
            if file and "/share/" not in member.name:
                sha.update(f"{member.name}\0{member.mode:o}\0{member.size}\0".encode() + file.read())
    return sha.hexdigest()[:16]


class Results:
    """The record, and the version that is run now."""

    def __init__(self, key: str, place: Path = PLACE) -> None:
        self.key = key
        self.place = place

    def read(self) -> list[Record]:
        """Everything that was run, the last of each name. A line that a kill cut off was not run."""
        with self._opened() as file:
            return _parsed(file.read())

    def add(self, record: Record) -> None:
        """Append `record`, as run with this version, on a line of its own whatever the last writer left."""
        with self._opened() as file:
            text = file.read()
            cut_off = text and not text.endswith("\n")
            file.write(("\n" if cut_off else "") + _line(record._replace(version=self.key)))

    def tidy(self) -> list[Record]:
        """Leave one line for each name, in the order of the names, below a head; returns all of them."""
        with self._opened() as file:
            found = sorted(_parsed(file.read()), key=lambda one: (one.part, one.name))
            file.truncate(0)
            file.write(_HEAD + "".join(map(_line, found)))
        return found

    @contextmanager
    def _opened(self) -> Iterator[TextIO]:
        """The file, at its beginning; whatever is written goes to its end. Runs side by side wait for each other."""
        with open(self.place, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_SET)
            yield file

    def done(self, part: str, *, again: bool = False) -> set[str]:
        """The names of `part` that need not be run; with `again` those that failed are to be."""
        mine = (one for one in self.read() if one.part == part and one.version == self.key)
        return {one.name for one in mine if one.ok or not again}

    def longest_ago(self, part: str) -> Callable[[str], str]:
        """A key that sorts names of `part`: what failed and what was never run, then what was run longest ago."""
        last = {one.name: one.at for one in self.read() if one.part == part and one.ok}
        return lambda name: last.get(name, "")


def _line(record: Record) -> str:
    return json.dumps(record._asdict()) + "\n"


def _parsed(text: str) -> list[Record]:
    found: dict[tuple[str, str], Record] = {}
    for line in text.split("\n")[:-1]:
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found.pop((record.part, record.name), None)
        found[record.part, record.name] = record
    return list(found.values())
