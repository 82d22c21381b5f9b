# SPDX-License-Identifier: LGPL-2.1-or-later
"""The picture of a host: topology, claims and housekeeping → nodes, caches, cores, CPUs, and whose each CPU is.

What `picture_text` and `picture_svg` draw and what `kvmsup topology --json` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmsup.model.claim import Claim
from kvmsup.model.topology import LogicalCpu, Topology
from kvmsup.records import NamedTuple

# What a CPU is for, the first of these that applies.
VCPU, IDLE, HOUSEKEEPING, EMULATOR, SHARED, FREE = "vcpu", "idle", "housekeeping", "emulator", "shared", "free"


class Cpu(NamedTuple):
    """One online CPU and its `role`. `guest` is whose own it is, "" where it is nobody's.

    `vcpus` are the indices of that guest's vCPUs that run here, `shared` the guests whose vCPUs may and `emulators`
    those whose other threads may.
    """

    number: int
    role: str
    guest: str
    vcpus: tuple[int, ...]
    shared: tuple[str, ...]
    emulators: tuple[str, ...]
    isolated: bool
    nohz_full: bool


class Core(NamedTuple):
    """SMT siblings. `kind` names the sort of core on a hybrid host, "" elsewhere."""

    kind: str
    cpus: tuple[Cpu, ...]


class Cache(NamedTuple):
    """The cores of one node that share their last-level cache.

    Where every core has one of its own, or the kernel tells of none, `shared` is false and the cores are a die's.
    """

    package: int
    die: int
    shared: bool
    cores: tuple[Core, ...]


class Pages(NamedTuple):
    """A node's pool of hugepages: `page_size` in bytes, the others are counts of pages."""

    page_size: int
    total: int
    free: int


class Room(NamedTuple):
    """What a node has, in bytes: its memory, what of that is free, and its pools of hugepages."""

    memory: int
    free: int
    hugepages: tuple[Pages, ...]


class Node(NamedTuple):
    """A NUMA node; one of memory alone has no caches. `guests` are those whose memory is bound to it.

    `distances` are those to each node of the picture, in its order.
    """

    number: int
    room: Room
    distances: tuple[int, ...]
    guests: tuple[str, ...]
    caches: tuple[Cache, ...]


class Tenant(NamedTuple):
    """A guest that holds CPUs: `state` as systemd has it, "" where it was not asked.

    `cpus` are those of its vCPUs, `emulator` those of QEMU's other threads, iothreads too.
    """

    name: str
    dedicated: bool
    state: str
    cpus: frozenset[int]
    emulator: frozenset[int]


class Picture(NamedTuple):
    """The whole host. The kernel tells nothing of the CPUs that are `offline` but their numbers."""

    nodes: tuple[Node, ...]
    offline: frozenset[int]
    guests: tuple[Tenant, ...]


def draw(
    topology: Topology,
    claims: Iterable[Claim],
    housekeeping: frozenset[int],
    rooms: Mapping[int, Room],
    states: Mapping[str, str],
) -> Picture:
    """The picture; `rooms` is by node, `states` by guest."""
    held = sorted(claims, key=lambda claim: claim.guest)
    uses = [_use(claim) for claim in held]
    cpus = {number: _cpu(number, topology, uses, housekeeping) for number in topology.cpus}
    order = sorted(topology.nodes)
    nodes = [
        Node(
            number=node,
            room=rooms.get(node, Room(topology.memory.get(node, 0), 0, ())),
            distances=tuple(topology.distance(node, other) for other in order),
            guests=tuple(claim.guest for claim in held if node in claim.nodes),
            caches=_caches(node, topology, cpus),
        )
        for node in order
    ]
    guests = [_tenant(use, uses, states.get(use.claim.guest, "")) for use in uses]
    return Picture(tuple(nodes), topology.present - topology.online, tuple(guests))


class _Use(NamedTuple):
    """A claim; the CPUs that it owns, those that its vCPUs share with others, and those of QEMU's other threads."""

    claim: Claim
    own: frozenset[int]
    shared: frozenset[int]
    other: frozenset[int]


