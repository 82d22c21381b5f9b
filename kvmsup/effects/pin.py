# SPDX-License-Identifier: LGPL-2.1-or-later
"""Threads of the host: which a QEMU has, where they may run, and reading that back."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from kvmsup import cpulist
from kvmsup.effects import files
from kvmsup.errors import HostError


def threads(root: str, pid: int) -> list[int]:
    """The tids of `pid`. Raises HostError when it is gone."""
    try:
        return sorted(map(int, os.listdir(f"{root}/proc/{pid}/task")))
    except OSError:
        raise HostError(f"process {pid} is gone") from None


def name(root: str, tid: int) -> str:
    """The thread's comm, "" when it is gone. Names are for people: QEMU's are cut at 15 characters."""
    try:
        return files.read(f"{root}/proc/{tid}/comm")
    except OSError:
        return ""


def kernel_threads(root: str, pid: int) -> list[int]:
    """Kernel threads that work for QEMU `pid` outside its task directory: kvm-pit (arch/x86/kvm/i8254.c).

    They are born after QEMU and so have higher pids, unless the numbers have wrapped.
    """
    wanted = f"kvm-pit/{pid}"
    candidates = [int(entry) for entry in os.listdir(f"{root}/proc") if entry.isdigit()]
    candidates.sort(key=lambda candidate: (candidate < pid, candidate))
    found = next((tid for tid in candidates if name(root, tid) == wanted), None)
    return [] if found is None else [found]


def pin(tid: int, cpus: frozenset[int]) -> None:
    """Allow `tid` to run on `cpus` alone; one that has ended runs nowhere. Raises HostError with the reason."""
    try:
        os.sched_setaffinity(tid, cpus)
    except ProcessLookupError:
        pass
    except OSError as error:
        raise HostError(f"thread {tid} cannot be pinned to CPU {cpulist.render(cpus)}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if error.errno == errno.EINVAL:
        return "none of them is online and in the cpuset of its control group (AllowedCPUs=)"
    return error.strerror or str(error)


def schedule(tid: int, policy: str, priority: int) -> None:
    """Give `tid` the real-time policy fifo or rr. Raises HostError with the reason."""
    number = {"fifo": os.SCHED_FIFO, "rr": os.SCHED_RR}[policy]
    try:
        os.sched_setscheduler(tid, number, os.sched_param(priority))
    except OSError as error:
        raise HostError(f"thread {tid} cannot run as {policy}:{priority}: {error.strerror}") from None


def allowed(tid: int) -> frozenset[int] | None:
    """Where the kernel lets `tid` run now; None when it is gone."""
    try:
        return frozenset(os.sched_getaffinity(tid))
    except ProcessLookupError:
        return None


def gather(root: str, pid: int, known: Collection[int], cpus: frozenset[int]) -> dict[int, frozenset[int]]:
    """Pin every thread of `pid` that is not `known` to `cpus`, where it is not so already; returns those threads.

    A thread inherits the mask of the one that made it, so what a vCPU thread gives birth to stands in its way. Raises
    HostError.
    """
    found = {tid: cpus for tid in threads(root, pid) if tid not in known}
    for tid in found:
        if allowed(tid) not in (cpus, None):
            pin(tid, cpus)
    return found
