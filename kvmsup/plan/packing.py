# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which of the free CPUs a dedicated guest is given: whole cores, close together, with as little as possible broken.

A core gives its free CPUs in groups that belong to one guest: the siblings that a guest's core must have, or the whole
core where the guest shares none. Choosing is then counting groups, by place: one last-level cache, one node, the
closest nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from kvmsup.model.topology import Topology
from kvmsup.records import NamedTuple

PREFER, REQUIRE, ISOLATE = "prefer", "require", "isolate"

Group = tuple[int, ...]


class Demand(NamedTuple):
    """`vcpus` CPUs, one a vCPU, of which each run of `threads` must be siblings; `smt` as in [placement]."""

    vcpus: int
    threads: int
    smt: str

    def groups(self, free: Sequence[int], whole: bool) -> list[Group]:
        """The groups that a core with these `free` CPUs gives; `whole`: all of its CPUs are free."""
        if self.smt == PREFER:
            size = self.threads
            return [tuple(free[at : at + size]) for at in range(0, len(free) - size + 1, size)]
        if not whole:
            return []
        if self.smt == ISOLATE:
            return [(free[0],)]
        usable = len(free) > 1 and len(free) % self.threads == 0 and len(free) <= self.vcpus
        return [tuple(free)] if usable else []


class Core(NamedTuple):
    """The free CPUs of one core, and which groups of them it has to give."""

    node: int
    cache: int  # the first CPU that shares it
    grade: int
    isolated: bool
    whole: bool
    free: Group
    groups: tuple[Group, ...]

    @property
    def first(self) -> int:
        return self.free[0]

    @property
    def room(self) -> int:
        """How many vCPUs fit here."""
        return sum(map(len, self.groups))


Chosen = list[tuple[Core, Group]]


class Fit(NamedTuple):
    """Host CPUs by vCPU index, and the nodes they are on."""

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]


def cores(topology: Topology, free: frozenset[int], demand: Demand) -> list[Core]:
    """The cores with CPUs that are `free`, in the order of their first CPUs."""
    found = []
    for core in topology.cores():
        there = tuple(sorted(core & free))
        if there:
            cpu = topology.cpus[there[0]]
            whole, isolated = len(there) == len(core), core <= topology.isolated
            groups = tuple(demand.groups(there, whole))
            found.append(Core(cpu.node, min(cpu.cache), cpu.grade, isolated, whole, there, groups))
    return found


def room(cores: Iterable[Core]) -> int:
    """How many CPUs for vCPUs `cores` have to give."""
    return sum(core.room for core in cores)


def fit(cores: Sequence[Core], demand: Demand, topology: Topology, memory: Mapping[int, int]) -> Fit | None:
    """The best place for `demand`: on one node where there is one, else on the closest nodes; None where none is.

    `memory`: the bytes that stay free on each node beside this guest, less than 0 where it does not fit.
    """
    by_node = by(cores, lambda core: core.node)
    single = [found for node, there in by_node.items() if (found := fit_node(there, demand, memory.get(node, 0)))]
    return min(single).fit if single else _over_nodes(by_node, demand, topology)


class Scored(NamedTuple):
    """A fit, and what makes one better than another, in this order; less is better of each."""

    short: bool  # the memory does not fit on the node
    plain: int  # CPUs of cores that isolcpus= does not name as a whole
    kinds: int  # of cores on a hybrid host
    grade: int  # of the slowest
    caches: int  # last-level caches that its vCPUs are spread over
    broken: int  # cores that were free as a whole and now are in part
    left: int  # CPUs that stay free on the node
    memory: int  # bytes that stay free there, or are lacking: as with CPUs, what is left over is kept in one piece
    spare: int  # and beside it
    fit: Fit


def fit_node(cores: Sequence[Core], demand: Demand, memory: int = 0) -> Scored | None:
    """The best place among `cores`, all of one node with `memory` to spare; None where they are too few."""
    left = sum(len(core.free) for core in cores) - demand.vcpus
    found = []
    for pool in _pools(cores):
        chosen = _take(pool, demand.vcpus)
        if chosen is not None:
            given = Counter(core.first for core, group in chosen for _ in group)
            used = [core for core in pool if core.first in given]
            scored = Scored(
                short=memory < 0,
                plain=sum(len(group) for core, group in chosen if not core.isolated),
                kinds=len({core.grade for core in used}),
                grade=max(core.grade for core in used),
                caches=len({core.cache for core in used}),
                broken=sum(core.whole and core.room > given[core.first] for core in used),
                left=left,
                memory=abs(memory),
                spare=room(pool),
                fit=Fit(_in_order(chosen), (cores[0].node,)),
            )
            found.append(scored)
    return min(found, default=None)


