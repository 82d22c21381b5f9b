# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a guest goes: its wishes, the topology and the other guests' claims → a placement, or a refusal with reasons.

A pure function, so that `setup`, tests and a dry run decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvmsup import cpulist, sizes
from kvmsup.errors import Refusal
from kvmsup.model import vsock
from kvmsup.model.claim import Claim, Interface
from kvmsup.model.guest import Guest, Host, IoThread
from kvmsup.model.topology import Topology
from kvmsup.plan import cells, packing, refusals
from kvmsup.plan.scene import OWNED, Scene, around
from kvmsup.records import NamedTuple


class Placement(NamedTuple):
    """Host CPUs by vCPU index (maxcpus of them), those of every other thread, and the nodes of the memory.

    `cells` has the host node of each guest node, `fill` the CPUs that fill each one's memory where that is done before
    it runs. `why` says in sentences how that came about.
    """

    vcpu: tuple[frozenset[int], ...]
    idle: frozenset[int]  # siblings that are kept free
    emulator: frozenset[int]
    iothread: Mapping[str, frozenset[int]]
    nodes: frozenset[int]  # empty: memory is not bound
    cells: tuple[int, ...]
    fill: tuple[frozenset[int], ...]
    why: tuple[str, ...]


def place(guest: Guest, host: Host, topology: Topology, claims: Sequence[Claim], free: Mapping[int, int]) -> Placement:
    """Decide where `guest` goes beside the guests of `claims`.

    `free` is the memory that is free on each node, in bytes, hugepages of the guest's size included.

    Raises Refusal, or Taken where other guests are the reason.
    """
    refusals.check_cid(guest, claims)
    refusals.check_nets(guest, claims)
    scene = around(guest, host, topology, claims, free)
    why: list[str] = []
    if guest.placement.vcpu:
        vcpu, host_nodes = _chosen_by_user(guest, scene, why)
    elif guest.placement.dedicated:
        vcpu, host_nodes = _dedicated(guest, scene, why)
    else:
        vcpu, host_nodes = _shared(guest, scene, why)
    cpus = frozenset().union(*vcpu)
    idle = _idle(guest, scene, cpus, why)
    _check_nobody_is_stranded(guest, scene, cpus | idle)
    emulator = _emulator(guest, scene, cpus, idle, why)
    iothread = {one.name: _iothread(guest, one, scene, cpus, idle, emulator) for one in guest.iothreads}
    if guest.placement.isolate:
        _check_isolation(guest, scene, cpus | idle, emulator, why)
    nodes = frozenset(host_nodes) or _memory_nodes(guest, scene, cpus, why)
    for number, node in enumerate(host_nodes):
        why.append(f"guest node {number} on node {node}")
    memory = tuple(frozenset((node,)) for node in host_nodes) or (nodes or topology.nodes,)
    fill = _fill(guest, scene, vcpu, memory) if guest.filled else ()
    return Placement(vcpu, idle, emulator, iothread, nodes, host_nodes, fill, tuple(why))


def _fill(
    guest: Guest, scene: Scene, vcpu: Sequence[frozenset[int]], memory: Sequence[frozenset[int]]
) -> tuple[frozenset[int], ...]:
    """By memory backend the guest's own CPUs, those on its nodes in `memory` if any: filling is in nobody else's way.

    Of a shared guest only if nobody can take all of these from it: without any QEMU could not start again.
    """
    indices = [cell.vcpus for cell in guest.cells] or [frozenset(range(guest.cpu.maxcpus))]
    own = [frozenset[int]().union(*(vcpu[index] for index in share)) for share in indices]
    near = [cpus & scene.topology.cpus_of(nodes) for cpus, nodes in zip(own, memory, strict=True)]
    lasting = [there if guest.placement.dedicated else there & scene.housekeeping for there in near]
    return tuple(there if last else cpus for cpus, there, last in zip(own, near, lasting, strict=True))


