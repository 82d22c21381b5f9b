# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lets one stream of arrivals loose on one host and one chooser, and measures what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from bench.placement.arrivals import Arrival, usable
from bench.placement.peers import Chooser, Cpus, Room, free_cores
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest
from kvmsup.model.topology import Topology
from tests.unit import hosts

WARM = 2.0  # mean stays


class Measures(NamedTuple):
    """Percentages, as bench/RESULTS.md defines them; of the first three more is better, of the others less."""

    guests: float
    vcpus: float
    local: float
    split: float
    far: float
    caches: float
    broken: float
    shared: float
    half: float
    slow: float

    @property
    def partial(self) -> float:
        """Cores that are not one guest's as a whole: shared by two, or with a CPU idle."""
        return self.shared + self.half


class Held(NamedTuple):
    """What a guest on the host has: its CPUs, and bytes of memory by node."""

    claim: Claim
    memory: Mapping[int, int]


class Marks(NamedTuple):
    """What is held against one placement."""

    split: bool
    broken: bool
    caches: bool
    far: bool
    slow: bool


def check_legal(guest: Guest, cpus: Cpus, room: Room) -> None:
    """Raises AssertionError for a CPU that is not free or given twice, and for vCPUs that are not siblings."""
    assert len(set(cpus)) == len(cpus) == guest.cpu.maxcpus and room.free.issuperset(cpus)
    threads = guest.cpu.threads
    for first in range(0, len(cpus), threads):
        assert room.topology.siblings(cpus[first]).issuperset(cpus[first : first + threads])
    assert not guest.pages or len(room.topology.nodes_of(cpus)) == 1


def memory_of(guest: Guest, cpus: Cpus, room: Room) -> dict[int, int] | None:
    """Where the guest's memory comes to be: on its own nodes, then on those closest to the first; None: nowhere.

    Hugepages must all be on the one node.
    """
    own = Counter(map(room.topology.node_of, cpus))
    home = next(iter(own))
    order = (
        [*own] if guest.pages else sorted(room.memory, key=lambda n: (n not in own, room.topology.distance(home, n)))
    )
    left = guest.memory.size
    found = {}
    for node in order:
        found[node] = min(left, room.memory[node])
        left -= found[node]
    return None if left else {node: size for node, size in found.items() if size}


def least_caches(guest: Guest, room: Room) -> int:
    """The fewest last-level caches that the guest could have been on: on one node if one could hold it."""
    nodes = [(node,) for node in room.topology.nodes]
    counts = [count for node in nodes if (count := _caches(guest, room, node))]
    return min(counts) if counts else _caches(guest, room, room.topology.nodes)


def _caches(guest: Guest, room: Room, nodes: Iterable[int]) -> int:
    threads = guest.cpu.threads
    free: Counter[int] = Counter()
    for core in free_cores(room, nodes):
        free[min(room.topology.cpus[core[0]].cache)] += len(core) // threads * threads
    left = guest.cpu.maxcpus
    for count, (_, cpus) in enumerate(free.most_common(), 1):
        left -= cpus
        if left <= 0:
            return count
    return 0


def _cut(cpus: Cpus, room: Room) -> int:
    """How many cores, free as a whole before, the guest has a part of."""
    mine = frozenset(cpus)
    return sum(core <= room.free and bool(core & mine) and not core <= mine for core in _cores_of(cpus, room.topology))


def _cores_of(cpus: Iterable[int], topology: Topology) -> set[frozenset[int]]:
    return {topology.siblings(cpu) for cpu in cpus}


def least_cut(guest: Guest, room: Room) -> int:
    """The fewest of such cores that the guest could have done with: on one node if one could hold it. 0 or 1."""
    counts = [count for node in room.topology.nodes if (count := _least_cut(guest, room, (node,))) is not None]
    found = min(counts) if counts else _least_cut(guest, room, room.topology.nodes)
    return found or 0


