# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host made of files: its topology, hugepage pools that answer as the kernel's do, and a systemctl that is told."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmsup import cpulist
from kvmsup.effects import files

PAGE = 2 << 20


def write(root: str, path: str, text: str) -> None:
    """Write `text` as the kernel prints it, with a line end."""
    file = Path(root + path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def read(root: str, path: str) -> str:
    return Path(root + path).read_text().rstrip("\n")


@pytest.fixture
def small_run(root: str) -> Iterator[Path]:
    """/run of the host at `root` as a file system of its own that can be filled."""
    run = Path(root) / "run"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", run], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    (run / "kvmsup/claims").mkdir(parents=True)
    yield run
    subprocess.run(["umount", run], check=True)


def fill(directory: Path) -> None:
    """Leave no page of the file system of `directory`."""
    with contextlib.suppress(OSError), open(directory / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def stat(name: str, cpu: int, flags: int = 0, ticks: tuple[int, int] = (0, 0)) -> str:
    """A thread's stat up to the CPU it last ran on, and a little beyond; `ticks` in user mode and the kernel."""
    return f"1 ({name}) S 0 0 0 0 -1 {flags} 0 0 0 0 {ticks[0]} {ticks[1]} {'0 ' * 23}{cpu} 0 0"


def cpus(root: str, siblings: dict[int, str], nodes: dict[int, str] | None = None, *, present: str = "") -> None:
    """Online CPUs with their siblings (as the kernel lists them, "" for a CPU without that file), and nodes."""
    write(root, "/sys/devices/system/cpu/online", cpulist.render(siblings))
    write(root, "/sys/devices/system/cpu/present", present or cpulist.render(siblings))
    write(root, "/sys/devices/system/cpu/isolated", "")
    for number, listed in siblings.items():
        if listed:
            write(root, f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", listed)
            write(root, f"/sys/devices/system/cpu/cpu{number}/topology/physical_package_id", "0")
    if nodes is not None:
        write(root, "/sys/devices/system/node/online", cpulist.render(nodes))
        for number, listed in nodes.items():
            write(root, f"/sys/devices/system/node/node{number}/cpulist", listed)


class Pools:
    """Hugepage pools; writing nr_hugepages does what the kernel would do, as far as `room` goes."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.room: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.surplus: dict[int, int] = {}
        self.written: list[str] = []

    def directory(self, node: int, page_size: int = PAGE) -> str:
        return f"/sys/devices/system/node/node{node}/hugepages/hugepages-{page_size >> 10}kB"

    def create(self, node: int, total: int, *, used: int = 0, room: int = 1000, surplus: int = 0) -> None:
        """`surplus` of the `used` pages are overcommitted ones."""
        self.used[node], self.room[node], self.surplus[node] = used, room, surplus
        self._show(node, total)
        write(self.root, f"/sys/devices/system/node/node{node}/compact", "")

    def _show(self, node: int, total: int) -> None:
        for name, value in (("nr", total), ("free", total - self.used[node]), ("surplus", self.surplus[node])):
            write(self.root, f"{self.directory(node)}/{name}_hugepages", str(value))

    def use(self, node: int, count: int) -> None:
        """Somebody takes pages, or with a negative count leaves them: overcommitted ones go at once."""
        self.used[node] += count
        gone = min(self.surplus[node], max(0, -count))
        self.surplus[node] -= gone
        self._show(node, self.total(node) - gone)

    def total(self, node: int) -> int:
        return int(read(self.root, f"{self.directory(node)}/nr_hugepages"))

    def attribute_written(self, path: str, value: str) -> None:
        """In place of files.write_attribute."""
        self.written.append(f"{path.removeprefix(self.root)}={value}")
        if path.endswith("/nr_hugepages"):
            node = int(path.removeprefix(f"{self.root}/sys/devices/system/node/node").partition("/")[0])
            self._resize(node, int(value))

    def _resize(self, node: int, persistent: int) -> None:
        """mm/hugetlb.c, set_max_huge_pages: overcommitted pages count first, and pages in use become so in the end."""
        total, surplus = self.total(node), self.surplus[node]
        surplus -= min(surplus, max(0, persistent - (total - surplus)))
        total = max(self.used[node], min(persistent + surplus, self.room[node]))
        self.surplus[node] = max(surplus, total - persistent)
        self._show(node, total)


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pools:
    found = Pools(str(tmp_path))
    monkeypatch.setattr(files, "write_attribute", found.attribute_written)
    return found


Systemctl = Callable[[dict[str, tuple[str, str]]], Path]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    """Call it with (state, job) by unit; returns the file with the commands that were asked."""
    directory = tmp_path / "bin"
    directory.mkdir()
    log = directory / "asked"
    log.touch()
    script = directory / "systemctl"
    script.write_text(
        f'#!/bin/sh\necho "$*" >>{log}\n[ "$1" = show ] && cat {directory}/show\n'
        f'[ "$1" = list-units ] && cat {directory}/loaded\n[ "$1" = list-jobs ] && cat {directory}/jobs\nexit 0\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def answer(units: dict[str, tuple[str, str]]) -> Path:
        rest = "SubState=x\nResult=signal\nMainPID=7\n"
        shown = [f"Id={unit}\nActiveState={state}\n{rest}" for unit, (state, _) in units.items()]
        (directory / "show").write_text("\n".join(shown))
        subs = {"active": "running", "inactive": "dead"}
        rows = [("UNIT", "LOAD", "ACTIVE", "SUB", "JOB", "DESCRIPTION")] if units else []
        rows += [
            (unit, "loaded", state, subs.get(state, "x"), job, "What  it is") for unit, (state, job) in units.items()
        ]
        loaded = ["{:40} {:10} {:13} {:8} {:8} {}\n".format(*row) for row in rows]
        (directory / "loaded").write_text("".join([*loaded, f"\n{len(units)} loaded units listed.\n"]))
        jobs = [f"{number} {unit} {job} waiting\n" for number, (unit, (_, job)) in enumerate(units.items()) if job]
        (directory / "jobs").write_text("".join(jobs))
        return log

    answer({})
    return answer
