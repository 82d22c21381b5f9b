# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a thread may run, and how; and reading that back."""

from __future__ import annotations

import errno
import os

from kvmsup import cpulist
from kvmsup.errors import HostError


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


_POLICIES = {"fifo": os.SCHED_FIFO, "rr": os.SCHED_RR, "other": os.SCHED_OTHER}


def schedule(tid: int, scheduler: str) -> None:
    """Give `tid`, but not what it gives birth to, the policy of `scheduler`: "fifo:10", "rr:10" or "other".

    One that has ended is not scheduled. Raises HostError with the reason.
    """
    policy, _, priority = scheduler.partition(":")
    number = _POLICIES[policy] | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(tid, number, os.sched_param(int(priority or 0)))
    except ProcessLookupError:
        pass
    except OSError as error:
        raise HostError(f"thread {tid} cannot run as {scheduler}: {error.strerror}") from None


def scheduled(tid: int) -> str | None:
    """The policy of `tid` as `schedule` takes it; None when it is gone."""
    try:
        number, priority = os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority
    except ProcessLookupError:
        return None
    number &= ~os.SCHED_RESET_ON_FORK
    policy = next((name for name, value in _POLICIES.items() if value == number), str(number))
    return f"{policy}:{priority}" if priority else policy


def allowed(tid: int) -> frozenset[int] | None:
    """Where the kernel lets `tid` run now; None when it is gone."""
    try:
        return frozenset(os.sched_getaffinity(tid))
    except ProcessLookupError:
        return None
