# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hosts that guests arrive on."""

from __future__ import annotations

from kvmsup.model.topology import LogicalCpu, Topology
from tests.unit import hosts

MEMORY_A_CPU = 4 << 30


def _with_caches(found: Topology, cores: int) -> Topology:
    """`found` with a last-level cache for every `cores` cores, counted in each node from its first on."""
    cpus = dict(found.cpus)
    for node in found.nodes:
        there = [core for core in found.cores() if found.node_of(min(core)) == node]
        for first in range(0, len(there), cores):
            cache = frozenset().union(*there[first : first + cores])
            cpus |= {number: found.cpus[number]._replace(cache=cache) for number in cache}
    return found._replace(cpus=dict(sorted(cpus.items())))


def _with_memory(found: Topology) -> Topology:
    return found._replace(memory={node: len(found.cpus_of((node,))) * MEMORY_A_CPU for node in found.nodes})


def _two_packages(found: Topology) -> Topology:
    """`found` with the first half of its nodes in one package and the rest in the other."""
    half = len(found.nodes) // 2
    far = {
        one: {other: 10 if one == other else 12 if one // half == other // half else 32 for other in found.nodes}
        for one in found.nodes
    }
    cpus = {number: cpu._replace(package=cpu.node // half) for number, cpu in found.cpus.items()}
    return found._replace(cpus=cpus, distances=far)


def _hybrid(fast: int, slow: int) -> Topology:
    """A laptop: `fast` cores of two siblings with neighbouring numbers, then `slow` ones of one; one cache."""
    total = 2 * fast + slow
    everything = frozenset(range(total))
    cpus = {}
    for number in range(total):
        small = number >= 2 * fast
        core = frozenset((number,)) if small else frozenset((number & ~1, number | 1))
        cpus[number] = LogicalCpu(number, 0, 0, 0, core, everything, "atom" if small else "core", int(small))
    return hosts.topology(1, total, 1)._replace(cpus=cpus)


def server(cpus: int) -> Topology:
    """`cpus` CPUs, up to 128 a node, two siblings a core, a cache for every 8 cores."""
    nodes = max(1, cpus // 128)
    return _with_memory(_with_caches(hosts.topology(nodes, cpus // nodes // 2, 2), 8))


SHAPES = {
    "desktop: 1 node, 4 cores, SMT": _with_memory(hosts.topology(1, 4, 2)),
    "server: 2 nodes, 16 cores each, SMT": _with_memory(hosts.topology(2, 16, 2)),
    "EPYC-like: 8 nodes, 8 cores each, SMT, a cache for 4 cores": _with_memory(
        _two_packages(_with_caches(hosts.topology(8, 8, 2), 4))
    ),
    "no SMT: 4 nodes, 12 cores each": _with_memory(hosts.topology(4, 12, 1)),
    "hybrid laptop: 6 fast cores, SMT, and 8 slow ones": _with_memory(_hybrid(6, 8)),
}
