# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's topology and memory as the kernel tells them (Documentation/admin-guide/cputopology.rst)."""

from __future__ import annotations

import os
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


def nodes(root: str) -> frozenset[int]:
    """The NUMA nodes that are online: node 0 on a kernel that knows of none. Raises HostError."""
    return _optional(f"{root}/sys/devices/system/node/online") or frozenset((0,))


def present(root: str) -> frozenset[int]:
    """The CPUs that there are, online or not. Raises HostError."""
    return _numbers(f"{root}/sys/devices/system/cpu/present")


def possible(root: str) -> frozenset[int]:
    """Those that could ever be there, in a socket that is empty now. Raises HostError."""
    return _optional(f"{root}/sys/devices/system/cpu/possible") or present(root)


def topology(root: str) -> Topology:
    """The topology below `root`. Raises HostError when the kernel's files are not what its documentation says."""
    cpu = f"{root}/sys/devices/system/cpu"
    up = online(root)
    there = nodes(root)
    return Topology(
        cpus=_cpus(root, up, there),
        present=present(root),
        isolated=_optional(f"{cpu}/isolated"),
        nohz_full=_optional(f"{cpu}/nohz_full"),
        nodes=there,
        distances={node: _distances(root, node, there) for node in there},
        memory={node: _meminfo(root, node).get("MemTotal", 0) for node in there},
    )


def _cpus(root: str, up: frozenset[int], nodes: frozenset[int]) -> dict[int, LogicalCpu]:
    """Each group of CPUs is read once, from its first member: a large host has thousands of these files."""
    node_of = {number: node for node in nodes for number in _cpus_of_node(root, node)}
    # The older names of core_cpus_list and package_cpus_list, which every kernel still has.
    cores = _groups(root, up, "topology/thread_siblings_list")
    packages = _numbered(root, _groups(root, up, "topology/core_siblings_list"), "topology/physical_package_id")
    dies = _dies(root, up)
    caches = _caches(root, cores)
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
            listed = _optional(f"{_cpu(root, number)}/{attribute}") & up
            group = listed.difference(found) | {number}
            found |= dict.fromkeys(group, group)
    return found


def _numbered(root: str, groups: Mapping[int, frozenset[int]], attribute: str) -> dict[int, int]:
    """The number that each group's first CPU tells in `attribute`, 0 where it tells none, as virtual CPUs do."""
    numbers = {group: _integer(f"{_cpu(root, min(group))}/{attribute}") for group in set(groups.values())}
    return {number: max(0, numbers[group] or 0) for number, group in groups.items()}


def _dies(root: str, up: frozenset[int]) -> dict[int, int]:
    """By CPU; 0 where the kernel knows of no dies: it has no file, or -1 in it (Documentation/ABI, cpu topology)."""
    told = _integer(f"{_cpu(root, min(up))}/topology/die_id")
    if told is None or told < 0:
        return dict.fromkeys(up, 0)
    return _numbered(root, _groups(root, up, "topology/die_cpus_list"), "topology/die_id")


def _cpu(root: str, number: int) -> str:
    return f"{root}/sys/devices/system/cpu/cpu{number}"


def _integer(path: str) -> int | None:
    """The number in a file that not every kernel has, None where it is not there. Raises HostError for a wrong one."""
    try:
        return int(files.read(path))
    except OSError:
        return None
    except ValueError:
        raise HostError(f"{path}: the kernel's number is none") from None


def _caches(root: str, cores: Mapping[int, frozenset[int]]) -> dict[int, frozenset[int]]:
    """Those that share each CPU's last-level cache, its core at least: virtual CPUs often have no caches.

    Each group is asked for its own: the slow cores of a hybrid processor may lack the level that the others have.
    """
    found: dict[int, frozenset[int]] = {}
    for number, core in cores.items():
        if number not in found:
            shared = _last_level(root, number).intersection(cores)
            group = shared.difference(found) | core
            found |= dict.fromkeys(group, group)
    return found


