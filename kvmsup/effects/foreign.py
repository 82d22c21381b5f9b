# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads that ran on CPUs which a guest has for itself, and are not the guest's."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

from kvmsup.effects import files

# Fields of /proc/PID/stat behind the comm (proc(5)): 3 is the first of them.
_FLAGS, _LAST_CPU = 9 - 3, 39 - 3
_PF_KTHREAD = 0x00200000  # include/linux/sched.h


class Foreign(NamedTuple):
    """A thread that is not the guest's and whose last CPU is one of the guest's.

    `bound`: a kernel thread that belongs to this CPU and cannot be moved; `group` is its control group, "/" for the
    kernel's own.
    """

    tid: int
    name: str
    cpu: int
    kernel: bool
    bound: bool
    group: str


def threads(root: str, cpus: frozenset[int], own: Collection[int], since: float) -> list[Foreign]:
    """The threads that ran last on one of `cpus`, later than `since` (seconds after boot), by CPU and name.

    `own` are the processes and kernel threads that may. A thread that ran there and then moved on cannot be seen.
    """
    found = [one for pid in _processes(root) if pid not in own for one in _of(root, pid, cpus, since)]
    return sorted((one for one in found if one.tid not in own), key=lambda one: (one.cpu, one.name, one.tid))


def _processes(root: str) -> list[int]:
    return [int(name) for name in os.listdir(f"{root}/proc") if name.isdigit()]


def _of(root: str, pid: int, cpus: frozenset[int], since: float) -> Iterator[Foreign]:
    try:
        tids = os.listdir(f"{root}/proc/{pid}/task")
    except OSError:
        return
    for tid in tids:
        directory = f"{root}/proc/{pid}/task/{tid}"
        try:
            head, _, tail = files.read(f"{directory}/stat").rpartition(")")
            fields = tail.split()
            cpu = int(fields[_LAST_CPU])
            if cpu not in cpus or _last_ran(directory) < since:
                continue
            kernel = bool(int(fields[_FLAGS]) & _PF_KTHREAD)
            group = files.read(f"{root}/proc/{pid}/cgroup").rpartition("::")[2]
            bound = kernel and len(os.sched_getaffinity(int(tid))) == 1
        except (OSError, ValueError, IndexError):
            continue  # it has ended
        yield Foreign(int(tid), files.printable(head.partition("(")[2]), cpu, kernel, bound, group)


def _last_ran(directory: str) -> float:
    """When the thread was last on a CPU, in seconds after boot (kernel/sched/debug.c, se.exec_start in milliseconds).

    A kernel without that file tells nothing, and then every thread counts.
    """
    try:
        lines = files.read(f"{directory}/sched").splitlines()
    except OSError:
        return float("inf")
    told = next((line for line in lines if line.startswith("se.exec_start")), "")
    return float(told.rpartition(":")[2]) / 1000 if told else float("inf")
