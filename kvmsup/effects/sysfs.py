# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's topology and memory as the kernel tells them (Documentation/admin-guide/cputopology.rst)."""

from __future__ import annotations

from kvmsup import cpulist
from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.model.topology import LogicalCpu, Topology


def online(root: str) -> frozenset[int]:
    """The CPUs that are online. Raises HostError."""
    return _numbers(f"{root}/sys/devices/system/cpu/online")


def topology(root: str) -> Topology:
    """The topology below `root`. Raises HostError when the kernel's files are not what its documentation says."""
    cpu = f"{root}/sys/devices/system/cpu"
    up = online(root)
    nodes = _optional(f"{root}/sys/devices/system/node/online") or frozenset((0,))
    node_of = {number: node for node in nodes for number in _cpus_of_node(root, node)}
    cpus = tuple(_cpu(cpu, number, node_of.get(number, min(nodes)), up) for number in sorted(up))
    return Topology(cpus, _numbers(f"{cpu}/present"), _optional(f"{cpu}/isolated"), nodes)


def _cpu(directory: str, number: int, node: int, online: frozenset[int]) -> LogicalCpu:
    topology_of = f"{directory}/cpu{number}/topology"
    # The older name of core_cpus_list, which every kernel still has.
    siblings = _optional(f"{topology_of}/thread_siblings_list") & online
    try:
        package = int(files.read(f"{topology_of}/physical_package_id"))
    except (OSError, ValueError):
        package = 0
    return LogicalCpu(number, package, node, siblings or frozenset((number,)))


def _cpus_of_node(root: str, node: int) -> frozenset[int]:
    return _optional(f"{root}/sys/devices/system/node/node{node}/cpulist")


def _numbers(path: str) -> frozenset[int]:
    try:
        return cpulist.parse(files.read(path))
    except OSError as error:
        raise HostError(f"{path}: cannot read: {error.strerror}") from None
    except ValueError as error:
        raise HostError(f"{path}: the kernel's list {error}") from None


def _optional(path: str) -> frozenset[int]:
    """A list that not every kernel has: a file that is not there is an empty list, a wrong one is an error."""
    try:
        return cpulist.parse(files.read(path))
    except OSError:
        return frozenset()
    except ValueError as error:
        raise HostError(f"{path}: the kernel's list {error}") from None


def free_memory(root: str, nodes: frozenset[int]) -> dict[int, int]:
    """Bytes by node that are free or hold nothing but caches; what is in hugepage pools is not among them."""
    return {node: _free_on(f"{root}/sys/devices/system/node/node{node}") for node in nodes}


def _free_on(directory: str) -> int:
    try:
        # "Node 0 MemFree:  123 kB"
        lines = [line.split() for line in files.read(f"{directory}/meminfo").splitlines()]
    except OSError:
        return 0
    return sum(
        int(words[3]) << 10
        for words in lines
        if words[2] in ("MemFree:", "Active(file):", "Inactive(file):", "SReclaimable:")
    )
