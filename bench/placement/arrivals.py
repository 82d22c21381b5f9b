# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that come and go, by a seed: the same for everyone who is to place them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from bench.placement.shapes import MEMORY_A_CPU
from kvmsup.model.guest import Guest
from kvmsup.model.topology import Topology
from tests.unit import hosts

_SIZES = {1: 18, 2: 26, 3: 6, 4: 22, 5: 2, 6: 6, 7: 1, 8: 10, 10: 1, 12: 3, 16: 5}
_MEMORY = (0.25, 0.5, 1.0, 1.5)  # of what is a CPU's share on the host
HUGEPAGE = 2 << 20


class Arrival(NamedTuple):
    """`guest` comes at `at` and stays for `stay`, in units of the mean stay, if it is let in."""

    at: float
    stay: float
    guest: Guest


def usable(topology: Topology) -> frozenset[int]:
    """The CPUs that guests may be given."""
    return topology.online - topology.housekeeping()


def _limit(topology: Topology, hugepages: bool) -> int:
    """The most vCPUs of a guest: what half the host holds, four at least, and with hugepages what a node holds."""
    free = usable(topology)
    widest = max(len(free & topology.cpus_of((node,))) for node in topology.nodes)
    half = max(4, len(free) // 2)
    return min(half, widest) if hugepages else half


def _sizes(limit: int) -> dict[int, int]:
    return {size: weight for size, weight in _SIZES.items() if size <= limit}


def _drawn(dice: random.Random, index: int, topology: Topology, hugepages: bool) -> Guest:
    sizes = _sizes(_limit(topology, hugepages))
    vcpus = dice.choices(list(sizes), list(sizes.values()))[0]
    paired = dice.random() < 0.3
    smt = max(map(len, topology.cores())) > 1
    pages = hugepages or (dice.random() < 0.2 and vcpus <= _limit(topology, hugepages=True))
    return hosts.guest(
        vcpus,
        name=f"g{index}",
        dedicated=True,
        threads=2 if paired and smt and not vcpus % 2 else 1,
        size=int(vcpus * dice.choice(_MEMORY) * MEMORY_A_CPU),
        page_size=HUGEPAGE if pages else 0,
    )


def stream(seed: int, count: int, topology: Topology, load: float, hugepages: bool) -> Iterator[Arrival]:
    """`count` arrivals that ask for `load` × the usable CPUs on average, were all let in; a Poisson process."""
    dice = random.Random(seed)
    sizes = _sizes(_limit(topology, hugepages))
    mean = sum(size * weight for size, weight in sizes.items()) / sum(sizes.values())
    rate = load * len(usable(topology)) / mean
    now = 0.0
    for index in range(count):
        now += dice.expovariate(rate)
        yield Arrival(now, dice.expovariate(1.0), _drawn(dice, index, topology, hugepages))
