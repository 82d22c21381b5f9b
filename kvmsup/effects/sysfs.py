# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's topology and memory as the kernel tells them (Documentation/admin-guide/cputopology.rst)."""

from __future__ import annotations

from collections.abc import Mapping

from kvmsup import cpulist
from kvmsup.effects import files
from kvmsup.errors import HostError
from kvmsup.model.topology import LogicalCpu, Topology

# The event sources of a hybrid x86 processor, one a kind of core, fastest first (arch/x86/events/intel/core.c).
_KINDS = ("core", "atom", "lowpower")


def online(root: str) -> frozenset[int]:
    """The CPUs that are online. Raises HostError."""
    path = f"{root}/sys/devices/system/cpu/online"
    found = _numbers(path)
    if not found:
        raise HostError(f"{path}: the kernel says that no CPU is online")
    return found


def topology(root: str) -> Topology:
    """The topology below `root`. Raises HostError when the kernel's files are not what its documentation says."""
    cpu = f"{root}/sys/devices/system/cpu"
    up = online(root)
    nodes = _optional(f"{root}/sys/devices/system/node/online") or frozenset((0,))
    return Topology(
        cpus=_cpus(root, up, nodes),
        present=_numbers(f"{cpu}/present"),
        isolated=_optional(f"{cpu}/isolated"),
        nohz_full=_optional(f"{cpu}/nohz_full"),
        nodes=nodes,
        distances={node: _distances(root, node, nodes) for node in nodes},
        memory={node: _meminfo(root, node).get("MemTotal", 0) for node in nodes},
    )


def _cpus(root: str, up: frozenset[int], nodes: frozenset[int]) -> dict[int, LogicalCpu]:
    """Each group of CPUs is read once, from its first member: a large host has thousands of these files."""
    node_of = {number: node for node in nodes for number in _cpus_of_node(root, node)}
    # The older names of core_cpus_list and package_cpus_list, which every kernel still has.
    cores = _groups(root, up, "topology/thread_siblings_list")
    packages = _numbered(root, _groups(root, up, "topology/core_siblings_list"), "topology/physical_package_id")
    dies = _numbered(root, _groups(root, up, "topology/die_cpus_list"), "topology/die_id")
    caches = _groups(root, up, f"cache/{_last_level(root, min(up))}/shared_cpu_list")
    kinds, grades = _kinds(root, up)
    return {
        number: LogicalCpu(
            number=number,
            package=packages[number],
            die=dies[number],
            node=node_of.get(number, min(nodes)),
            siblings=cores[number],
            cache=caches[number],
            kind=kinds.get(number, ""),
            grade=grades.get(kinds.get(number, ""), 0),
        )
        for number in sorted(up)
    }


def _groups(root: str, up: frozenset[int], attribute: str) -> dict[int, frozenset[int]]:
    """The group of each CPU by the CPU list that is its `attribute`; alone where the kernel has none."""
    found: dict[int, frozenset[int]] = {}
    for number in sorted(up):
        if number not in found:
            listed = _optional(f"{root}/sys/devices/system/cpu/cpu{number}/{attribute}") & up
            group = listed.difference(found) | {number}
            found |= dict.fromkeys(group, group)
    return found


def _numbered(root: str, groups: Mapping[int, frozenset[int]], attribute: str) -> dict[int, int]:
    """The number that each group's first CPU tells in `attribute`, 0 where it tells none, as virtual CPUs do."""
    numbers = {
        group: _integer(f"{root}/sys/devices/system/cpu/cpu{min(group)}/{attribute}") for group in groups.values()
    }
    return {number: max(0, numbers[group] or 0) for number, group in groups.items()}


def _integer(path: str) -> int | None:
    try:
        return int(files.read(path))
    except (OSError, ValueError):
        return None


def _last_level(root: str, number: int) -> str:
    """The directory of the largest cache that CPU `number` has (Documentation/ABI, sysfs-devices-system-cpu)."""
    directory = f"{root}/sys/devices/system/cpu/cpu{number}/cache"
    levels = {f"index{index}": _integer(f"{directory}/index{index}/level") for index in range(5)}
    told = {name: level for name, level in levels.items() if level is not None}
    return max(told, key=lambda name: told[name], default="index3")


def _kinds(root: str, up: frozenset[int]) -> tuple[dict[int, str], dict[str, int]]:
    """The kind of each CPU, and the grade of each kind: nothing where all are alike.

    A hybrid x86 names its kinds; elsewhere the scheduler's capacity tells them apart (sysfs-devices-system-cpu).
    """
    named = {kind: _optional(f"{root}/sys/devices/cpu_{kind}/cpus") & up for kind in _KINDS}
    kinds = {number: kind for kind, numbers in named.items() for number in numbers}
    there = [kind for kind in _KINDS if named[kind]]
    if not kinds and _integer(f"{root}/sys/devices/system/cpu/cpu{min(up)}/cpu_capacity") is not None:
        told = {number: _integer(f"{root}/sys/devices/system/cpu/cpu{number}/cpu_capacity") or 0 for number in up}
        kinds = {number: f"capacity {capacity}" for number, capacity in told.items()}
        there = [f"capacity {capacity}" for capacity in sorted(set(told.values()), reverse=True)]
    return (kinds, {kind: grade for grade, kind in enumerate(there)}) if len(there) > 1 else ({}, {})


def _distances(root: str, node: int, nodes: frozenset[int]) -> dict[int, int]:
    """By other node: the file lists the online ones in their order (drivers/base/node.c, node_read_distance)."""
    try:
        words = files.read(f"{root}/sys/devices/system/node/node{node}/distance").split()
        return dict(zip(sorted(nodes), map(int, words), strict=True))
    except (OSError, ValueError):
        return {}


def _cpus_of_node(root: str, node: int) -> frozenset[int]:
    return _optional(f"{root}/sys/devices/system/node/node{node}/cpulist")


def _numbers(path: str) -> frozenset[int]:
    try:
        return _list(path)
    except OSError as error:
        raise HostError(f"{path}: cannot read: {error.strerror}") from None


def _optional(path: str) -> frozenset[int]:
    """A list that not every kernel has: a file that is not there is an empty list, a wrong one is an error."""
    try:
        return _list(path)
    except OSError:
        return frozenset()


def _list(path: str) -> frozenset[int]:
    text = files.read(path)
    if text.strip() == "(null)":  # an empty nohz_full
        return frozenset()
    try:
        return cpulist.parse(text)
    except ValueError as error:
        raise HostError(f"{path}: the kernel's list {error}") from None


def free_memory(root: str, nodes: frozenset[int]) -> dict[int, int]:
    """Bytes by node that are free or hold nothing but caches; what is in hugepage pools is not among them."""
    return {node: sum(_meminfo(root, node).get(key, 0) for key in _FREE) for node in nodes}


_FREE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")


def _meminfo(root: str, node: int) -> dict[str, int]:
    """Bytes by key of the node's meminfo; nothing where there is none."""
    try:
        # "Node 0 MemFree:  123 kB"
        lines = [
            line.split() for line in files.read(f"{root}/sys/devices/system/node/node{node}/meminfo").splitlines()
        ]
    except OSError:
        return {}
    return {words[2].rstrip(":"): int(words[3]) << 10 for words in lines if words[-1] == "kB"}