def claim(guest: Guest, placement: Placement, loaded: str) -> Claim:
    """What `guest` claims with `placement`; `loaded` is the fingerprint of its configuration. Not held yet."""
    page_size = guest.memory.page_size
    balloon = guest.memory.balloon
    pages = {min(placement.nodes): guest.pages} if guest.pages and not guest.cells else {}
    for cell, node in zip(guest.cells, placement.cells, strict=True) if page_size else ():
        pages[node] = pages.get(node, 0) + cell.memory // page_size
    return Claim(
        guest=guest.name,
        held=False,
        dedicated=guest.placement.dedicated,
        vcpu=placement.vcpu,
        idle=placement.idle,
        emulator=placement.emulator,
        iothread=placement.iothread,
        scheduler=policy(guest),
        core_scheduling=guest.placement.core_scheduling,
        nodes=placement.nodes,
        cells=placement.cells,
        fill=placement.fill,
        page_size=page_size,
        pages=pages,
        grown={},
        before={},
        vcpus=guest.cpu.vcpus,
        ksm=merges(guest),
        loaded=loaded,
        size=guest.memory.size,
        balloon=balloon.least if balloon else 0,
        balloon_auto=bool(balloon and balloon.auto),
        cid=vsock.cid(guest.name) if guest.inside.ready else 0,
        ready=guest.inside.ready,
        agent=guest.inside.agent,
        nets=tuple(Interface(net.name, net.kind, net.mac, net.link, net.over) for net in guest.nets),
        isolate=guest.placement.isolate,
    )


def policy(guest: Guest) -> str:
    """The scheduler of its vCPU threads as a claim has it: "", or such as "fifo:10"."""
    scheduler = guest.placement.scheduler
    return f"{scheduler.policy}:{scheduler.priority}" if scheduler else ""


def merges(guest: Guest) -> bool:
    """Whether KSM may merge its memory. Hugepages and locked memory never are: consent to it changes nothing."""
    return guest.memory.ksm and not guest.memory.page_size and not guest.memory.lock


# Host CPUs by vCPU index, and host nodes by guest node.
Chosen = tuple[tuple[frozenset[int], ...], tuple[int, ...]]


def _chosen_by_user(guest: Guest, scene: Scene, why: list[str]) -> Chosen:
    cpus = frozenset().union(*guest.placement.vcpu)
    refusals.check_free("placement.vcpu", cpus, scene.holders)
    if guest.placement.dedicated and cpus & scene.housekeeping:
        kept = cpulist.render(cpus & scene.housekeeping)
        what = f"placement.vcpu: CPU {kept} is for housekeeping, which no guest may own"
        raise refusals.no_cpus(what, "choose other CPUs, or set cpu.housekeeping in /etc/kvmsup.toml")
    outside = cpus - scene.topology.cpus_of(guest.placement.nodes or scene.topology.nodes)
    if outside:
        node = cpulist.render(guest.placement.nodes or ())
        what = f"placement.vcpu: CPU {cpulist.render(outside)} is not on node {node}"
        raise refusals.no_cpus(what, "make placement.nodes and placement.vcpu agree")
    why.append(f"CPU {cpulist.render(cpus)}: chosen in [placement.vcpu]")
    return guest.placement.vcpu, cells.chosen_by_user(guest, scene.topology)


def _idle(guest: Guest, scene: Scene, cpus: frozenset[int], why: list[str]) -> frozenset[int]:
    """The siblings that smt = "isolate" keeps free, which must be anybody's to give."""
    if not guest.placement.dedicated or guest.placement.smt != packing.ISOLATE:
        return frozenset()
    idle = frozenset().union(*(scene.topology.siblings(cpu) for cpu in cpus)) - cpus
    told = 'smt = "isolate": the siblings of its CPUs'
    refusals.check_free(told, idle, scene.holders)
    if idle & scene.housekeeping:
        what = f"{told}: CPU {cpulist.render(idle & scene.housekeeping)} is for housekeeping"
        raise refusals.no_cpus(what, "choose other CPUs, or set cpu.housekeeping in /etc/kvmsup.toml")
    if idle:
        why.append(f"CPU {cpulist.render(idle)} stays idle, as the siblings of its CPUs")
    return idle


def _shared(guest: Guest, scene: Scene, why: list[str]) -> Chosen:
    """Every vCPU may run on every CPU that is nobody's; the scheduler does not balance isolated ones."""
    topology = scene.topology
    cpus = topology.cpus_of(guest.placement.nodes or topology.nodes) - topology.isolated
    free = cpus.difference(scene.holders)
    if not free:
        raise refusals.nothing_shared(guest, {cpu: scene.holders[cpu] for cpu in cpus})
    where = f" of node {cpulist.render(guest.placement.nodes)}" if guest.placement.nodes else ""
    isolated = " and isolcpus= does not name" if topology.isolated else ""
    why.append(f"CPU {cpulist.render(free)}: shared, so every CPU{where} that nobody owns{isolated}")
    if not guest.cells:
        return (free,) * guest.cpu.maxcpus, ()
    nodes = cells.shared(guest, scene, free)
    node_of = {index: node for cell, node in zip(guest.cells, nodes, strict=True) for index in cell.vcpus}
    return tuple(free & topology.cpus_of((node_of[index],)) for index in range(guest.cpu.maxcpus)), nodes