def _last_level(root: str, number: int) -> frozenset[int]:
    """The CPUs of the largest cache that CPU `number` has, none where it has none.

    The kernel numbers the caches of a CPU from the first level upwards (drivers/base/cacheinfo.c).
    """
    directory = f"{_cpu(root, number)}/cache"
    try:
        indices = [int(name[5:]) for name in os.listdir(directory) if name[:5] == "index" and name[5:].isdecimal()]
    except OSError:
        return frozenset()
    return _optional(f"{directory}/index{max(indices)}/shared_cpu_list") if indices else frozenset()


def _kinds(root: str, up: frozenset[int]) -> tuple[dict[int, str], dict[str, int]]:
    """The kind of each CPU, and the grade of each kind: nothing where all are alike.

    A hybrid x86 names its kinds; elsewhere the scheduler's capacity tells them apart (sysfs-devices-system-cpu).
    """
    named = {kind: _optional(f"{root}/sys/devices/cpu_{kind}/cpus") & up for kind in _KINDS}
    kinds = {number: kind for kind, numbers in named.items() for number in numbers}
    there = [kind for kind in _KINDS if named[kind]]
    if not kinds and _integer(f"{_cpu(root, min(up))}/cpu_capacity") is not None:
        told = {number: _integer(f"{_cpu(root, number)}/cpu_capacity") or 0 for number in up}
        names = _by_capacity(sorted(set(told.values()), reverse=True))
        kinds = {number: names[capacity] for number, capacity in told.items()}
        there = list(dict.fromkeys(names.values()))
    return (kinds, {kind: grade for grade, kind in enumerate(there)}) if len(there) > 1 else ({}, {})


def _by_capacity(told: list[int]) -> dict[int, str]:
    """The kind by each capacity of `told`, largest first. Cores of one kind that clock a little apart are one kind."""
    names: dict[int, str] = {}
    largest = told[0]
    for capacity in told:
        if capacity * 10 < largest * 9:
            largest = capacity
        names[capacity] = f"capacity {largest}"
    return names


def _distances(root: str, node: int, nodes: frozenset[int]) -> dict[int, int]:
    """By other node: the file lists the online ones in their order (drivers/base/node.c, node_read_distance).

    A list of another length is left out: a node came or went between the two files.
    """
    path = f"{root}/sys/devices/system/node/node{node}/distance"
    try:
        told = [int(word) for word in files.read(path).split()]
    except OSError:
        return {}
    except ValueError:
        raise HostError(f"{path}: the kernel's distances are not numbers") from None
    return dict(zip(sorted(nodes), told, strict=True)) if len(told) == len(nodes) else {}


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
    text = files.read(path).strip("\0\n ")
    if text == "(null)":  # an empty nohz_full, padded with spaces (lib/vsprintf.c, check_pointer)
        return frozenset()
    try:
        return cpulist.parse(text)
    except ValueError as error:
        raise HostError(f"{path}: the kernel's list {error}") from None


def free_memory(root: str, nodes: frozenset[int]) -> dict[int, int]:
    """Bytes by node that are free or hold nothing but caches; what is in hugepage pools is not among them."""
    told = {node: _meminfo(root, node) for node in nodes}
    return {node: sum(found.get(key, 0) for key in _FREE) for node, found in told.items()}


_FREE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")


def _meminfo(root: str, node: int) -> dict[str, int]:
    """Bytes by key of the node's meminfo; nothing where there is none. Raises HostError when it is none."""
    path = f"{root}/sys/devices/system/node/node{node}/meminfo"
    try:
        # "Node 0 MemFree:  123 kB"
        lines = [line.split() for line in files.read(path).splitlines()]
        return {words[2].rstrip(":"): int(words[3]) << 10 for words in lines if words[-1:] == ["kB"]}
    except OSError:
        return {}
    except (ValueError, IndexError):
        raise HostError(f"{path}: the kernel's figures are not numbers") from None
