# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has been run, as JSON lines in the cache: a file for each version of what is tested, so that a run goes on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.lab import cache

Figure = float | int | str


class Record(NamedTuple):
    """One case that was run to its end; `at` is when, in UTC."""

    part: str  # faults | concurrency | hour | fuzz
    name: str
    ok: bool
    seconds: float
    at: str
    detail: str = ""  # of one that failed: why
    figures: Mapping[str, Figure] = {}


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
    """The file of one version."""

    def __init__(self, key: str, place: Path | None = None) -> None:
        self.key = key
        self.place = (place or cache.root() / "soak") / f"{key}.jsonl"

    def read(self) -> list[Record]:
        """Everything that was run, the last of each name. A line that a kill cut off was not run."""
        found: dict[tuple[str, str], Record] = {}
        text = self.place.read_text("utf-8") if self.place.exists() else ""
        for line in text.split("\n")[:-1]:
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found.pop((record.part, record.name), None)
            found[record.part, record.name] = record
        return list(found.values())

    def add(self, record: Record) -> None:
        """Append `record`, on a line of its own whatever the last writer left."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.place.exists() and not self.place.read_bytes().endswith(b"\n")
        with open(self.place, "a", encoding="utf-8") as file:
            file.write(("\n" if cut_off else "") + json.dumps(record._asdict()) + "\n")

    def done(self, part: str, *, again: bool = False) -> set[str]:
        """The names of `part` that need not be run; with `again` those that failed are to be."""
        return {one.name for one in self.read() if one.part == part and (one.ok or not again)}