def _dedicated(guest: Guest, scene: Scene, why: list[str]) -> Chosen:
    """One CPU a vCPU, where packing finds the best place."""
    topology = scene.topology
    demand = packing.Demand(guest.cpu.maxcpus, guest.cpu.threads, guest.placement.smt)
    allowed = topology.cpus_of(guest.placement.nodes or topology.nodes) - scene.housekeeping
    refusals.check_siblings(demand, topology, allowed)
    free = allowed.difference(scene.holders, scene.kept)
    # The CPUs that were chosen for QEMU's own threads are vCPUs' only where there are no others.
    others = free.difference(guest.placement.emulator or (), *(one.cpus or () for one in guest.iothreads))
    try:
        return _packed(guest, scene, demand, others, why)
    except Refusal:
        if others == free:
            raise
        return _packed(guest, scene, demand, free, why)


def _packed(guest: Guest, scene: Scene, demand: packing.Demand, free: frozenset[int], why: list[str]) -> Chosen:
    topology = scene.topology
    cores = packing.cores(topology, free, demand)
    if guest.cells:
        found, nodes = cells.dedicated(guest, scene, demand, free, cores)
        why += _reasons(packing.Fit(tuple(found.values()), tuple(sorted(set(nodes)))), cores, topology)
        return tuple(frozenset((found[index],)) for index in range(guest.cpu.maxcpus)), nodes
    memory = {node: scene.free.get(node, 0) - guest.memory.size for node in topology.nodes}
    fit = packing.fit(cores, demand, topology, memory)
    # Hugepages are reserved on one node.
    if fit is None or (guest.pages and len(fit.nodes) > 1):
        raise refusals.too_few(guest, scene, cores)
    why += _reasons(fit, cores, topology)
    return tuple(frozenset((cpu,)) for cpu in fit.cpus), ()


def _reasons(fit: packing.Fit, cores: Sequence[packing.Core], topology: Topology) -> list[str]:
    """Why these CPUs and no others, for `kvmsup plan`."""
    cpus = frozenset(fit.cpus)
    where = f"CPU {cpulist.render(cpus)} on node {cpulist.render(fit.nodes)}"
    rooms = {node: packing.room(there) for node, there in packing.by(cores, lambda core: core.node).items()}
    others = ", ".join(f"{count} on node {node}" for node, count in sorted(rooms.items()))
    if len(fit.nodes) > 1:
        why = [f"{where}: no single node has room for all ({others}), and these are the closest"]
    elif len(rooms) > 1:
        why = [f"{where}: the best fit (room for vCPUs: {others})"]
    else:
        why = [f"{where}: the only node with room"]
    whole = [core for core in topology.cores() if core & cpus and core <= cpus and len(core) > 1]
    if whole:
        why.append(f"SMT siblings together: {' '.join(map(cpulist.render, whole))}")
    if cpus <= topology.isolated:
        why.append("isolated by isolcpus=, and so for dedicated guests first")
    kinds = sorted({topology.cpus[cpu].kind for cpu in cpus} - {""})
    if kinds:
        why.append(f"cores of the kind {' and '.join(kinds)}")
    return why


def _check_nobody_is_stranded(guest: Guest, scene: Scene, cpus: frozenset[int]) -> None:
    """A vCPU of a shared guest must keep a CPU that is nobody's own."""
    if not guest.placement.dedicated:
        return
    owned = cpus.union(cpu for cpu, holder in scene.holders.items() if holder.how == OWNED)
    shared = (claim for claim in scene.claims if not claim.dedicated)
    stranded = sorted({claim.guest for claim in shared for one in set(claim.vcpu) if one <= owned})
    if stranded:
        names = " and ".join(stranded)
        what = f"CPU {cpulist.render(cpus)} would be taken from shared guest {names}, which has no other for a vCPU"
        raise refusals.no_cpus(what, "choose other CPUs, or stop that guest", stranded)


def _check_isolation(
    guest: Guest, scene: Scene, own: frozenset[int], emulator: frozenset[int], why: list[str]
) -> None:
    """What runs beside its vCPUs must have other CPUs, and so must the host."""
    others = {f"iothread.{one.name}.cpus": one.cpus or frozenset() for one in guest.iothreads}
    for asked, cpus in ({"placement.emulator": emulator} | others).items():
        refusals.check_isolated(asked, cpus & own)
    taken = own.union(*(claim.isolated for claim in scene.claims))
    refusals.check_housekeeping(scene.housekeeping - taken, taken)
    open_to_all = frozenset().union(*(scene.topology.siblings(cpu) for cpu in own)) - taken
    why.append(f"CPU {cpulist.render(own)} isolated while it runs: the host is on the others")
    if open_to_all:
        why.append(
            f"CPU {cpulist.render(open_to_all)}, their SMT siblings, are not isolated, and take from their cores"
        )


