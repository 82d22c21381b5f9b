# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines made of files: sysfs as the kernels of real ones print it.

The formats are those of captured trees (hwloc's tests/hwloc/linux, util-linux's tests/ts/lscpu/dumps) and of
Documentation/ABI: what a kernel or an architecture does not have is not written. `Machine` is the plain tree, each
builder below says what is particular to its machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from kvmsup import cpulist

Cpus = Iterable[int]
CPU, NODE = "/sys/devices/system/cpu", "/sys/devices/system/node"
GIB = 1 << 30
# What an unset mask becomes in print_cpus_nohz_full: a null pointer, padded to the width of the mask.
NO_NOHZ = "              (null)"


class Core(NamedTuple):
    """One core: its CPUs, and the numbers and groups that its CPUs tell; None where the kernel has no such file."""

    cpus: tuple[int, ...]
    core_id: int
    package: int | None = 0
    die: int | None = 0
    capacity: int | None = None


class Machine:
    """A tree below `root`. CPUs that are not online have a directory without topology, as after a hot-unplug."""

    def __init__(self, root: str, online: Cpus, *, present: Cpus | None = None, possible: str = "") -> None:
        self.root = root
        self._made: set[str] = set()
        self.online = frozenset(online)
        self.present = frozenset(present if present is not None else self.online)
        for name, text in {
            "online": cpulist.render(self.online),
            "offline": cpulist.render(self.present - self.online),
            "present": cpulist.render(self.present),
            "possible": possible or cpulist.render(self.present),
            "isolated": "",
            "nohz_full": NO_NOHZ,
            "kernel_max": "8191",
        }.items():
            self.write(f"{CPU}/{name}", text)
        for number in self.present:
            self.cpu(number, "online", str(int(number in self.online)))

    def write(self, path: str, text: str) -> None:
        directory = os.path.dirname(self.root + path)
        if directory not in self._made:
            os.makedirs(directory, exist_ok=True)
            self._made.add(directory)
        with open(self.root + path, "w", encoding="latin-1") as file:
            file.write(f"{text}\n")

    def remove(self, path: str) -> None:
        os.unlink(self.root + path)

    def cpu(self, number: int, attribute: str, text: str) -> None:
        self.write(f"{CPU}/cpu{number}/{attribute}", text)

    def _list(self, cpus: Cpus) -> str:
        return cpulist.render(self.online.intersection(cpus))

    def cores(self, cores: Iterable[Core]) -> None:
        """The topology directories; packages and dies group the cores of the same numbers."""
        told = list(cores)
        packages: dict[int | None, list[int]] = {}
        dies: dict[tuple[int | None, int | None], list[int]] = {}
        for core in told:
            packages.setdefault(core.package, []).extend(core.cpus)
            dies.setdefault((core.package, core.die), []).extend(core.cpus)
        for core in told:
            package, die = self._list(packages[core.package]), self._list(dies[core.package, core.die])
            for number in self.online.intersection(core.cpus):
                self._core(number, core, package, die)

    def _core(self, number: int, core: Core, package: str, die: str) -> None:
        siblings = self._list(core.cpus)
        told = {"core_id": str(core.core_id), "thread_siblings_list": siblings, "core_cpus_list": siblings}
        if core.package is not None:
            told |= {"physical_package_id": str(core.package), "core_siblings_list": package}
            told["package_cpus_list"] = package
        if core.die is not None:
            # Where the architecture knows of no dies, a CPU is alone in die -1 (include/linux/topology.h).
            told |= {"die_id": str(core.die), "die_cpus_list": die if core.die >= 0 else str(number)}
        for name, text in told.items():
            self.cpu(number, f"topology/{name}", text)
        if core.capacity is not None:
            self.cpu(number, "cpu_capacity", str(core.capacity))

    def caches(self, shared: Mapping[int, Iterable[Cpus]], *, split: Iterable[int] = (1,)) -> None:
        """By level the groups that share one; levels of `split` are two caches, for data and for instructions."""
        entries: dict[int, list[tuple[int, str, str]]] = {}
        for level, groups in sorted(shared.items()):
            for group in groups:
                kinds = ("Data", "Instruction") if level in split else ("Unified",)
                for number in self.online.intersection(group):
                    entries.setdefault(number, []).extend((level, kind, self._list(group)) for kind in kinds)
        for number, found in entries.items():
            for index, (level, kind, cpus) in enumerate(found):
                for name, text in {"level": str(level), "type": kind, "shared_cpu_list": cpus}.items():
                    self.cpu(number, f"cache/index{index}/{name}", text)

    def nodes(self, cpus: Mapping[int, Cpus], gib: Mapping[int, int], distances: Iterable[str]) -> None:
        """Nodes with their CPUs, memory in GiB and lines of distances, in the order of the nodes."""
        self.write(f"{NODE}/online", cpulist.render(cpus))
        self.write(f"{NODE}/has_cpu", cpulist.render(node for node, found in cpus.items() if list(found)))
        self.write(f"{NODE}/has_memory", cpulist.render(node for node in cpus if gib[node]))
        for (node, found), distance in zip(cpus.items(), distances, strict=True):
            self.write(f"{NODE}/node{node}/cpulist", self._list(found))
            self.write(f"{NODE}/node{node}/distance", distance)
            self.write(f"{NODE}/node{node}/meminfo", _meminfo(node, gib[node] << 20))


