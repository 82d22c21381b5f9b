# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads that ran on CPUs which a guest has for itself, and are not the guest's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

from kvmsup.effects import files, proc
from kvmsup.records import NamedTuple


class Foreign(NamedTuple):
    """A thread that is not the guest's and whose last CPU is one of the guest's.

    `bound`: a kernel thread that cannot be moved, as those that belong to one CPU. `group` is its control group, "/"
    for the kernel's own.
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
        found = proc.stat(directory)
        if found and found.last_cpu in cpus and _last_ran(directory) >= since:
            with contextlib.suppress(OSError):  # it has ended
                group = files.read(f"{root}/proc/{pid}/cgroup").rpartition("::")[2]
                yield Foreign(int(tid), found.name, found.last_cpu, found.kernel, found.bound, group)


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
