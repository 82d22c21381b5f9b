# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's logical CPUs and NUMA nodes as one frozen value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmsup.records import NamedTuple

# What a node is from itself and from another where nobody tells (ACPI SLIT; include/linux/topology.h).
LOCAL_DISTANCE, REMOTE_DISTANCE = 10, 20
# Only cores of nodes of this size or more are worth one for housekeeping: at most a quarter is kept from guests.
_CORES_WORTH_ONE = 4


class LogicalCpu(NamedTuple):
    """One online CPU. `siblings` are the CPUs of its core and `cache` those that share its last-level cache, each
    with itself among them. `grade` ranks the kinds of cores of a hybrid host, 0 the fastest; `kind` names it, "" where
    all cores are alike.
    """

    number: int
    package: int
    die: int
    node: int
    siblings: frozenset[int]
    cache: frozenset[int]
    kind: str = ""
    grade: int = 0


class Topology(NamedTuple):
    """`cpus` are the online ones, by number, ascending; `nodes` every online node, also one without CPUs or memory.

    `memory` is in bytes by node, 0 for a node without; `distances` by node and node, as the firmware tells them.
    """

    cpus: Mapping[int, LogicalCpu]
    present: frozenset[int]
    isolated: frozenset[int]  # isolcpus=
    nohz_full: frozenset[int]
    nodes: frozenset[int]
    distances: Mapping[int, Mapping[int, int]]
    memory: Mapping[int, int]

    @property
    def online(self) -> frozenset[int]:
        return frozenset(self.cpus)

    @property
    def with_memory(self) -> frozenset[int]:
        """The nodes that have memory; all where none is told. The kernel binds to no others (mbind(2), EINVAL)."""
        return frozenset(node for node in self.nodes if self.memory.get(node, 0)) or self.nodes

    def siblings(self, number: int) -> frozenset[int]:
        """The online CPUs of `number`'s core. Raises KeyError when `number` is not online."""
        return self.cpus[number].siblings

    def node_of(self, number: int) -> int:
        """The node of CPU `number`. Raises KeyError when it is not online."""
        return self.cpus[number].node

    def nodes_of(self, numbers: Iterable[int]) -> frozenset[int]:
        """The nodes of those of `numbers` that are online."""
        return frozenset(self.cpus[number].node for number in numbers if number in self.cpus)

    def cpus_of(self, nodes: Iterable[int]) -> frozenset[int]:
        """The online CPUs of `nodes`."""
        wanted = frozenset(nodes)
        return frozenset(number for number, cpu in self.cpus.items() if cpu.node in wanted)

    def cores(self) -> tuple[frozenset[int], ...]:
        """The online CPUs, grouped by core, in the order of each core's first CPU."""
        return tuple(cpu.siblings for cpu in self.cpus.values() if cpu.number == min(cpu.siblings))

    def distance(self, node: int, other: int) -> int:
        """How far `other`'s memory is from `node`, 10 being its own (ACPI, System Locality Information Table)."""
        default = LOCAL_DISTANCE if node == other else REMOTE_DISTANCE
        return self.distances.get(node, {}).get(other, default)

    def housekeeping(self) -> frozenset[int]:
        """What is kept from guests where nobody chose: a core of each node that has four or more, and one at least.

        Each is the first of its node outside isolcpus=: the kernel's own work is at home on the first CPUs.
        """
        cores = [core for core in self.cores() if not core & self.isolated] or self.cores()
        by_node: dict[int, list[frozenset[int]]] = {}
        for core in cores:
            by_node.setdefault(self.cpus[min(core)].node, []).append(core)
        firsts = [found[0] for found in by_node.values() if len(found) >= _CORES_WORTH_ONE]
        return frozenset().union(*firsts) or cores[0]
