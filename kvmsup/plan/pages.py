# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arithmetic of hugepage pools: how much to grow, how much to give back. Counts are pages of one size and node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvmsup import sizes
from kvmsup.errors import Refusal
from kvmsup.records import NamedTuple

# Who is named of those that hold pages; the rest are counted.
_NAMED = 6


class Shortfall(NamedTuple):
    """What setup met on one node. Counts are pages of `page_size` bytes; `free` is in bytes, caches included."""

    node: int
    page_size: int
    need: int
    asked: int  # to be added to the pool
    came: int | None  # None: not tried, because there is no memory for that many
    totals: Mapping[int, int]  # of the pools by node, before
    unused: int  # of this node's pool, before
    free: int
    guests: Mapping[str, int]  # what they were promised there
    others: Sequence[tuple[str, int, int]]  # processes that are no guests': name, pid, pages
    unmapped: int  # in files that no process has mapped


def refusal(short: Shortfall) -> Refusal:
    """Says what is missing on which node, who has it, and what would help."""
    size = sizes.render(short.page_size)
    room = short.free // short.page_size
    missing = short.asked - (room if short.came is None else short.came)
    tried = f"there is memory for {room}" if short.came is None else f"{short.came} came"
    total = short.totals.get(short.node, 0)
    what = (
        f"node {short.node} is short of {missing} hugepages of {size}: {short.need} needed, {short.asked} to be added"
        f" to a pool of {total} with {short.unused} free, {tried}"
    )
    if short.guests:
        what += f"; guests hold there: {', '.join(f'{name} {count}' for name, count in short.guests.items())}"
    if short.others:
        told = [f"{name} (pid {pid}) {count}" for name, pid, count in short.others[:_NAMED]]
        more = len(short.others) - _NAMED
        what += f"; other processes: {', '.join(told)}{f' and {more} more' if more > 0 else ''}"
    if short.unmapped:
        what += f"; {short.unmapped} are in files that no process has mapped"
    return Refusal(what, _help(short, room >= missing and short.came is not None), "no-pages")


def _help(short: Shortfall, fragmented: bool) -> str:
    # Every node's share: what is on the command line replaces what was there (hugetlbpage.rst, hugepages=).
    wanted = {**short.totals, short.node: short.totals.get(short.node, 0) + short.asked}
    counts = ",".join(f"{node}:{count}" for node, count in sorted(wanted.items()) if count)
    at_boot = f"hugepagesz={sizes.render(short.page_size)} hugepages={counts}"
    if short.page_size >= sizes.UNITS["G"]:
        return f"1G pages are best taken at boot, on the kernel command line: {at_boot}"
    size = sizes.render(short.page_size)
    free = f"{short.free >> 20}M"
    memory = f"{free} are free, but not in pieces of {size}, also after compacting: " if fragmented else ""
    first = "" if fragmented else f"free memory on node {short.node}, where {free} are free, "
    return f"{memory}{first}stop a guest there, or reserve at boot, on the kernel command line: {at_boot}"


def growth(
    needs: Mapping[int, int], free: Mapping[int, int], promised: Mapping[int, int], reserved: int
) -> dict[int, int]:
    """Pages to add by node so that the guest's `needs` can be had; `free` and `promised` are of all nodes of the host.

    On each of its nodes there must be enough beside the promises, and on the host as a whole beside what other
    processes have `reserved`, mapped and not touched: for those the kernel keeps as many free, on whatever node, and
    it refuses QEMU's own mapping otherwise (mm/hugetlb.c, hugetlb_acct_memory).
    """
    grow = {node: to_grow(need, free[node], promised.get(node, 0)) for node, need in needs.items()}
    left = sum(free.values()) + sum(grow.values()) - sum(promised.values()) - reserved
    lacking = sum(needs.values()) - left
    if needs and lacking > 0:
        grow[max(needs, key=lambda node: (needs[node], -node))] += lacking
    return grow


def to_grow(need: int, free: int, promised: int) -> int:
    """Pages to add so that `need` are there beside those `promised` to guests that have not faulted them yet.

    free_hugepages overstates what is to be had: a page that another guest's claim covers counts as free until its
    QEMU touches it (Documentation/admin-guide/mm/hugetlbpage.rst; reservations are not counted per node).
    """
    return max(0, need - max(0, free - promised))


def to_give_back(grown: int, free: int, promised: int) -> int:
    """Pages of our own `grown` to take out of the pool: never one that is in use, nor one that is promised."""
    return max(0, min(grown, free - promised))


def absorbed_so_far(absorbed: int, surplus: int, before: int, now: int) -> int:
    """What a pool, at `now` with `surplus`, still has of overcommitted pages that growing made its own.

    Growing takes `absorbed` of them into the pool before it adds any (mm/hugetlb.c, set_max_huge_pages). Giving them
    back makes them `surplus` again, or lowers the pool, which stood at `before`, where their user has gone.
    """
    return max(0, min(absorbed - surplus, now - (before - absorbed)))


def grown_so_far(before: int, now: int, planned: int) -> int:
    """What an interrupted setup added to a pool that stood at `before` and was to grow by `planned`."""
    return max(0, min(planned, now - before))
