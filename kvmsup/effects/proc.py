# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel tells of one thread in /proc/PID/stat (proc(5)), and signals to processes."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from kvmsup.effects import files

# include/linux/sched.h
_PF_KTHREAD, _PF_NO_SETAFFINITY = 0x00200000, 0x04000000


class Stat(NamedTuple):
    """`bound`: the kernel does not let anybody move it."""

    name: str
    kernel: bool
    bound: bool
    last_cpu: int


def stat(directory: str) -> Stat | None:
    """Fields 2, 9 and 39 of `directory`/stat, a thread's below /proc; None when it has ended.

    The name is for people: any thread may change its own, to any 15 bytes, spaces and parentheses among them.
    """
    try:
        head, _, tail = files.read(f"{directory}/stat").rpartition(")")
        fields = tail.split()  # the first is field 3
        flags, last_cpu = int(fields[9 - 3]), int(fields[39 - 3])
    except (OSError, IndexError, ValueError):
        return None
    name = files.printable(head.partition("(")[2])
    return Stat(name, bool(flags & _PF_KTHREAD), bool(flags & _PF_NO_SETAFFINITY), last_cpu)


def is_stopped(directory: str) -> bool:
    """Whether a signal such as SIGSTOP has stopped the process of `directory`, below /proc."""
    try:
        return files.read(f"{directory}/stat").rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process `pid`; that it has ended is as good."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