def _least_cut(guest: Guest, room: Room, nodes: Iterable[int]) -> int | None:
    """Cores have two CPUs at most here, so a guest with threads = 2 never breaks one."""
    cores = free_cores(room, nodes)
    whole = sum(len(core) == len(room.topology.siblings(core[0])) > 1 for core in cores)
    single = sum(map(len, cores)) - 2 * whole
    vcpus, pairs = guest.cpu.maxcpus, min(whole, guest.cpu.maxcpus // 2)
    if guest.cpu.threads > 1:
        return 0 if 2 * whole >= vcpus else None
    if vcpus > 2 * whole + single:
        return None
    return int(vcpus - 2 * pairs > single)


def _slow(cpus: Cpus, room: Room) -> bool:
    """Whether a vCPU is on a slow core while as many fast CPUs were free."""
    grades = [room.topology.cpus[cpu].grade for cpu in cpus]
    fast = sum(not room.topology.cpus[cpu].grade for cpu in room.free)
    return any(grades) and fast >= len(cpus)


def marks(guest: Guest, cpus: Cpus, memory: Mapping[int, int], room: Room) -> Marks:
    """What is to be held against giving `guest` these `cpus` and this `memory`."""
    topology = room.topology
    return Marks(
        split=len(topology.nodes_of(cpus)) > 1,
        broken=_cut(cpus, room) > least_cut(guest, room),
        caches=len({topology.cpus[cpu].cache for cpu in cpus}) > least_caches(guest, room),
        far=not topology.nodes_of(cpus).issuperset(memory),
        slow=_slow(cpus, room),
    )


class Run:
    """One host, one chooser: who is there, and what has been counted since `warm`."""

    def __init__(self, topology: Topology, choose: Chooser, warm: float) -> None:
        self.choose, self.warm = choose, warm
        self.room = Room(topology, usable(topology), dict(topology.memory), ())
        self.leaving: list[tuple[float, str]] = []
        self.held: dict[str, Held] = {}
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.times: dict[str, float] = dict.fromkeys(("used", "shared", "half"), 0.0)

    def arrive(self, arrival: Arrival) -> None:
        while self.leaving and self.leaving[0][0] <= arrival.at:
            at, name = heappop(self.leaving)
            self._pass_time(at)
            self._change(self.held.pop(name), -1)
        self._pass_time(arrival.at)
        guest = arrival.guest
        cpus = self.choose(guest, self.room)
        if cpus:
            check_legal(guest, cpus, self.room)
        memory = memory_of(guest, cpus, self.room) if cpus else None
        self._count(guest, cpus or (), memory)
        if cpus and memory:
            self.held[guest.name] = Held(hosts.claim(guest.name, map(str, cpus)), memory)
            self._change(self.held[guest.name], 1)
            heappush(self.leaving, (arrival.at + arrival.stay, guest.name))

    def _count(self, guest: Guest, cpus: Cpus, memory: Mapping[int, int] | None) -> None:
        if self.now < self.warm:
            return
        self.counts["asked"] += 1
        self.counts["vcpus asked"] += guest.cpu.maxcpus
        if memory:
            self.counts["guests"] += 1
            self.counts["vcpus"] += guest.cpu.maxcpus
            marked = marks(guest, cpus, memory, self.room)
            self.counts.update(name for name, mark in marked._asdict().items() if mark)
            self.counts["scattered"] += marked.split or marked.far

    def _change(self, held: Held, sign: int) -> None:
        cpus = held.claim.own_cpus
        free = self.room.free - cpus if sign > 0 else self.room.free | cpus
        memory = {node: size - sign * held.memory.get(node, 0) for node, size in self.room.memory.items()}
        self.room = self.room._replace(free=free, memory=memory, claims=[one.claim for one in self.held.values()])

    def _pass_time(self, until: float) -> None:
        passed, self.now = until - max(self.now, self.warm), until
        if passed > 0:
            for name, count in self._cores().items():
                self.times[name] += passed * count

    def _cores(self) -> dict[str, int]:
        """Cores of two siblings that somebody is on; those of them of two guests, and with a CPU free."""
        holders: dict[frozenset[int], list[str]] = {}
        for name, held in self.held.items():
            for cpu in held.claim.own_cpus:
                holders.setdefault(self.room.topology.siblings(cpu), []).append(name)
        wide = {core: names for core, names in holders.items() if len(core) > 1}
        shared = sum(len(set(names)) > 1 for names in wide.values())
        return {"used": len(wide), "shared": shared, "half": sum(len(wide[core]) < len(core) for core in wide)}

    def measures(self) -> Measures:
        asked, vcpus = max(1, self.counts["asked"]), max(1, self.counts["vcpus asked"])
        guests, used = max(1, self.counts["guests"]), max(1e-9, self.times["used"])
        return Measures(
            guests=100 * self.counts["guests"] / asked,
            vcpus=100 * self.counts["vcpus"] / vcpus,
            local=100 * (self.counts["guests"] - self.counts["scattered"]) / asked,
            split=100 * self.counts["split"] / guests,
            far=100 * self.counts["far"] / guests,
            caches=100 * self.counts["caches"] / guests,
            broken=100 * self.counts["broken"] / guests,
            shared=100 * self.times["shared"] / used,
            half=100 * self.times["half"] / used,
            slow=100 * self.counts["slow"] / guests,
        )


def measure(topology: Topology, choose: Chooser, arrivals: Sequence[Arrival]) -> Measures:
    """Places `arrivals`; what comes before WARM fills the host and is not counted."""
    run = Run(topology, choose, WARM)
    for arrival in arrivals:
        run.arrive(arrival)
    return run.measures()