def _in_order(chosen: Chosen) -> Group:
    """Neighbours get neighbouring indexes: the fast kind first, then cache by cache."""
    ordered = sorted(chosen, key=lambda one: (one[0].grade, one[0].cache, one[0].first, one[1]))
    return tuple(cpu for _, group in ordered for cpu in group)


def _pools(cores: Sequence[Core]) -> Iterator[Sequence[Core]]:
    """`cores`, and the parts of them that one guest had better stay in: isolated CPUs, one kind, one cache."""
    for apart in (cores, *_parts(cores, lambda core: core.isolated)):
        for alike in (apart, *_parts(apart, lambda core: core.grade)):
            yield alike
            yield from _parts(alike, lambda core: core.cache)


def by(cores: Sequence[Core], key: Callable[[Core], int]) -> dict[int, list[Core]]:
    """`cores` by `key`."""
    found: dict[int, list[Core]] = {}
    for core in cores:
        found.setdefault(key(core), []).append(core)
    return found


def _parts(cores: Sequence[Core], key: Callable[[Core], int]) -> Collection[list[Core]]:
    """`cores` by `key`; nothing where they are all the same, because that is no smaller pool."""
    parts = by(cores, key).values()
    return parts if len(parts) > 1 else ()


def _take(cores: Sequence[Core], vcpus: int) -> Chosen | None:
    """Groups for exactly `vcpus` CPUs from `cores`; None where they do not come out.

    Whole cores first; what does not fill one more comes from cores that are somebody else's in part already, from the
    tightest that is enough. Only where those are too few is one more whole core broken.
    """
    if room(cores) < vcpus:
        return None
    chosen: Chosen = []
    left = []
    for core in _emptiest_cache_first([core for core in cores if core.whole]):
        if core.room <= vcpus:
            chosen += [(core, group) for group in core.groups]
            vcpus -= core.room
        else:
            left.append(core)
    parts = sorted((core for core in cores if not core.whole), key=lambda core: (core.room, core.first))
    enough = [core for core in parts if core.room >= vcpus][:1]
    rest = enough or (parts[::-1] if room(parts) >= vcpus else left)
    for core in rest:
        for group in core.groups:
            if len(group) <= vcpus:
                chosen.append((core, group))
                vcpus -= len(group)
    return chosen if not vcpus else None


def _emptiest_cache_first(cores: Sequence[Core]) -> list[Core]:
    """So that a guest is spread over few caches; but isolated CPUs, the fast kind and wide cores before all."""
    empty = Counter(core.cache for core in cores)

    def order(core: Core) -> tuple[bool, int, int, int, int, int]:
        return not core.isolated, core.grade, -core.room, -empty[core.cache], core.cache, core.first

    return sorted(cores, key=order)


def _over_nodes(by_node: Mapping[int, Sequence[Core]], demand: Demand, topology: Topology) -> Fit | None:
    """From the nodes around one that are the closest to it, and of those from as few as possible."""
    rooms = {node: there for node, cores in by_node.items() if (there := room(cores))}
    found = [around for node in rooms if (around := _around(node, rooms, demand.vcpus, topology))]
    if not found:
        return None
    *_, chosen_nodes = min(found)
    nodes = tuple(sorted(chosen_nodes, key=lambda node: (-rooms[node], node)))
    cpus: list[int] = []
    for node in nodes:
        chosen = _take(by_node[node], min(rooms[node], demand.vcpus - len(cpus)))
        if chosen is None:
            return None
        cpus += _in_order(chosen)
    return Fit(tuple(cpus), nodes)


Around = tuple[int, int, int, tuple[int, ...]]


def _around(seed: int, rooms: Mapping[int, int], vcpus: int, topology: Topology) -> Around | None:
    """How far from `seed` one must go to find `vcpus` CPUs, on how many nodes, what is left there, and the nodes."""
    for radius in sorted({topology.distance(seed, node) for node in rooms}):
        near = [node for node in rooms if node != seed and topology.distance(seed, node) <= radius]
        nodes, total = [seed], rooms[seed]
        for node in sorted(near, key=lambda node: (-rooms[node], node)):
            if total >= vcpus:
                break
            nodes.append(node)
            total += rooms[node]
        if total >= vcpus:
            return radius, len(nodes), total - vcpus, tuple(nodes)
    return None
