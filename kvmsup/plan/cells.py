# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host node of each of a guest's own NUMA nodes: one each, close together, with room for its vCPUs and memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import combinations

from kvmsup import cpulist
from kvmsup.errors import Refusal
from kvmsup.model.guest import Cell, Guest
from kvmsup.model.topology import Topology
from kvmsup.plan import packing, refusals
from kvmsup.plan.scene import Scene

# Whether the vCPUs of these cells fit on a node together.
Fits = Callable[[int, Sequence[Cell]], bool]


def dedicated(
    guest: Guest, scene: Scene, demand: packing.Demand, free: frozenset[int], cores: Sequence[packing.Core]
) -> tuple[dict[int, int], tuple[int, ...]]:
    """The host CPU of each vCPU, from `free`, and the host node of each cell. Raises Refusal.

    `cores` are those that `free` leaves for `demand`, which is all cells' together.
    """
    rooms = {node: packing.room(there) for node, there in packing.by(cores, lambda core: core.node).items()}
    nodes = _assign(guest, scene, lambda node, cells: sum(len(cell.vcpus) for cell in cells) <= rooms.get(node, 0))
    cpus: dict[int, int] = {}
    for cell, node in zip(guest.cells, nodes or (), strict=False):
        left = scene.topology.cpus_of((node,)) & free.difference(cpus.values())
        wanted = demand._replace(vcpus=len(cell.vcpus))
        found = packing.fit_node(packing.cores(scene.topology, left, wanted), wanted)
        if found is None:
            break
        cpus |= dict(zip(sorted(cell.vcpus), found.fit.cpus, strict=True))
    if nodes is None or len(cpus) < guest.cpu.maxcpus:
        raise refusals.too_few(guest, scene, cores)
    return cpus, nodes


def shared(guest: Guest, scene: Scene, free: frozenset[int]) -> tuple[int, ...]:
    """The host node of each cell, where any of the CPUs in `free` are. Raises Refusal."""
    with_cpus = scene.topology.nodes_of(free)
    nodes = _assign(guest, scene, lambda node, _: node in with_cpus)
    if nodes is None:
        raise refusals.nothing_shared(guest, scene.holders)
    return nodes


def chosen_by_user(guest: Guest, topology: Topology) -> tuple[int, ...]:
    """The host node of each cell as host-node or [placement.vcpu] says it. Raises Refusal where neither does."""
    nodes = []
    for number, cell in enumerate(guest.cells):
        on = topology.nodes_of(cpu for index in cell.vcpus for cpu in guest.placement.vcpu[index])
        node = min(on) if cell.host_node is None else cell.host_node
        if on != {node}:
            what = f"the CPUs of guest node {number} are on node {cpulist.render(on)}"
            where = f", not on {node}" if cell.host_node is not None else ""
            hint = f"choose CPUs of one node for vCPU {cpulist.render(cell.vcpus)}"
            raise Refusal(f"placement.vcpu: {what}{where}", hint, "no-cpus")
        if node not in topology.with_memory:
            what = f"guest node {number} would be on node {node}, which has no memory"
            hint = f"choose CPUs of node {cpulist.render(topology.with_memory)}"
            raise Refusal(f"placement.vcpu: {what}", hint, "no-cpus")
        nodes.append(node)
    return tuple(nodes)


def _assign(guest: Guest, scene: Scene, fits: Fits) -> tuple[int, ...] | None:
    """From each node outwards, the largest cell first: whichever node it takes, the others find theirs."""
    topology = scene.topology
    allowed = sorted((guest.placement.nodes or topology.nodes) & topology.with_memory)
    found = []
    for seed in allowed:
        nodes = _outwards(guest, scene, sorted(allowed, key=lambda node: (topology.distance(seed, node), node)), fits)
        if nodes is not None:
            doubled = len(nodes) - len(set(nodes))
            apart = sum(topology.distance(one, other) for one, other in combinations(nodes, 2))
            found.append((doubled, _short(guest, scene, nodes), apart, nodes))
    return min(found)[-1] if found else None


def _outwards(guest: Guest, scene: Scene, order: Sequence[int], fits: Fits) -> tuple[int, ...] | None:
    chosen: dict[int, int] = {}
    # Cells whose node is written down come first: nobody else can tell where they go.
    cells = sorted(enumerate(guest.cells), key=lambda one: (one[1].host_node is None, -len(one[1].vcpus), one[0]))
    for number, cell in cells:

        def there(node: int, number: int = number) -> list[Cell]:
            return [guest.cells[other] for other, used in chosen.items() if used == node] + [guest.cells[number]]

        options = order if cell.host_node is None else (cell.host_node,)
        able = [node for node in options if fits(node, there(node))]
        if not able:
            return None
        memory = {node: sum(one.memory for one in there(node)) for node in able}
        # min() keeps the first of equals, which is the closest.
        chosen[number] = min(able, key=lambda node: (node in chosen.values(), memory[node] > scene.free.get(node, 0)))
    return tuple(chosen[number] for number in range(len(guest.cells)))


def _short(guest: Guest, scene: Scene, nodes: Collection[int]) -> int:
    """On how many nodes the memory of the cells there is more than what is free."""
    wanted = dict.fromkeys(nodes, 0)
    for cell, node in zip(guest.cells, nodes, strict=True):
        wanted[node] += cell.memory
    return sum(size > scene.free.get(node, 0) for node, size in wanted.items())
