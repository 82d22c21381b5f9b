# SPDX-License-Identifier: LGPL-2.1-or-later
"""TOML's [numa.N] → the guest's own NUMA nodes, which share out all of its vCPUs and its memory."""

from __future__ import annotations

from collections import Counter

from kvmsup import cpulist, sizes
from kvmsup.model.guest import Cell, Cpu, Memory
from kvmsup.model.table import Table
from kvmsup.model.topology import Topology

# ACPI SRAT and QEMU (include/sysemu/numa.h: MAX_NODES) allow this many.
MOST_NODES = 128
# ACPI 6.5, 5.2.17 (SLIT): a node to itself, what is taken for any other, and 255 for one that cannot be reached.
_SELF, _USUAL, _FARTHEST = 10, 20, 254


def read(table: Table, keys: tuple[str, ...], cpu: Cpu, memory: Memory, topology: Topology | None) -> tuple[Cell, ...]:
    """The guest nodes of `table`, in their order; none where there is no such table."""
    known = {str(number): number for number in range(MOST_NODES)}
    for key in table:
        if key not in known:
            table.note(key, "guest nodes are numbered from 0", "[numa.0]", at_key=True)
    there = sorted(known[key] for key in table if key in known)
    gaps = sorted(set(range(len(there))) - set(there))
    if gaps:
        table.note(str(there[-1]), f"there is no guest node {gaps[0]}", f"[numa.{gaps[0]}]", at_key=True)
    taken: dict[int, int] = {}
    share = memory.size // len(there) if there else 0
    tables = {number: table.table(str(number), keys) for number in there}
    cells = [_cell(tables[number], number, cpu, share, taken, topology) for number in there]
    missing = set(range(cpu.maxcpus)) - taken.keys()
    if there and missing:
        what = f"vCPU {cpulist.render(missing)} has no guest node"
        table.note("", what, f"all of the {cpu.maxcpus} need one")
    unit = memory.page_size or sizes.UNITS["M"]
    for number, cell in zip(there, cells, strict=True):
        if cell.memory % unit:
            told = f"{cell.memory / sizes.UNITS['M']:g}M"
            what = f"guest node {number} would have {told}, which is no multiple of {sizes.render(unit)}"
            table.note(str(number), what, f'memory = "{sizes.render(cell.memory // unit * unit + unit)}"')
    total = sum(cell.memory for cell in cells)
    if there and memory.size and total != memory.size:
        what = f"the guest nodes have {sizes.render(total)} together, but memory.size = {sizes.render(memory.size)}"
        table.note("", what, "make them agree, or leave memory out of all of them for equal shares")
    rows = [_distances(tables[number], number, len(there)) for number in there]
    return tuple(cell._replace(distances=row) for cell, row in zip(cells, _complete(rows), strict=True))


def _distances(table: Table, number: int, nodes: int) -> tuple[int, ...]:
    """From guest node `number` to each of `nodes`; none where the key is absent or wrong."""
    found = table.integers("distances", _SELF, _FARTHEST)
    if found and len(found) != nodes:
        what = f"{len(found)} distance{'s' if len(found) > 1 else ''} for {nodes} guest node{'s' if nodes > 1 else ''}"
        example = ", ".join(str(_SELF if other == number else _USUAL) for other in range(nodes))
        table.note("distances", what, f"one to each, itself included: distances = [{example}]")
        return ()
    for other, distance in enumerate(found):
        path = (*table.path, "distances", other)
        if other == number and distance != _SELF:
            table.document.note(path, f"guest node {number} is {distance} from itself", f"this one is always {_SELF}")
        elif other != number and distance == _SELF:
            what = f"guest node {other} would be as near to node {number} as itself"
            table.document.note(path, what, f"{_SELF + 1} to {_FARTHEST}; {_USUAL} is usual")
    return found


def _complete(rows: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """All rows, or none: a distance that is missing is the one of the way back (qemu(1), -numa dist), or the usual."""
    if not any(rows):
        return rows
    nodes = range(len(rows))

    def distance(one: int, other: int) -> int:
        there = rows[one][other] if rows[one] else rows[other][one] if rows[other] else 0
        return there or (_SELF if one == other else _USUAL)

    return [tuple(distance(one, other) for other in nodes) for one in nodes]


def _cell(table: Table, number: int, cpu: Cpu, share: int, taken: dict[int, int], topology: Topology | None) -> Cell:
    vcpus = table.cpus("vcpus", '"0-3"') or frozenset()
    if "vcpus" not in table:
        table.note("", "vcpus is missing: which of the guest's vCPUs are on it?", 'vcpus = "0-3"')
    beyond = frozenset(index for index in vcpus if index >= cpu.maxcpus)
    twice = vcpus & taken.keys()
    cut = set() if beyond else _parted(vcpus, cpu.threads)
    if beyond:
        last = cpu.maxcpus - 1
        table.note(
            "vcpus", f"no such vCPU: {cpulist.render(beyond)}", f"this guest has vCPU 0{f'-{last}' if last else ''}"
        )
    elif twice:
        table.note("vcpus", f"vCPU {cpulist.render(twice)} is on guest node {taken[min(twice)]} already")
    elif cut:
        what = f"vCPU {cpulist.render(cut)} is parted from its SMT siblings (cpu.threads = {cpu.threads})"
        table.note("vcpus", what, f"{cpulist.render(_core(min(cut), cpu.threads))} are one core")
    taken |= dict.fromkeys(vcpus, number)
    size = table.size("memory")
    if size == 0:
        table.note("memory", "a guest node without memory", "leave it out for an equal share")
    host_node = table.integer("host-node", 0, 1023)
    if host_node is not None and topology and host_node not in topology.with_memory:
        lack = f"node {host_node} of this host has no memory"
        what = lack if host_node in topology.nodes else f"this host has no node {host_node}"
        table.note("host-node", what, f"its nodes: {cpulist.render(topology.with_memory)}")
    return Cell(vcpus, share if size is None else size, host_node)


def _parted(vcpus: frozenset[int], threads: int) -> set[int]:
    """Those of `vcpus` whose core is not there as a whole."""
    there = Counter(index // threads for index in vcpus)
    return {index for index in vcpus if there[index // threads] < threads}


def _core(index: int, threads: int) -> frozenset[int]:
    """The vCPUs of `index`'s core: QEMU numbers threads first (hw/i386/topology.h)."""
    first = index - index % threads
    return frozenset(range(first, first + threads))
