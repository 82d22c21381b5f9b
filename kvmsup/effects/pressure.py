# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's memory and how much its tasks wait for it: /proc/meminfo and /proc/pressure/memory."""

from __future__ import annotations

from kvmsup.effects import files, proc
from kvmsup.errors import HostError
from kvmsup.model.pressure import HostMemory, Stall


def read(root: str) -> HostMemory:
    """The host's memory now. Raises HostError where /proc/meminfo is not what its documentation says."""
    path = f"{root}/proc/meminfo"
    try:
        found = proc.amounts(path)
        return HostMemory(
            total=found["MemTotal"],
            available=found["MemAvailable"],
            swap_total=found.get("SwapTotal", 0),
            swap_free=found.get("SwapFree", 0),
            hugepages=found.get("Hugetlb", 0),
            stall=_stall(f"{root}/proc/pressure/memory"),
        )
    except OSError as error:
        raise HostError(f"{path}: cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise HostError(f"{path}: has no {error.args[0]}") from None


def _stall(path: str) -> Stall | None:
    """None where the kernel keeps no account (CONFIG_PSI, psi=0), or one that cannot be read."""
    try:
        lines = dict(line.split(maxsplit=1) for line in files.read(path).splitlines())
        some, full = (float(lines[kind].split()[0].removeprefix("avg10=")) for kind in ("some", "full"))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return Stall(some, full)
