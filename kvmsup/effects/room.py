# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory that a guest could have on each node."""

from __future__ import annotations

from kvmsup.effects import hugepages, sysfs
from kvmsup.model.claim import Claim


def free(root: str, nodes: frozenset[int], page_size: int, others: list[Claim]) -> dict[int, int]:
    """Bytes by node that are free, with the pool's pages of `page_size` that `others` were not promised.

    Raises HostError.
    """
    found = sysfs.free_memory(root, nodes)
    for node in nodes if page_size else ():
        pool, promised = hugepages.unpromised(root, node, page_size, others)
        found[node] += max(0, pool.free - promised) * page_size
    return found
