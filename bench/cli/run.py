# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs commands: for what they print, and in turn, A B A B, for what each took."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

VIRSH = ("virsh", "--quiet", "--connect", "qemu:///system")


def run(*command: str, text: str = "") -> str:
    """What `command`, which reads `text`, printed. Raises RuntimeError with its own words when it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


class Took(NamedTuple):
    """Milliseconds of one run: until it had ended, and of CPU time, with that of what it started itself."""

    wall: float
    cpu: float


class Pair(NamedTuple):
    """All runs of two commands."""

    ours: list[Took]
    theirs: list[Took]

    @property
    def ratio(self) -> Took:
        """The medians of the ratios of each two runs that followed one another: ours over theirs."""
        both = list(zip(self.ours, self.theirs, strict=True))
        return Took(*(median(one[field] / other[field] for one, other in both) for field in (0, 1)))


def took(command: Sequence[str]) -> Took:
    """Run `command`, its output into nothing. Raises RuntimeError when it fails."""
    null = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1, 2)]
    begin = time.perf_counter()
    pid = os.posix_spawnp(command[0], list(command), os.environ, file_actions=null)
    status, used = os.wait4(pid, 0)[1:]
    wall = time.perf_counter() - begin
    if status:
        raise RuntimeError(f"{' '.join(command)} failed ({os.waitstatus_to_exitcode(status)})")
    return Took(1000 * wall, 1000 * (used.ru_utime + used.ru_stime))


def interleaved(ours: Sequence[str], theirs: Sequence[str], pairs: int) -> Pair:
    """Both in turn, so that what else the machine does is the same for both. The first two of each are not counted."""
    for command in (ours, theirs) * 2:
        took(command)
    found = Pair([], [])
    for _ in range(pairs):
        found.ours.append(took(ours))
        found.theirs.append(took(theirs))
    return found
