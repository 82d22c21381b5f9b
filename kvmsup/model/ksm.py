# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel samepage merging in figures (Documentation/admin-guide/mm/ksm.rst)."""

from __future__ import annotations

from kvmsup.records import NamedTuple

PAGE = 4096  # KSM merges the smallest pages only; x86's


class Figures(NamedTuple):
    """What KSM has done for the whole host, in pages; each is 0 where this kernel does not tell."""

    shared: int  # pages that are kept in place of several
    sharing: int  # pages that were given back: what is saved
    unshared: int  # unlike all others, and looked at again and again
    volatile: int  # changed between two looks
    full_scans: int
    cpu_seconds: float  # that ksmd has used since boot

    @property
    def known(self) -> int:
        """The pages that ksmd has seen."""
        return self.shared + self.sharing + self.unshared + self.volatile

    @property
    def saved(self) -> int:
        """Bytes."""
        return self.sharing * PAGE


class Settings(NamedTuple):
    """What ksmd is told while it runs: to look at `pages`, then to sleep for `sleep` milliseconds."""

    pages: int
    sleep: int


class Merged(NamedTuple):
    """One guest's part, in bytes."""

    merged: int  # its pages that are one with others, the one that was kept included
    profit: int | None  # less what the kernel needs to remember them; None where it does not tell (Linux < 6.4)
