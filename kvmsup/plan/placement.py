# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a guest goes: its wishes, the topology and the other guests' claims → a placement, or a refusal with reasons.

A pure function, so that `setup`, tests and a dry run decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kvmsup import cpulist, sizes
from kvmsup.errors import Refusal
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest, Host
from kvmsup.model.topology import Topology


class Taken(Refusal):
    """Refused because of other guests: `holders` names them, so that setup can wait for those that are leaving."""

    def __init__(self, what: str, hint: str, holders: Sequence[str]) -> None:
        super().__init__(what, hint)
        self.holders = tuple(holders)


class Placement(NamedTuple):
    """Host CPUs by vCPU index (maxcpus of them), those of every other thread, and the nodes of the memory."""

    vcpu: tuple[frozenset[int], ...]
    emulator: frozenset[int]
    nodes: frozenset[int]  # empty: memory is not bound


def place(guest: Guest, host: Host, topology: Topology, claims: Sequence[Claim], free: Mapping[int, int]) -> Placement:
    """Decide where `guest` goes beside the guests of `claims`.

    `free` is the memory that is free on each node, in bytes, hugepages included.

    Raises Refusal, or Taken where other guests are the reason.
    """
    housekeeping = (host.housekeeping or topology.housekeeping()) & topology.online
    taken = {cpu: claim.guest for claim in claims for cpu in claim.own_cpus}
    if guest.placement.dedicated:
        # Where another guest's emulator was put, outside housekeeping, nobody can be alone.
        taken |= {cpu: claim.guest for claim in claims for cpu in claim.emulator - housekeeping}
    emulator = _emulator(guest, housekeeping, topology, taken)
    if guest.placement.vcpu:
        vcpu = _chosen_by_user(guest, topology, housekeeping, taken)
    elif guest.placement.dedicated:
        vcpu = _dedicated(guest, topology, housekeeping | _only_cpus(claims, taken), taken)
    else:
        vcpu = _shared(guest, topology, taken)
    _check_nobody_is_stranded(guest, vcpu, claims, taken)
    _check_real_time(guest, frozenset().union(*vcpu) & emulator)
    return Placement(vcpu, emulator, _memory_nodes(guest, topology, frozenset().union(*vcpu), free))


def _held(cpus: Iterable[int], taken: Mapping[int, str]) -> str:
    """`CPU 2 is dedicated to guest web, CPU 4-5 to guest db`."""
    by_guest: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        by_guest.setdefault(taken[cpu], []).append(cpu)
    told = [f"CPU {cpulist.render(cpus)} to guest {name}" for name, cpus in by_guest.items()]
    verb = "are" if len(next(iter(by_guest.values()), ())) > 1 else "is"
    return ", ".join(told).replace(" to guest", f" {verb} dedicated to guest", 1)


def _refuse_taken(asked: str, cpus: frozenset[int], taken: Mapping[int, str], hint: str) -> None:
    clash = {cpu: taken[cpu] for cpu in sorted(cpus) if cpu in taken}
    if clash:
        raise Taken(f"{asked}: {_held(clash, clash)}", hint, sorted(set(clash.values())))


def _emulator(
    guest: Guest, housekeeping: frozenset[int], topology: Topology, taken: Mapping[int, str]
) -> frozenset[int]:
    wished = guest.placement.emulator
    if wished is None:
        free = housekeeping - frozenset(taken)
        return free or topology.online - frozenset(taken) or housekeeping
    _refuse_taken("placement.emulator", wished, taken, "choose other CPUs, or stop that guest")
    return wished


def _chosen_by_user(
    guest: Guest, topology: Topology, housekeeping: frozenset[int], taken: Mapping[int, str]
) -> tuple[frozenset[int], ...]:
    cpus = frozenset().union(*guest.placement.vcpu)
    _refuse_taken("placement.vcpu", cpus, taken, "choose other CPUs, or stop that guest")
    if guest.placement.dedicated and cpus & housekeeping:
        kept = cpulist.render(cpus & housekeeping)
        what = f"placement.vcpu: CPU {kept} is for housekeeping, which no guest may own"
        raise Refusal(what, "choose other CPUs, or set cpu.housekeeping in /etc/kvmsup.toml")
    outside = cpus - topology.cpus_of(guest.placement.nodes or topology.nodes)
    if outside:
        what = f"placement.vcpu: CPU {cpulist.render(outside)} is not on node {_nodes_told(guest)}"
        raise Refusal(what, "make placement.nodes and placement.vcpu agree")
    return guest.placement.vcpu


def _only_cpus(claims: Sequence[Claim], taken: Mapping[int, str]) -> frozenset[int]:
    """The CPUs that are the last one of a shared guest's vCPU."""
    left = (cpus - taken.keys() for claim in claims if not claim.dedicated for cpus in claim.vcpu)
    return frozenset().union(*(cpus for cpus in left if len(cpus) == 1))