def _use(claim: Claim) -> _Use:
    shared = frozenset() if claim.dedicated else frozenset[int]().union(*claim.vcpu)
    return _Use(claim, claim.own_cpus, shared, claim.emulator.union(*claim.iothread.values()))


def _tenant(use: _Use, uses: Iterable[_Use], state: str) -> Tenant:
    claim = use.claim
    cpus = (
        frozenset[int]().union(*claim.vcpu) if claim.dedicated else use.shared.difference(*(one.own for one in uses))
    )
    return Tenant(claim.guest, claim.dedicated, state, cpus, use.other)


def _cpu(number: int, topology: Topology, uses: Iterable[_Use], housekeeping: frozenset[int]) -> Cpu:
    owner = next((use.claim for use in uses if number in use.own), None)
    emulators = tuple(use.claim.guest for use in uses if number in use.other)
    vcpus = tuple(index for index, cpus in enumerate(owner.vcpu) if number in cpus) if owner else ()
    shared = () if owner else tuple(use.claim.guest for use in uses if number in use.shared)
    applies = {
        VCPU: bool(vcpus),
        IDLE: owner is not None,
        HOUSEKEEPING: number in housekeeping,
        EMULATOR: bool(emulators),
        SHARED: bool(shared),
        FREE: True,
    }
    return Cpu(
        number=number,
        role=next(role for role, yes in applies.items() if yes),
        guest=owner.guest if owner else "",
        vcpus=vcpus,
        shared=shared,
        emulators=emulators,
        isolated=number in topology.isolated,
        nohz_full=number in topology.nohz_full,
    )


def _caches(node: int, topology: Topology, cpus: Mapping[int, Cpu]) -> tuple[Cache, ...]:
    here = [cpu for number, cpu in topology.cpus.items() if cpu.node == node]
    alone = all(cpu.cache == cpu.siblings for cpu in here)
    groups: dict[tuple[int, int, int], dict[int, list[LogicalCpu]]] = {}
    for cpu in here:
        cache = groups.setdefault((cpu.package, cpu.die, 0 if alone else min(cpu.cache)), {})
        cache.setdefault(min(cpu.siblings), []).append(cpu)
    ordered = sorted(groups.items(), key=lambda item: min(item[1]))
    return tuple(
        Cache(package, die, not alone, tuple(_core(found, cpus) for found in _by_grade(cores.values())))
        for (package, die, _), cores in ordered
    )


def _by_grade(cores: Iterable[list[LogicalCpu]]) -> list[list[LogicalCpu]]:
    """The fastest kind first, otherwise by their first CPUs."""
    return sorted(cores, key=lambda core: (core[0].grade, core[0].number))


def _core(found: Iterable[LogicalCpu], cpus: Mapping[int, Cpu]) -> Core:
    members = sorted(found, key=lambda cpu: cpu.number)
    return Core(members[0].kind, tuple(cpus[cpu.number] for cpu in members))


def owners(picture: Picture) -> dict[str, int]:
    """The guests that have CPUs of their own, each with its place among them: it decides on mark and colour."""
    return {guest.name: place for place, guest in enumerate(one for one in picture.guests if one.dedicated)}


def cpus_of(picture: Picture) -> list[Cpu]:
    """Every online CPU, in the order of the picture."""
    return [cpu for node in picture.nodes for cache in node.caches for core in cache.cores for cpu in core.cpus]


def mark(cpu: Cpu, places: Mapping[str, int]) -> str:
    """What stands beside the CPU's number: A3 is vCPU 3 of the first of the guests in `places`, A- idle beside it."""
    if cpu.role in (VCPU, IDLE):
        vcpus = ",".join(map(str, cpu.vcpus)) if len(cpu.vcpus) < 3 else f"{cpu.vcpus[0]},+"
        return letters(places[cpu.guest]) + (vcpus if cpu.role == VCPU else "-")
    return {HOUSEKEEPING: "hk", EMULATOR: "em", SHARED: "sh", FREE: ""}[cpu.role]


def letters(place: int) -> str:
    """A to Z, then AA, AB and so on."""
    return (letters(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def rows_of(count: int, most: int) -> int:
    """How many of `count` things to put into a row that has room for `most`, so that all rows are about as full."""
    rows = -(-count // max(1, most))
    return -(-count // rows) if rows else 1
