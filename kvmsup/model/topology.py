# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's logical CPUs and NUMA nodes as one frozen value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class LogicalCpu(NamedTuple):
    """One online CPU; `siblings` are the CPUs of its core, itself among them."""

    number: int
    package: int
    node: int
    siblings: frozenset[int]


class Topology(NamedTuple):
    """`cpus` holds the online ones, by number; `nodes` every online node, also one without CPUs or memory."""

    cpus: tuple[LogicalCpu, ...]
    present: frozenset[int]
    isolated: frozenset[int]
    nodes: frozenset[int]

    @property
    def online(self) -> frozenset[int]:
        return frozenset(cpu.number for cpu in self.cpus)

    def siblings(self, number: int) -> frozenset[int]:
        """The online CPUs of `number`'s core. Raises KeyError when `number` is not online."""
        return self._cpu(number).siblings

    def node_of(self, number: int) -> int:
        """The node of CPU `number`. Raises KeyError when it is not online."""
        return self._cpu(number).node

    def _cpu(self, number: int) -> LogicalCpu:
        for cpu in self.cpus:
            if cpu.number == number:
                return cpu
        raise KeyError(number)

    def nodes_of(self, numbers: Iterable[int]) -> frozenset[int]:
        wanted = frozenset(numbers)
        return frozenset(cpu.node for cpu in self.cpus if cpu.number in wanted)

    def cpus_of(self, nodes: Iterable[int]) -> frozenset[int]:
        """The online CPUs of `nodes`."""
        wanted = frozenset(nodes)
        return frozenset(cpu.number for cpu in self.cpus if cpu.node in wanted)

    def cores(self) -> tuple[frozenset[int], ...]:
        """The online CPUs, grouped by core, in the order of each core's first CPU."""
        return tuple(cpu.siblings for cpu in self.cpus if cpu.number == min(cpu.siblings))

    def first_core(self) -> frozenset[int]:
        """The CPUs that housekeeping gets where nobody chose: the first core, outside isolcpus= where there is one."""
        for core in self.cores():
            if not core & self.isolated:
                return core
        return self.cores()[0]