def _emulator(
    guest: Guest, scene: Scene, cpus: frozenset[int], idle: frozenset[int], why: list[str]
) -> frozenset[int]:
    """Housekeeping CPUs, of the guest's own nodes where there are such: never one that somebody owns."""
    wished = guest.placement.emulator
    topology = scene.topology
    if wished is not None:
        refusals.check_free("placement.emulator", wished, scene.holders)
        refusals.check_real_time(bool(guest.placement.scheduler), "placement.emulator", cpus & wished)
        refusals.check_idle("placement.emulator", idle & wished)
        return wished
    taken = {*scene.holders, *(cpus | idle if guest.placement.dedicated else ())}
    free = scene.housekeeping - taken or topology.online - taken
    if not free:
        raise refusals.nothing_for_emulator(scene.holders)
    near = free & topology.cpus_of(topology.nodes_of(cpus))
    if near and not near <= scene.housekeeping:
        why.append(f"emulator on CPU {cpulist.render(near)}: no housekeeping CPU is free")
    elif near:
        why.append(f"emulator on CPU {cpulist.render(near)}: housekeeping of its node")
    else:
        nodes = cpulist.render(topology.nodes_of(cpus))
        lack = f"cpu.housekeeping in /etc/kvmsup.toml names no CPU of node {nodes}"
        why.append(f"emulator on CPU {cpulist.render(free)}, of another node: {lack}")
    return near or free


def _iothread(
    guest: Guest,
    thread: IoThread,
    scene: Scene,
    cpus: frozenset[int],
    idle: frozenset[int],
    emulator: frozenset[int],
) -> frozenset[int]:
    """Where an iothread runs: as chosen, or with the emulator."""
    if thread.cpus is None:
        return emulator
    asked = f"iothread.{thread.name}.cpus"
    refusals.check_free(asked, thread.cpus, scene.holders)
    refusals.check_real_time(bool(guest.placement.scheduler), asked, cpus & thread.cpus)
    refusals.check_idle(asked, idle & thread.cpus)
    return thread.cpus


def _memory_nodes(guest: Guest, scene: Scene, cpus: frozenset[int], why: list[str]) -> frozenset[int]:
    """The nodes that the memory is bound to. Hugepages are reserved on one node, so there it is always one."""
    if not guest.bound:
        return frozenset()
    allowed = guest.placement.nodes or scene.topology.nodes
    nodes = scene.topology.nodes_of(cpus) & allowed
    if guest.pages:
        nodes = frozenset((_one_node(guest, scene, nodes),))
    elif _free_on(nodes, scene) < guest.memory.size:
        nodes = _with_closest(guest, scene, nodes, allowed)
    why.append(f"memory on node {cpulist.render(nodes)} ({sizes.mebibytes(_free_on(nodes, scene))} free)")
    return nodes


def _free_on(nodes: Iterable[int], scene: Scene) -> int:
    return sum(scene.free.get(node, 0) for node in nodes)


def _one_node(guest: Guest, scene: Scene, nodes: frozenset[int]) -> int:
    if len(nodes) > 1 and guest.placement.dedicated:
        what = f"its CPUs are on nodes {cpulist.render(nodes)}, but hugepages are reserved on one node"
        raise refusals.no_cpus(what, "choose CPUs of one node, or leave memory.hugepages out")
    if len(nodes) == 1:
        return min(nodes)  # if the pages do not come there, setup says what holds them
    roomiest = max(sorted(nodes), key=lambda node: scene.free.get(node, 0))
    if _free_on((roomiest,), scene) < guest.memory.size:
        raise refusals.too_little(guest, roomiest, scene.free)
    return roomiest


def _with_closest(guest: Guest, scene: Scene, nodes: frozenset[int], allowed: frozenset[int]) -> frozenset[int]:
    """`nodes` and the closest others until the memory fits; `nodes` alone, if they have any, where it fits nowhere.

    Ordinary pages are not reserved, so that is no reason to refuse: others may give memory back, or be swapped out.
    """
    near = sorted(
        (node for node in allowed - nodes if scene.topology.memory.get(node, 0)),
        key=lambda node: (min(scene.topology.distance(own, node) for own in nodes), node),
    )
    found = set(nodes)
    for node in near:
        found.add(node)
        if _free_on(found, scene) >= guest.memory.size:
            return frozenset(found)
    return nodes if nodes & scene.topology.with_memory else frozenset(found)
