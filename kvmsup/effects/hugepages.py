# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's hugepage pools, per node and size (Documentation/admin-guide/mm/hugetlbpage.rst).

Whoever changes a pool holds the claims' lock. Writing nr_hugepages "succeeds" short, so every write is read back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from kvmsup import sizes
from kvmsup.effects import cgroup, files
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.plan import pages
from kvmsup.records import NamedTuple

# A QEMU that has just died may hold its pages for a moment longer: the last reference to a file is dropped late.
_SETTLE_SECONDS = 2.0


class Pool(NamedTuple):
    """One node's pages of one size: all, those nobody has faulted, and those of all that are overcommitted."""

    total: int
    free: int
    surplus: int

    @property
    def persistent(self) -> int:
        """Those that stay when nobody uses them."""
        return self.total - self.surplus


def _directory(root: str, node: int, page_size: int) -> str:
    return f"{root}/sys/devices/system/node/node{node}/hugepages/hugepages-{page_size >> 10}kB"


def has(root: str, node: int, page_size: int) -> bool:
    """Whether there is a pool of `node` and `page_size` (bytes): a node can go, and its memory with it."""
    return os.path.isdir(_directory(root, node, page_size))


def pool(root: str, node: int, page_size: int) -> Pool:
    """The pool of `node` and `page_size` (bytes). Raises HostError when the kernel has none."""
    directory = _directory(root, node, page_size)
    try:
        total, free, surplus = (int(files.read(f"{directory}/{name}")) for name in _POOL_FILES)
    except FileNotFoundError:
        what = f"node {node} has no pool of {sizes.render(page_size)} pages"
        raise HostError(what, "grep . /sys/kernel/mm/hugepages/*/nr_hugepages shows the sizes there are") from None
    except OSError as error:
        raise HostError(f"{directory}: cannot read: {error.strerror}") from None
    except ValueError:
        raise HostError(f"{directory}: the kernel's counts of pages are not numbers") from None
    return Pool(total, free, surplus)


_POOL_FILES = ("nr_hugepages", "free_hugepages", "surplus_hugepages")


def pools(root: str, node: int) -> dict[int, Pool]:
    """The pools of `node` by page size (bytes), ascending; none where the kernel has none. Raises HostError."""
    try:
        names = os.listdir(f"{root}/sys/devices/system/node/node{node}/hugepages")
    except OSError:
        return {}
    sizes_there = sorted(int(name[10:-2]) << 10 for name in names if name[10:-2].isdecimal())
    return {page_size: pool(root, node, page_size) for page_size in sizes_there}


def resize(root: str, node: int, page_size: int, persistent: int) -> Pool:
    """Ask for `persistent` pages and return what came of it. Raises HostError when the kernel refuses outright."""
    files.write_attribute(f"{_directory(root, node, page_size)}/nr_hugepages", str(persistent))
    return pool(root, node, page_size)


def grow(root: str, node: int, page_size: int, count: int) -> int:
    """Add `count` pages to the pool, compacting memory where they do not come at once; returns how many came.

    Overcommitted pages of others become the pool's own on the way: the kernel does that before it adds any. Raises
    HostError when the kernel refuses outright.
    """
    before = pool(root, node, page_size).total
    after = resize(root, node, page_size, before + count).total
    if after < before + count:
        _compact(root, node)
        after = resize(root, node, page_size, before + count).total
    return after - before


def _compact(root: str, node: int) -> None:
    # Documentation/ABI/stable/sysfs-devices-node; a kernel without CONFIG_COMPACTION lacks the file.
    path = f"{root}/sys/devices/system/node/node{node}/compact"
    if os.path.exists(path):
        files.write_attribute(path, "1")


def promised(root: str, node: int, page_size: int, others: Iterable[Claim]) -> int:
    """Pages that the claims of `others` cover and that their QEMU has not faulted yet."""
    return sum(
        max(0, claim.pages[node] - faulted(root, claim, node))
        for claim in others
        if claim.page_size == page_size and node in claim.pages
    )


def reserved(root: str, page_size: int, others: Iterable[Claim]) -> int:
    """Pages that processes other than the guests of `others` have mapped and not touched, on whatever node.

    The kernel counts those of guests too, from the moment that QEMU maps them: until then they are promises alone.
    """
    try:
        path = f"{root}/sys/kernel/mm/hugepages/hugepages-{page_size >> 10}kB/resv_hugepages"
        everybodys = int(files.read(path))
    except (OSError, ValueError):
        return 0
    mapped = [claim for claim in others if claim.page_size == page_size and _maps(root, claim)] if everybodys else []
    nodes = frozenset[int]().union(*(claim.pages for claim in mapped))
    return max(0, everybodys - sum(promised(root, node, page_size, mapped) for node in nodes))


def _maps(root: str, claim: Claim) -> bool:
    from kvmsup.effects import numa_maps  # only beside other guests with hugepages

    return any(numa_maps.maps_hugepages(root, pid) for pid in cgroup.processes(root, claim))


def faulted(root: str, claim: Claim, node: int) -> int:
    """Pages of the claim's size on `node` that the guest's processes have mapped and touched."""
    from kvmsup.effects import numa_maps

    pids = cgroup.processes(root, claim)
    return sum(numa_maps.pages(root, pid, node, claim.page_size) for pid in pids)


def give_back(root: str, claim: Claim, others: list[Claim]) -> dict[int, int]:
    """Take out of the pools what setup had added for `claim`; returns, by node, the pages that could not go.

    Our own share is subtracted from what the pool holds now, so an administrator's change in between stays. Raises
    HostError when the kernel refuses outright.
    """
    left = {}
    for node, planned in claim.grown.items():
        now = pool(root, node, claim.page_size)
        before = claim.before.get(node, 0)
        grown = planned if claim.held else pages.grown_so_far(before, now.total, planned)
        absorbed = claim.absorbed.get(node, 0)
        if absorbed and not claim.held:
            absorbed = pages.absorbed_so_far(absorbed, now.surplus, before, now.total)
        if grown or absorbed:
            left[node] = _shrink(root, claim.page_size, node, grown, absorbed, others)
    return {node: count for node, count in left.items() if count}


def unpromised(root: str, node: int, page_size: int, others: Iterable[Claim]) -> tuple[Pool, int]:
    """The pool of `node`, and what of it `others` were promised and have not faulted yet.

    Their QEMUs may be filling at this very moment. Promises are read first: a page that is faulted in between is
    then missing from what is free and never had twice.
    """
    reserved = promised(root, node, page_size, others)
    return pool(root, node, page_size), reserved


def _shrink(root: str, page_size: int, node: int, grown: int, absorbed: int, others: list[Claim]) -> int:
    """Shrink by up to `grown` pages, waiting a moment for a dying QEMU's; returns how many are still missing.

    Beside those, `absorbed` pages are to be overcommitted again. The kernel takes what is free before it makes any so,
    which may not be what somebody was promised: then they stay.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    count = 0
    while True:
        now, reserved = unpromised(root, node, page_size, others)
        # What is free beside the promises does not change by faulting, and is never read as too much: the best counts.
        count = min(now.free, max(count, pages.to_give_back(grown, now.free, reserved)))
        if count == grown or now.total < grown or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    overcommitted = 0 if reserved else absorbed
    after = resize(root, node, page_size, max(0, now.persistent - count - overcommitted))
    return max(0, grown - (now.total - after.total))