def _meminfo(node: int, kib: int) -> str:
    """A node's meminfo (drivers/base/node.c, node_read_meminfo), half of it free; one without memory has zeros."""
    figures = {"MemTotal": kib, "MemFree": kib // 2, "MemUsed": kib - kib // 2, "SwapCached": 0}
    figures |= {"Active": 0, "Inactive": 0, "Active(anon)": 0, "Inactive(anon)": 0, "Active(file)": kib // 8}
    figures |= {"Inactive(file)": kib // 8, "SReclaimable": 0}
    lines = [f"Node {node} {name}:{' ' * (15 - len(name))}{value:8d} kB" for name, value in figures.items()]
    return "\n".join([*lines, f"Node {node} HugePages_Total:     0", f"Node {node} HugePages_Free:      0"])


def smt_beside(cores: int, package: int = 0, first: int = 0) -> list[Core]:
    """Cores whose siblings are 2n and 2n+1."""
    return [Core((first + 2 * core, first + 2 * core + 1), core, package) for core in range(cores)]


def hybrid_laptop(root: str) -> None:
    """6 fast cores with SMT, then 8 slow ones in two clusters with an L2 each, one L3; as an i7-12700H."""
    machine = Machine(root, range(20))
    slow = [Core((number,), 24 + 2 * (number - 12)) for number in range(12, 20)]
    machine.cores([*smt_beside(6), *slow])
    fast = [(2 * core, 2 * core + 1) for core in range(6)]
    own = [*fast, *((number,) for number in range(12, 20))]
    machine.caches({1: own, 2: [*fast, range(12, 16), range(16, 20)], 3: [range(20)]})
    machine.nodes({0: range(20)}, {0: 32}, ["10"])
    machine.write("/sys/devices/cpu_core/cpus", "0-11")
    machine.write("/sys/devices/cpu_atom/cpus", "12-19")


def hybrid_without_l3(root: str) -> None:
    """4 fast cores with an L3 and, as Meteor Lake's, 2 slow ones on another tile that end at their L2; Linux 6.15."""
    machine = Machine(root, range(10))
    slow = [Core((number,), 32 + number - 8) for number in (8, 9)]
    machine.cores([*smt_beside(4), *slow])
    fast = [(2 * core, 2 * core + 1) for core in range(4)]
    machine.caches({1: [*fast, (8,), (9,)], 2: [*fast, (8, 9)], 3: [range(8)]})
    machine.nodes({0: range(10)}, {0: 16}, ["10"])
    machine.write("/sys/devices/cpu_core/cpus", "0-7")
    machine.write("/sys/devices/cpu_lowpower/cpus", "8-9")


def small_vm(root: str) -> None:
    """One virtual CPU, a kernel without NUMA and without isolation: no node directory, no caches, no nohz_full."""
    machine = Machine(root, [0])
    machine.cores([Core((0,), 0)])
    machine.remove(f"{CPU}/nohz_full")
    machine.remove(f"{CPU}/isolated")


def two_sockets_apart(root: str) -> None:
    """2 sockets of 8 cores; the siblings are n and n + 16, as firmware lists them first by core."""
    machine = Machine(root, range(32))
    cores = [Core((core, core + 16), core % 8, core // 8) for core in range(16)]
    machine.cores(cores)
    sockets = [[*range(first, first + 8), *range(first + 16, first + 24)] for first in (0, 8)]
    machine.caches({1: [core.cpus for core in cores], 2: [core.cpus for core in cores], 3: sockets})
    machine.nodes(dict(enumerate(sockets)), {0: 64, 1: 64}, ["10 21", "21 10"])


def two_sockets_beside(root: str) -> None:
    """The same with siblings 2n and 2n + 1, on a kernel before 5.2, which has no die_id."""
    machine = Machine(root, range(32))
    cores = [core._replace(die=None) for socket in (0, 1) for core in smt_beside(8, socket, 16 * socket)]
    machine.cores(cores)
    sockets = [range(16), range(16, 32)]
    machine.caches({1: [core.cpus for core in cores], 2: [core.cpus for core in cores], 3: sockets})
    machine.nodes(dict(enumerate(sockets)), {0: 64, 1: 64}, ["10 21", "21 10"])


def epyc_nps4(root: str) -> None:
    """2 sockets of 32 cores in 4 nodes each, an L3 for each 4 cores, siblings n and n + 64."""
    machine = Machine(root, range(128), possible="0-255")
    cores = [Core((core, core + 64), core % 32, core // 32) for core in range(64)]
    machine.cores(cores)
    complexes = [[*range(first, first + 4), *range(first + 64, first + 68)] for first in range(0, 64, 4)]
    machine.caches({1: [core.cpus for core in cores], 2: [core.cpus for core in cores], 3: complexes})
    nodes = {node: [*range(8 * node, 8 * node + 8), *range(8 * node + 64, 8 * node + 72)] for node in range(8)}
    near = ["10 12 12 12 32 32 32 32", "12 10 12 12 32 32 32 32", "12 12 10 12 32 32 32 32", "12 12 12 10 32 32 32 32"]
    far = [" ".join([*line.split()[4:], *line.split()[:4]]) for line in near]
    machine.nodes(nodes, dict.fromkeys(nodes, 32), [*near, *far])


def memoryless_node(root: str) -> None:
    """Two nodes of 4 CPUs; the second has no DIMM."""
    machine = Machine(root, range(8))
    machine.cores([Core((number,), number % 4, number // 4) for number in range(8)])
    machine.caches({1: [(number,) for number in range(8)], 3: [range(4), range(4, 8)]})
    machine.nodes({0: range(4), 1: range(4, 8)}, {0: 16, 1: 0}, ["10 21", "21 10"])


def cxl_memory(root: str) -> None:
    """One socket of 4 cores with SMT, and a CXL expander as a node without CPUs."""
    machine = Machine(root, range(8))
    machine.cores([Core((core, core + 4), core) for core in range(4)])
    machine.caches({1: [(core, core + 4) for core in range(4)], 3: [range(8)]})
    machine.nodes({0: range(8), 1: ()}, {0: 64, 1: 128}, ["10 14", "14 10"])


def sparse(root: str) -> None:
    """Holes in both numberings: a PowerNV host with SMT4 off in part, nodes 0 and 8, and a GPU's memory in 252."""
    online = [*range(8), *range(88, 96)]
    machine = Machine(root, online, present=[*range(16), *range(88, 104)], possible="0-175")
    machine.cores(
        [Core(tuple(range(first, first + 4)), first, 0 if first < 88 else 8, None) for first in (0, 4, 88, 92)]
    )
    machine.caches({1: [range(first, first + 4) for first in (0, 4, 88, 92)]})
    distances = ["10 40 80", "40 10 80", "80 80 10"]
    machine.nodes({0: range(8), 8: range(88, 96), 252: ()}, {0: 123, 8: 127, 252: 15}, distances)


def cpu0_offline(root: str) -> None:
    """4 cores with SMT of which CPUs 0 and 6 are offline: theirs are the siblings 4 and 2."""
    machine = Machine(root, [1, 2, 3, 4, 5, 7], present=range(8))
    machine.cores([Core((core, core + 4), core) for core in range(4)])
    machine.caches({1: [(core, core + 4) for core in range(4)], 3: [range(8)]})
    machine.nodes({0: range(8)}, {0: 8}, ["10"])


def large(root: str) -> None:
    """1024 CPUs in 8 nodes: 8 sockets of 64 cores, an L3 for each 8 cores, siblings n and n + 512."""
    machine = Machine(root, range(1024))
    cores = [Core((core, core + 512), core % 64, core // 64) for core in range(512)]
    machine.cores(cores)
    complexes = [[*range(first, first + 8), *range(first + 512, first + 520)] for first in range(0, 512, 8)]
    machine.caches({1: [core.cpus for core in cores], 2: [core.cpus for core in cores], 3: complexes})
    nodes = {node: [*range(64 * node, 64 * node + 64), *range(64 * node + 512, 64 * node + 576)] for node in range(8)}
    lines = [" ".join("10" if node == other else "32" for other in range(8)) for node in range(8)]
    machine.nodes(nodes, dict.fromkeys(nodes, 512), lines)


def big_little(root: str) -> None:
    """aarch64 from a device tree: 3 kinds of cores, no SMT, die -1, a kernel without NUMA; as a Snapdragon 8 Gen 2.

    Each kind's capacity is the same here but for the fastest two, which clock a little apart.
    """
    machine = Machine(root, range(8))
    capacities = [280, 280, 280, 800, 800, 800, 1010, 1024]
    packages = [0, 0, 0, 1, 1, 1, 2, 2]
    machine.cores(
        Core((number,), number, packages[number], -1, capacity) for number, capacity in enumerate(capacities)
    )
    machine.caches({1: [(number,) for number in range(8)], 2: [(number,) for number in range(8)], 3: [range(8)]})


def arm_vm(root: str) -> None:
    """An aarch64 guest without a device tree's or ACPI's topology: package -1, every capacity alike."""
    machine = Machine(root, range(4))
    machine.cores(Core((number,), number, -1, None, 1024) for number in range(4))
    machine.nodes({0: range(4)}, {0: 4}, ["10"])


def ppc64_smt8(root: str) -> None:
    """2 cores of 8 threads with an L2 and L3 each; no die_id."""
    machine = Machine(root, range(16))
    threads = [range(8), range(8, 16)]
    machine.cores(Core(tuple(cpus), cpus[0], 0, None) for cpus in threads)
    machine.caches({1: threads, 2: threads, 3: threads})
    machine.nodes({0: range(16)}, {0: 64}, ["10"])


def s390_books(root: str) -> None:
    """An LPAR in one book with two sockets: book and drawer beside the package, caches private and all split."""
    machine = Machine(root, range(8), possible="0-140")
    machine.cores(Core((number,), number, 1 if number < 2 else 3, None) for number in range(8))
    alone = [(number,) for number in range(8)]
    machine.caches({1: alone, 2: alone}, split=(1, 2))
    for number in range(8):
        for name, text in {"book_id": "1", "book_siblings_list": "0-7", "drawer_id": "4"}.items():
            machine.cpu(number, f"topology/{name}", text)
    machine.nodes({0: range(8)}, {0: 16}, ["10"])


def isolated(root: str) -> None:
    """The first of `two_sockets_apart`'s numberings on 8 CPUs, booted with isolcpus=2-3,6-7 nohz_full=2-3,6-7."""
    machine = Machine(root, range(8))
    machine.cores([Core((core, core + 4), core) for core in range(4)])
    machine.caches({1: [(core, core + 4) for core in range(4)], 3: [range(8)]})
    machine.nodes({0: range(8)}, {0: 8}, ["10"])
    machine.write(f"{CPU}/isolated", "2-3,6-7")
    machine.write(f"{CPU}/nohz_full", "2-3,6-7")


def desktop(root: str) -> None:
    """8 CPUs as 4 cores with SMT under one L3, one node."""
    machine = Machine(root, range(8))
    machine.cores(smt_beside(4))
    pairs = [(2 * core, 2 * core + 1) for core in range(4)]
    machine.caches({1: pairs, 2: pairs, 3: [range(8)]})
    machine.nodes({0: range(8)}, {0: 32}, ["10"])


def big_server(root: str) -> None:
    """256 CPUs: 2 sockets of 64 cores, an L3 for each 8 cores, a node a socket, siblings n and n + 128."""
    machine = Machine(root, range(256))
    cores = [Core((core, core + 128), core % 64, core // 64) for core in range(128)]
    machine.cores(cores)
    complexes = [[*range(first, first + 8), *range(first + 128, first + 136)] for first in range(0, 128, 8)]
    machine.caches({1: [core.cpus for core in cores], 2: [core.cpus for core in cores], 3: complexes})
    nodes = {node: [*range(64 * node, 64 * node + 64), *range(64 * node + 128, 64 * node + 192)] for node in range(2)}
    machine.nodes(nodes, {0: 384, 1: 384}, ["10 32", "32 10"])


BUILDERS: dict[str, Callable[[str], None]] = {
    build.__name__: build
    for build in (
        hybrid_laptop,
        hybrid_without_l3,
        small_vm,
        two_sockets_apart,
        two_sockets_beside,
        epyc_nps4,
        memoryless_node,
        cxl_memory,
        sparse,
        cpu0_offline,
        large,
        big_little,
        arm_vm,
        ppc64_smt8,
        s390_books,
        isolated,
        desktop,
        big_server,
    )
}