def _check_nobody_is_stranded(
    guest: Guest, vcpu: Sequence[frozenset[int]], claims: Sequence[Claim], taken: Mapping[int, str]
) -> None:
    """A vCPU of a shared guest must keep a CPU that is nobody's own."""
    if not guest.placement.dedicated:
        return
    owned = frozenset().union(*vcpu) | taken.keys()
    stranded = sorted({claim.guest for claim in claims if not claim.dedicated for cpus in claim.vcpu if cpus <= owned})
    if stranded:
        cpus = cpulist.render(frozenset().union(*vcpu))
        what = f"CPU {cpus} would be taken from shared guest {' and '.join(stranded)}, which has no other for a vCPU"
        raise Taken(what, "choose other CPUs, or stop that guest", stranded)


def _check_real_time(guest: Guest, both: frozenset[int]) -> None:
    if guest.placement.scheduler and both:
        what = f"placement.emulator: CPU {cpulist.render(both)} is a real-time vCPU's, which would starve QEMU there"
        raise Refusal(what, "choose other CPUs for the emulator, or leave placement.scheduler out")


def _nodes_told(guest: Guest) -> str:
    return cpulist.render(guest.placement.nodes or ())


def _shared(guest: Guest, topology: Topology, taken: Mapping[int, str]) -> tuple[frozenset[int], ...]:
    """Every vCPU may run on every CPU that is nobody's; the scheduler does not balance isolated ones."""
    cpus = topology.cpus_of(guest.placement.nodes or topology.nodes) - topology.isolated
    free = cpus - frozenset(taken)
    if not free:
        holders = {cpu: taken[cpu] for cpu in cpus if cpu in taken}
        where = f" of node {_nodes_told(guest)}" if guest.placement.nodes else ""
        what = f"no CPU{where} is left for shared guests: {_held(holders, holders) or 'all are isolated'}"
        if not holders:
            raise Refusal(what, "choose other nodes, or the CPUs in [placement.vcpu]")
        raise Taken(what, "stop a dedicated guest, or choose other nodes", sorted(set(holders.values())))
    return (free,) * guest.cpu.maxcpus


def _dedicated(
    guest: Guest, topology: Topology, kept: frozenset[int], taken: Mapping[int, str]
) -> tuple[frozenset[int], ...]:
    """One CPU a vCPU, all on one node: the fullest one that still fits, whole cores first."""
    allowed = topology.cpus_of(guest.placement.nodes or topology.nodes) - kept
    free = allowed - frozenset(taken)
    by_node = {node: free & topology.cpus_of([node]) for node in sorted(topology.nodes)}
    fitting = [node for node, cpus in by_node.items() if len(cpus) >= guest.cpu.maxcpus]
    if not fitting:
        raise _too_few(guest, by_node, {cpu: taken[cpu] for cpu in allowed if cpu in taken})
    node = min(fitting, key=lambda node: len(by_node[node]))
    chosen = _whole_cores_first(by_node[node], topology)[: guest.cpu.maxcpus]
    return tuple(frozenset((cpu,)) for cpu in chosen)


def _whole_cores_first(free: frozenset[int], topology: Topology) -> list[int]:
    """The free CPUs, sibling beside sibling, cores that are free as a whole before those that are not."""
    cores = [sorted(core & free) for core in topology.cores() if core & free]
    cores.sort(key=lambda core: topology.siblings(core[0]) != frozenset(core))
    return [cpu for core in cores for cpu in core]


def _too_few(guest: Guest, by_node: Mapping[int, frozenset[int]], holders: Mapping[int, str]) -> Refusal:
    wanted = guest.cpu.maxcpus
    left = ", ".join(
        f"{len(cpus)} on node {node}{f' (CPU {cpulist.render(cpus)})' if cpus else ''}"
        for node, cpus in by_node.items()
        if not guest.placement.nodes or node in guest.placement.nodes
    )
    what = f"{wanted} dedicated CPU{'s' if wanted > 1 else ''} on one node: free are {left}"
    hint = "ask for fewer vCPUs, choose the CPUs in [placement.vcpu], or stop a guest that holds some"
    if not holders:
        return Refusal(what, hint)
    return Taken(f"{what}; {_held(holders, holders)}", hint, sorted(set(holders.values())))


def _memory_nodes(guest: Guest, topology: Topology, cpus: frozenset[int], free: Mapping[int, int]) -> frozenset[int]:
    """The nodes that the memory is bound to. Hugepages are reserved on one node, so there it is always one."""
    if not guest.bound:
        return frozenset()
    nodes = topology.nodes_of(cpus) & (guest.placement.nodes or topology.nodes)
    if not guest.memory.page_size or len(nodes) == 1:
        return nodes
    if guest.placement.dedicated:
        what = f"its CPUs are on nodes {cpulist.render(nodes)}, but hugepages are reserved on one node"
        raise Refusal(what, "choose CPUs of one node, or leave memory.hugepages out")
    roomiest = max(sorted(nodes), key=lambda node: free.get(node, 0))
    if free.get(roomiest, 0) < guest.memory.size:
        most = sizes.render(free.get(roomiest, 0) >> 20 << 20)
        raise Refusal(
            f"memory.size = {sizes.render(guest.memory.size)}: the most on one node is {most}, on {roomiest}"
        )
    return frozenset((roomiest,))
