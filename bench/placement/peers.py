# SPDX-License-Identifier: LGPL-2.1-or-later
"""How others choose CPUs for a dedicated guest, written anew from what their documentation and sources say they do.

Nova: nova/virt/hardware.py and its administrator's guide, "CPU topologies". Incus: limits.cpu.nodes=balanced of its
documentation of instance options, and what driver_common.go and devices.go do for it. All are given the same free
CPUs, and memory that is never promised twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, permutations
from typing import NamedTuple

from kvmsup.errors import Refusal
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest
from kvmsup.model.topology import Topology
from kvmsup.plan.placement import place
from tests.unit.hosts import HOST

Cpus = tuple[int, ...]


class Room(NamedTuple):
    """A host at one moment: the CPUs that dedicated guests may be given, and bytes of memory by node, both free."""

    topology: Topology
    free: frozenset[int]
    memory: Mapping[int, int]
    claims: Sequence[Claim]


Chooser = Callable[[Guest, Room], Cpus | None]


def kvmsup(guest: Guest, room: Room) -> Cpus | None:
    """What this project does; every other function here answers in its form: host CPUs by vCPU index, or None."""
    try:
        placed = place(guest, HOST, room.topology, room.claims, room.memory)
    except Refusal:
        return None
    return tuple(cpu for cpus in placed.vcpu for cpu in cpus)


def kvmsup_unsplit(guest: Guest, room: Room) -> Cpus | None:
    """kvmsup, were it to refuse what Nova refuses: more nodes than the size forces, memory elsewhere."""
    cpus = kvmsup(guest, room)
    nodes = room.topology.nodes_of(cpus or ())
    near = sum(room.memory[node] for node in nodes) >= guest.memory.size
    return cpus if near and len(nodes) in (1, _cells(guest, room.topology)) else None


def free_cores(room: Room, nodes: Iterable[int]) -> list[Cpus]:
    """The free CPUs of `nodes`, core by core."""
    free = room.free & room.topology.cpus_of(nodes)
    cores = (tuple(sorted(core & free)) for core in room.topology.cores())
    return [core for core in cores if core]


def _siblings_first(cores: Sequence[Cpus], guest: Guest) -> Cpus | None:
    """The first CPUs of `cores` for `guest`, in runs of siblings where it wants such."""
    threads = guest.cpu.threads
    usable = (core[: len(core) // threads * threads] for core in cores)
    return _enough(chain.from_iterable(usable), guest.cpu.maxcpus)


def _enough(cpus: Iterable[int], wanted: int) -> Cpus | None:
    taken = tuple(cpus)[:wanted]
    return taken if len(taken) == wanted else None


def first_fit(guest: Guest, room: Room) -> Cpus | None:
    """The lowest numbers that are free; on one node, the first that is enough, for hugepages."""
    if not guest.pages:
        return _lowest(guest, room, room.topology.nodes)
    for node in sorted(room.topology.nodes):
        if room.memory[node] >= guest.memory.size and (found := _lowest(guest, room, (node,))):
            return found
    return None


def _lowest(guest: Guest, room: Room, nodes: Iterable[int]) -> Cpus | None:
    if guest.cpu.threads > 1:
        return _siblings_first(free_cores(room, nodes), guest)
    return _enough(sorted(room.free & room.topology.cpus_of(nodes)), guest.cpu.maxcpus)


def _incus(guest: Guest, room: Room) -> Cpus | None:
    """The node with the fewest instances that has room; as many nodes as needed where none is enough."""
    nodes = sorted(room.topology.nodes)
    instances = [node for claim in room.claims for node in room.topology.nodes_of(claim.own_cpus)]
    order = sorted(nodes, key=instances.count)
    for node in order:
        enough = not guest.pages or room.memory[node] >= guest.memory.size
        if enough and (found := _siblings_first(free_cores(room, (node,)), guest)):
            return found
    return None if guest.pages else _siblings_first([c for node in order for c in free_cores(room, (node,))], guest)


def _nova(guest: Guest, room: Room, pack: bool) -> Cpus | None:
    """Each cell of the guest on one node, in the order of the free CPUs, then of the free memory.

    A guest has one cell, as hw:cpu_policy=dedicated implies, and more where a node could never hold it: as if its
    flavour's hw:numa_nodes had been chosen for this host.
    """
    sign = 1 if pack else -1
    cores = {node: free_cores(room, (node,)) for node in sorted(room.topology.nodes)}
    order = sorted(cores, key=lambda node: (sign * sum(map(len, cores[node])), sign * room.memory[node]))
    cells = _cells(guest, room.topology)
    vcpus = guest.cpu.maxcpus // cells
    fitting = [node for node in order if room.memory[node] >= guest.memory.size // cells]
    pinned = {node: found for node in fitting if (found := _pack(cores[node], vcpus, guest.cpu.threads))}
    # Nova tries every permutation of nodes; those with a node that fits nothing cannot win.
    for chosen in permutations(pinned, cells):
        return tuple(chain.from_iterable(pinned[node] for node in chosen))
    return None


def _cells(guest: Guest, topology: Topology) -> int:
    widest = max(len(topology.cpus_of((node,)) - topology.housekeeping()) for node in topology.nodes)
    fair = (n for n in range(1, len(topology.nodes) + 1) if not guest.cpu.maxcpus % (n * guest.cpu.threads))
    return next((n for n in fair if guest.cpu.maxcpus // n <= widest), 1)


def _pack(cores: Sequence[Cpus], vcpus: int, threads: int) -> Cpus | None:
    """From cores that have as many CPUs free as possible, the same number of each; at last from any.

    threads > 1 is hw:cpu_thread_policy=require: no core gives one CPU alone.
    """
    widest = max(map(len, cores), default=0)
    for count in range(widest, 0 if threads == 1 else 1, -1):
        usable = [core[:count] for core in cores if len(core) >= count]
        if count * len(usable) >= vcpus:
            return tuple(chain.from_iterable(usable))[:vcpus]
    return _enough(chain.from_iterable(cores), vcpus) if threads == 1 else None


CHOOSERS: dict[str, Chooser] = {
    "kvmsup": kvmsup,
    "Nova, spread": partial(_nova, pack=False),
    "Nova, pack": partial(_nova, pack=True),
    "Incus": _incus,
    "first fit": first_fit,
    "kvmsup, unsplit": kvmsup_unsplit,
}
