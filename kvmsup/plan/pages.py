# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arithmetic of hugepage pools: how much to grow, how much to give back. Counts are pages of one size and node."""

from __future__ import annotations


def to_grow(need: int, free: int, promised: int) -> int:
    """Pages to add so that `need` are there beside those `promised` to guests that have not faulted them yet.

    free_hugepages overstates what is to be had: a page that another guest's claim covers counts as free until its
    QEMU touches it (Documentation/admin-guide/mm/hugetlbpage.rst; reservations are not counted per node).
    """
    return max(0, need - max(0, free - promised))


def to_give_back(grown: int, free: int, promised: int) -> int:
    """Pages of our own `grown` to take out of the pool: never one that is in use, nor one that is promised."""
    return max(0, min(grown, free - promised))


def grown_so_far(before: int, now: int, planned: int) -> int:
    """What an interrupted setup added to a pool that stood at `before` and was to grow by `planned`."""
    return max(0, min(planned, now - before))
