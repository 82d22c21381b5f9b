# SPDX-License-Identifier: LGPL-2.1-or-later
"""The running kernel: its version, and core scheduling, for which Python has no call of its own."""

from __future__ import annotations

import os

from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# include/uapi/linux/prctl.h
_PR_SCHED_CORE, _GET, _CREATE = 62, 0, 1
_SCOPE_THREAD, _SCOPE_THREAD_GROUP = 0, 1


def version() -> tuple[int, ...]:
    """Major and minor, such as (6, 12)."""
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


def check_core_scheduling() -> None:
    """Raises HostError when the kernel cannot keep a core to the threads of one cookie."""
    try:
        core_cookie(0)
    except HostError as error:
        raise HostError(f"placement.core-scheduling: {error.what}", "leave it out") from None


def has_partitions() -> bool:
    """Whether cpuset partitions can be made inside a guest's unit: remote ones (cgroup-v2.rst), Linux 6.7."""
    return version() >= (6, 7)


def check_isolation() -> None:
    """Raises HostError on a kernel whose cpusets forget the pins of threads (da019032819a, Linux 6.2)."""
    if version() < (6, 2):
        what = "placement.isolate: on this kernel a cpuset that changes undoes the pins of all threads in it"
        raise HostError(what, "Linux 6.2 or newer (Debian 12: from bookworm-backports), or isolcpus= at boot")


def core_cookie(tid: int) -> int:
    """The cookie of `tid`, 0 for none: threads share a core only with their own. Raises HostError with the reason."""
    import ctypes

    cookie = ctypes.c_uint64()
    _prctl(_GET, tid, _SCOPE_THREAD, ctypes.byref(cookie))
    return cookie.value


def share_core_within(pid: int) -> None:
    """Give all threads of `pid`, and those they will have, a cookie of their own. Raises HostError with the reason.

    Documentation/admin-guide/hw-vuln/core-scheduling.rst.
    """
    _prctl(_CREATE, pid, _SCOPE_THREAD_GROUP, None)


def _prctl(command: int, pid: int, scope: int, address: Any) -> None:
    import ctypes
    import errno

    library = ctypes.CDLL(None, use_errno=True)
    arguments = (_PR_SCHED_CORE, *map(ctypes.c_ulong, (command, pid, scope)), address)
    if library.prctl(*arguments) == 0:
        return
    number = ctypes.get_errno()
    reasons = {
        errno.EINVAL: "this kernel has no core scheduling (CONFIG_SCHED_CORE)",
        errno.ENODEV: "this host has no SMT, or it is off",
    }
    raise HostError(reasons.get(number, f"core scheduling: {os.strerror(number)}"))
