# SPDX-License-Identifier: LGPL-2.1-or-later
"""How short of memory the host is, as the kernel tells it."""

from __future__ import annotations

from kvmsup.records import NamedTuple


class Stall(NamedTuple):
    """Percent of the last ten seconds in which tasks waited for memory (Documentation/accounting/psi.rst)."""

    some: float  # at least one task
    full: float  # all of them at once


class HostMemory(NamedTuple):
    """Bytes, as /proc/meminfo has them; hugepages count into `total` and never into `available`."""

    total: int
    available: int
    swap_total: int
    swap_free: int
    hugepages: int  # in all pools, free or not
    stall: Stall | None  # None: this kernel keeps no account of it
