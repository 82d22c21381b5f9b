# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where guests go: properties over small hosts, and refusals as whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsup import cpulist
from kvmsup.errors import Refusal
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Cell, Guest, Host, Scheduler
from kvmsup.model.topology import Topology
from kvmsup.plan import placement as placing
from kvmsup.plan.placement import Placement, place
from kvmsup.plan.refusals import Taken
from tests.unit.hosts import HOST, Cpus, claim, guest, host, topology


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    nodes, cores, threads = draw(st.sampled_from([(1, 4, 2), (2, 2, 2), (2, 3, 1), (3, 2, 2), (3, 1, 1), (2, 1, 4)]))
    everything = range(nodes * cores * threads)
    offline = draw(st.sets(st.sampled_from(everything), max_size=2)) - {0}
    isolated = draw(st.sets(st.sampled_from(everything), max_size=3)) if draw(_RARELY) else ()
    return topology(nodes, cores, threads, offline=offline, isolated=isolated)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Topology, Host, list[Guest]]:
    """A host, and guests that start on it one after the other."""
    found = draw(topologies())
    numbers = st.sampled_from(sorted(found.online))
    kept = draw(st.sets(numbers, max_size=2))
    guests = []
    for index in range(draw(st.integers(1, 7))):
        threads = draw(st.sampled_from([1, 1, 2]))
        vcpus = threads * draw(st.integers(1, 4 // threads))
        dedicated = draw(st.booleans())
        nodes = draw(st.sampled_from(["", "", "0", cpulist.render(found.nodes)]))
        pinned = st.lists(numbers, min_size=1, max_size=vcpus, unique=dedicated)
        chosen = draw(pinned) if draw(_RARELY) else []
        wished = draw(st.sets(numbers, max_size=2)) if draw(_RARELY) else ()
        guests.append(
            guest(
                len(chosen) or vcpus,
                name=f"g{index}",
                dedicated=dedicated,
                nodes=nodes,
                vcpu=map(str, chosen),
                emulator=cpulist.render(wished),
                threads=1 if chosen else threads,
                smt=draw(st.sampled_from(["prefer", "prefer", "require", "isolate"])) if threads == 1 else "prefer",
            )
        )
    return found, host(cpulist.render(kept)), guests


_RARELY = st.integers(0, 3).map(lambda number: number == 0)


def claimed(asked: Guest, placement: Placement) -> Claim:
    return claim(
        asked.name,
        map(cpulist.render, placement.vcpu),
        dedicated=asked.placement.dedicated,
        idle=cpulist.render(placement.idle),
        emulator=cpulist.render(placement.emulator),
    )


def owned(claims: Sequence[Claim]) -> frozenset[int]:
    return frozenset().union(*(held.own_cpus for held in claims))


class Oracle(NamedTuple):
    """Tries every set of CPUs, on a host small enough for that."""

    asked: Guest
    found: Topology
    free: Cpus

    def legal(self, cpus: Cpus) -> bool:
        """Whether the guest could be given exactly `cpus`."""
        for core in self.found.cores():
            count = len(core & cpus)
            if self.asked.placement.smt == "isolate" and count and (count > 1 or not core <= self.free):
                return False
            if self.asked.placement.smt == "require" and count and (len(core) == 1 or count < len(core)):
                return False
            if count % self.asked.cpu.threads:
                return False
        return True

    def answers(self) -> list[Cpus]:
        every = combinations(sorted(self.free), self.asked.cpu.maxcpus)
        return [frozenset(cpus) for cpus in every if self.legal(frozenset(cpus))]

    def cost(self, cpus: Cpus) -> tuple[int, ...]:
        """Nodes; CPUs of cores that are not isolated as wholes; whole cores that are cut; CPUs left on the node."""
        nodes = self.found.nodes_of(cpus)
        cut = [core for core in self.found.cores() if core <= self.free and core & cpus and self.rest(core, cpus)]
        left = self.found.cpus_of(nodes) & self.free - cpus
        quiet = frozenset().union(*(core for core in self.found.cores() if core <= self.found.isolated))
        return len(nodes), len(cpus - quiet), len(cut), len(left)

    def rest(self, core: Cpus, cpus: Cpus) -> bool:
        return self.asked.placement.smt == "prefer" and bool(core - cpus)


def oracle(asked: Guest, keeping: Host, found: Topology, claims: Sequence[Claim]) -> Oracle:
    kept = (keeping.housekeeping or found.housekeeping()) & found.online
    emulators = frozenset().union(*(held.emulator for held in claims)) - kept
    # A vCPU of a shared guest that may run nowhere else keeps one of its CPUs: one with an emulator, or the lowest.
    last: set[int] = set()
    for held in claims:
        for cpus in () if held.dedicated else held.vcpu:
            left = cpus - owned(claims)
            if not left & kept and not cpus & last:
                last.add(min(left & emulators or left))
    free = found.cpus_of(asked.placement.nodes or found.nodes) - kept - owned(claims) - emulators - last
    # What was chosen for its own emulator is a vCPU's only where it cannot go elsewhere.
    apart = Oracle(asked, found, free.difference(asked.placement.emulator or ()))
    return apart if apart.answers() else Oracle(asked, found, free)


def check_placed(asked: Guest, placement: Placement, found: Topology, kept: Cpus, claims: list[Claim]) -> None:
    used = frozenset().union(*placement.vcpu)
    assert len(placement.vcpu) == asked.cpu.maxcpus
    assert all(placement.vcpu) and placement.emulator
    assert used | placement.emulator <= found.online
    assert not (used | placement.idle | placement.emulator) & owned(claims)
    assert not placement.idle & (used | placement.emulator)
    if asked.placement.emulator:
        assert placement.emulator == asked.placement.emulator
    elif asked.placement.dedicated:
        assert not placement.emulator & (used | placement.idle)
    if asked.placement.nodes:
        assert used <= found.cpus_of(asked.placement.nodes)
    if asked.placement.dedicated:
        assert all(len(cpus) == 1 for cpus in placement.vcpu)
        assert len(used) == asked.cpu.maxcpus
        assert not (used | placement.idle) & kept
        assert not used & frozenset().union(*(held.emulator - kept for held in claims))
        assert placement.nodes == found.nodes_of(used)
        siblings = frozenset().union(*(found.siblings(cpu) for cpu in used))
        assert placement.idle == (siblings - used if asked.placement.smt == "isolate" else frozenset())
    elif not asked.placement.vcpu:
        assert set(placement.vcpu) == {used}
        assert not used & found.isolated
    if asked.placement.vcpu:
        assert placement.vcpu == asked.placement.vcpu


def check_chosen(asked: Guest, placement: Placement, tried: Oracle) -> None:
    """Legal, and no other choice is better; guest siblings are siblings."""
    used = [min(cpus) for cpus in placement.vcpu]
    answers = tried.answers()
    assert frozenset(used) in answers
    costs = [tried.cost(cpus) for cpus in answers]
    mine = tried.cost(frozenset(used))
    if mine[0] == 1:
        assert mine <= min(costs)
    else:
        assert min(cost[0] for cost in costs) > 1
    threads = asked.cpu.threads
    for first in range(0, len(used), threads):
        assert tried.found.siblings(used[first]).issuperset(used[first : first + threads])


@settings(max_examples=400, deadline=None)
@given(arrivals())
def test_arrivals(case: tuple[Topology, Host, list[Guest]]) -> None:
    found, keeping, guests = case
    kept = (keeping.housekeeping or found.housekeeping()) & found.online
    claims: list[Claim] = []
    for asked in guests:
        automatic = asked.placement.dedicated and not asked.placement.vcpu
        tried = oracle(asked, keeping, found, claims)
        try:
            placement = place(asked, keeping, found, claims, {})
        except Refusal as refusal:
            holders = refusal.holders if isinstance(refusal, Taken) else ()
            assert set(holders) <= {held.guest for held in claims}
            assert all(holder in refusal.what for holder in holders)
            about_cpus = "placement.emulator" not in refusal.what and "own threads" not in refusal.what
            assert not about_cpus or not automatic or not tried.answers()
            continue
        assert place(asked, keeping, found, claims, {}) == placement
        check_placed(asked, placement, found, kept, claims)
        if automatic:
            check_chosen(asked, placement, tried)
        claims.append(claimed(asked, placement))
        # Whoever was there keeps a CPU for every vCPU.
        assert all(cpus - owned(claims) for held in claims if not held.dedicated for cpus in held.vcpu)


# Two nodes of two cores with two siblings each: node 0 has 0-1,4-5, node 1 has 2-3,6-7; 0 and 4 are one core.
TWO = topology(2, 2, 2)


@pytest.mark.parametrize(
    ("asked", "keeping", "claims", "vcpu"),
    [
        (guest(2, dedicated=True), HOST, [], ["1", "5"]),
        (guest(4, dedicated=True), HOST, [], ["2", "6", "3", "7"]),
        (guest(1, dedicated=True), HOST, [], ["1"]),
        (guest(2, dedicated=True), HOST, [claim("db", ["1"])], ["2", "6"]),
        (guest(2, dedicated=True, nodes="1"), HOST, [claim("db", ["2"])], ["3", "7"]),
        (guest(3, dedicated=True, nodes="1"), HOST, [claim("db", ["2"])], ["3", "7", "6"]),
        (guest(2, dedicated=True), host("2-3,6-7"), [], ["0", "4"]),
        (guest(1, dedicated=True), HOST, [claim("db", ["2"])], ["6"]),
        (guest(5, dedicated=True), HOST, [], ["2", "6", "3", "7", "1"]),
        (guest(2, dedicated=True, smt="isolate"), HOST, [], ["2", "3"]),
        (guest(4, dedicated=True, smt="require"), HOST, [claim("db", ["1"])], ["2", "6", "3", "7"]),
        (guest(4, dedicated=True, threads=2), HOST, [claim("db", ["1"])], ["2", "6", "3", "7"]),
        (guest(2, dedicated=True, threads=2), HOST, [claim("db", ["1", "2"])], ["3", "7"]),
        (guest(2), HOST, [], ["0-7", "0-7"]),
        (guest(1), HOST, [claim("db", ["1", "5"])], ["0,2-4,6-7"]),
        (guest(1, nodes="1"), HOST, [claim("db", ["2"])], ["3,6-7"]),
        (guest(1, vcpu=["0-3"]), HOST, [], ["0-3"]),
        (guest(2, dedicated=True, vcpu=["3", "1"]), HOST, [], ["3", "1"]),
        (guest(1), HOST, [claim("db", ["1"], dedicated=False)], ["0-7"]),
    ],
)
def test_placed(asked: Guest, keeping: Host, claims: list[Claim], vcpu: list[str]) -> None:
    assert list(map(cpulist.render, place(asked, keeping, TWO, claims, {}).vcpu)) == vcpu


HINT = "ask for fewer vCPUs, choose the CPUs in [placement.vcpu], or stop a guest that holds some"


def test_a_shared_guest_in_the_way_is_avoided() -> None:
    batch = claim("batch", ["2"], dedicated=False)
    assert place(guest(1, dedicated=True, nodes="1"), HOST, TWO, [batch], {}).vcpu == (frozenset((6,)),)


@pytest.mark.parametrize(
    ("asked", "keeping", "claims", "said", "holders"),
    [
        (
            guest(7, dedicated=True),
            HOST,
            [],
            "7 dedicated CPUs: there is room for 2 on node 0 (CPU 1,5), 4 on node 1 (CPU 2-3,6-7)",
            None,
        ),
        (
            guest(5, dedicated=True, page_size=2 << 20),
            HOST,
            [],
            "5 dedicated CPUs on one node: there is room for 2 on node 0 (CPU 1,5), 4 on node 1 (CPU 2-3,6-7)",
            None,
        ),
        (
            guest(1, dedicated=True, nodes="0"),
            HOST,
            [claim("db", ["5", "1"])],
            "1 dedicated CPU: there is room for 0 on node 0; CPU 1,5 are dedicated to guest db",
            ("db",),
        ),
        (
            guest(4, dedicated=True),
            HOST,
            [claim("web", ["2"]), claim("db", ["3", "5"]), claim("net", ["0"], dedicated=False, emulator="7")],
            "4 dedicated CPUs: there is room for 1 on node 0 (CPU 1), 1 on node 1 (CPU 6);"
            " CPU 2 is dedicated to guest web, CPU 3,5 are dedicated to guest db,"
            " CPU 7 runs QEMU's own threads of guest net",
            ("db", "net", "web"),
        ),
        (
            guest(2, dedicated=True, nodes="1", threads=2),
            HOST,
            [claim("web", ["2"]), claim("net", ["7"], dedicated=False)],
            "2 dedicated CPUs in groups of 2 SMT siblings: there is room for 0 on node 1;"
            " CPU 2 is dedicated to guest web, CPU 7 is the last one of a vCPU of guest net",
            ("net", "web"),
        ),
        (
            guest(3, dedicated=True, smt="isolate"),
            HOST,
            [claim("web", ["2"])],
            "3 dedicated CPUs, each on a core of its own: there is room for 1 on node 0 (CPU 1), 1 on node 1 (CPU 3);"
            " CPU 2 is dedicated to guest web",
            ("web",),
        ),
        (
            guest(4, dedicated=True, smt="require", nodes="0"),
            HOST,
            [],
            "4 dedicated CPUs on whole cores: there is room for 2 on node 0 (CPU 1,5)",
            None,
        ),
        (
            guest(1, vcpu=["1-3"]),
            HOST,
            [claim("db", ["2", "3"])],
            "placement.vcpu: CPU 2-3 are dedicated to guest db\n  hint: choose other CPUs, or stop that guest",
            ("db",),
        ),
        (
            guest(1, emulator="0-1"),
            HOST,
            [claim("db", ["1"])],
            "placement.emulator: CPU 1 is dedicated to guest db\n  hint: choose other CPUs, or stop that guest",
            ("db",),
        ),
        (
            guest(1, dedicated=True, vcpu=["4"]),
            HOST,
            [],
            "placement.vcpu: CPU 4 is for housekeeping, which no guest may own"
            "\n  hint: choose other CPUs, or set cpu.housekeeping in /etc/kvmsup.toml",
            None,
        ),
        (
            guest(1, vcpu=["2"], nodes="0"),
            HOST,
            [],
            "placement.vcpu: CPU 2 is not on node 0\n  hint: make placement.nodes and placement.vcpu agree",
            None,
        ),
        (
            guest(1, nodes="1"),
            HOST,
            [claim("db", ["2", "3", "6", "7"])],
            "no CPU of node 1 is left for shared guests: CPU 2-3,6-7 are dedicated to guest db"
            "\n  hint: stop a dedicated guest, or choose other nodes",
            ("db",),
        ),
    ],
)
def test_refused(asked: Guest, keeping: Host, claims: list[Claim], said: str, holders: tuple[str, ...] | None) -> None:
    with pytest.raises(Refusal) as caught:
        place(asked, keeping, TWO, claims, {})
    assert str(caught.value) == (said if "\n" in said else f"{said}\n  hint: {HINT}")
    assert getattr(caught.value, "holders", None) == holders


@pytest.mark.parametrize(
    ("asked", "threads", "said"),
    [
        (guest(3, dedicated=True, smt="require"), 2, 'smt = "require": 3 vCPUs do not fill cores of 2 siblings'),
        (
            guest(2, dedicated=True, smt="require"),
            1,
            'smt = "require": the cores that guests may have show one CPU each, no siblings',
        ),
        (
            guest(4, dedicated=True, threads=4),
            2,
            "threads = 4: the cores that guests may have show 2 of their siblings at the most",
        ),
    ],
)
def test_refused_by_what_the_host_is(asked: Guest, threads: int, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        place(asked, HOST, topology(2, 3, threads), [], {})
    assert caught.value.what == said
    assert caught.value.hint
    assert not isinstance(caught.value, Taken)


def test_idle_siblings_are_owned() -> None:
    placed = place(guest(2, dedicated=True, smt="isolate"), HOST, TWO, [], {})
    assert (placed.vcpu, placed.idle) == ((frozenset((2,)), frozenset((3,))), frozenset((6, 7)))
    lone = claimed(guest(2, dedicated=True), placed)
    assert lone.own_cpus == {2, 3, 6, 7}
    with pytest.raises(Taken) as caught:
        place(guest(1, dedicated=True, smt="isolate", vcpu=["1"]), HOST, TWO, [claim("db", ["5"])], {})
    assert caught.value.what == 'smt = "isolate": the siblings of its CPUs: CPU 5 is dedicated to guest db'


# One node, two last-level caches of four cores each, the first two cores of each are fast.
_CACHES = (frozenset(range(4)), frozenset(range(4, 8)))
HYBRID = topology(1, 8, 1)._replace(
    cpus={
        number: cpu._replace(cache=_CACHES[number // 4], grade=number % 4 // 2, kind=("core", "atom")[number % 4 // 2])
        for number, cpu in topology(1, 8, 1).cpus.items()
    }
)
LINE = topology(4, 2, 1)._replace(
    distances={node: {other: 10 + 5 * abs(node - other) for other in range(4)} for node in range(4)}
)


@pytest.mark.parametrize(
    ("found", "asked", "keeping", "claims", "vcpu"),
    [
        # Fast cores before slow ones, one kind before two, one cache before two.
        (HYBRID, guest(2, dedicated=True), host("0"), [], ["4", "5"]),
        (HYBRID, guest(2, dedicated=True), host("0,4"), [], ["1", "5"]),
        (HYBRID, guest(2, dedicated=True), host("0-1,5"), [], ["2", "3"]),
        (HYBRID, guest(4, dedicated=True), host("0"), [], ["2", "3", "6", "7"]),
        (HYBRID, guest(5, dedicated=True), host("0"), [], ["1", "4", "5", "6", "7"]),
        # Isolated CPUs go to dedicated guests first, and never to shared ones.
        (topology(2, 4, 1, isolated=[6, 7]), guest(2, dedicated=True), host("0"), [], ["6", "7"]),
        (topology(2, 4, 1, isolated=[6, 7]), guest(1), host("0"), [], ["0-5"]),
        # Where no node is enough, the closest ones, and as few as possible.
        (LINE, guest(3, dedicated=True), host("0"), [claim("db", ["3"])], ["4", "5", "2"]),
        (LINE, guest(5, dedicated=True), host("0"), [], ["2", "3", "4", "5", "1"]),
    ],
)
def test_close_together(found: Topology, asked: Guest, keeping: Host, claims: list[Claim], vcpu: list[str]) -> None:
    placed = place(asked, keeping, found, claims, {})
    assert list(map(cpulist.render, placed.vcpu)) == vcpu
    assert placed.why


def cell(vcpus: str, host_node: int | None = None, memory: int = 1 << 30) -> Cell:
    return Cell(cpulist.parse(vcpus), memory, host_node)


@pytest.mark.parametrize(
    ("found", "asked", "claims", "nodes", "vcpu"),
    [
        # A node each, though one would be enough for both; close together; the largest cell finds room first.
        (LINE, guest(2, dedicated=True, cells=[cell("0"), cell("1")]), [], (0, 1), ["1", "2"]),
        (LINE, guest(4, dedicated=True, cells=[cell("0-1"), cell("2-3")]), [], (1, 2), ["2", "3", "4", "5"]),
        (LINE, guest(3, dedicated=True, cells=[cell("0"), cell("1-2")]), [], (0, 1), ["1", "2", "3"]),
        (LINE, guest(3, dedicated=True, cells=[cell("0"), cell("1-2")]), [claim("db", ["3", "5"])], (2, 3), None),
        (LINE, guest(2, dedicated=True, cells=[cell("0", 3), cell("1")]), [], (3, 2), ["6", "4"]),
        (LINE, guest(2, dedicated=True, cells=[cell("0", 3), cell("1", 3)]), [], (3, 3), ["6", "7"]),
        # Fewer host nodes than guest nodes.
        (TWO, guest(3, dedicated=True, cells=map(cell, "012")), [], (0, 1, 0), ["1", "2", "5"]),
        # Siblings stay together.
        (TWO, guest(4, dedicated=True, threads=2, cells=[cell("0-1"), cell("2-3")]), [], (0, 1), ["1", "5", "2", "6"]),
        # Shared guests run anywhere on the cell's node; chosen CPUs say where the cell is.
        (TWO, guest(2, cells=[cell("0"), cell("1")]), [], (0, 1), ["0-1,4-5", "2-3,6-7"]),
        (TWO, guest(2, cells=[cell("0"), cell("1")], vcpu=["2", "1"]), [], (1, 0), ["2", "1"]),
    ],
)
def test_cells(
    found: Topology, asked: Guest, claims: list[Claim], nodes: tuple[int, ...], vcpu: list[str] | None
) -> None:
    placed = place(asked, HOST, found, claims, dict.fromkeys(range(4), 4 << 30))
    assert placed.cells == nodes
    assert placed.nodes == set(nodes)
    assert vcpu is None or list(map(cpulist.render, placed.vcpu)) == vcpu
    for one, node in zip(asked.cells, placed.cells, strict=True):
        assert found.nodes_of(cpu for index in one.vcpus for cpu in placed.vcpu[index]) == {node}


# Of two nodes of four CPUs the second has no memory.
HALF = TWO._replace(memory={0: 4 << 30, 1: 0})


def test_memory_is_where_there_is_some() -> None:
    """The kernel binds nothing to a node without (mbind(2)), whether or not the guest fits elsewhere."""
    for asked in (guest(2, cells=[cell("0"), cell("1")]), guest(4, dedicated=True, cells=[cell("0"), cell("1-3")])):
        free = {0: 1 << 20, 1: 0}
        if asked.placement.dedicated:
            with pytest.raises(Refusal, match="^4 dedicated CPUs: there is room for "):
                place(asked, HOST, HALF, [], free)
        else:
            assert place(asked, HOST, HALF, [], free).cells == (0, 0)
    alone = guest(1, dedicated=True, size=2 << 30, vcpu=["3"])
    assert HALF.node_of(3) == 1
    assert 0 in place(alone, HOST, HALF, [], {0: 1 << 20, 1: 0}).nodes
    pinned = guest(2, cells=[cell("0"), cell("1")], vcpu=["1", "3"])
    with pytest.raises(Refusal, match="^placement.vcpu: guest node 1 would be on node 1, which has no memory"):
        place(pinned, HOST, HALF, [], {0: 4 << 30, 1: 0})


def test_cells_follow_memory_and_claim_pages_by_node() -> None:
    asked = guest(2, dedicated=True, page_size=PAGES, size=3 << 30, cells=[cell("0", None, 2 << 30), cell("1")])
    placed = place(asked, HOST, LINE, [], {0: 4 << 30, 1: 1 << 30, 2: 0, 3: 2 << 30})
    assert placed.cells == (0, 1)
    assert placing.claim(asked, placed, "").pages == {0: 1024, 1: 512}
    both = placing.claim(asked, placed._replace(cells=(3, 3)), "")
    assert both.pages == {3: 1536}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            guest(4, dedicated=True, cells=[cell("0-2", 0), cell("3")]),
            "4 dedicated CPUs: there is room for 2 on node 0",
        ),
        (
            guest(2, cells=[cell("0"), cell("1")], vcpu=["1-2", "1"]),
            "placement.vcpu: the CPUs of guest node 0 are on node 0-1",
        ),
        (
            guest(2, cells=[cell("0", 1), cell("1")], vcpu=["1", "1"]),
            "placement.vcpu: the CPUs of guest node 0 are on node 0, not on 1",
        ),
    ],
)
def test_cells_refused(asked: Guest, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        place(asked, HOST, TWO, [], {})
    assert caught.value.what.startswith(said)


def test_iothreads() -> None:
    asked = guest(1, dedicated=True, iothreads={"a": "", "b": "6"})
    placed = place(asked, HOST, TWO, [], {})
    assert placed.iothread == {"a": {0, 4}, "b": {6}}
    # Where its iothread runs, outside housekeeping, nobody can be alone.
    there = claimed(asked, placed)._replace(iothread=placed.iothread)
    with pytest.raises(Taken, match=r"^placement\.vcpu: CPU 6 runs QEMU's own threads of guest web"):
        place(guest(1, dedicated=True, vcpu=["6"]), HOST, TWO, [there], {})
    with pytest.raises(Taken, match=r"^iothread\.a\.cpus: CPU 1 is dedicated to guest db"):
        place(guest(1, iothreads={"a": "1"}), HOST, TWO, [claim("db", ["1"])], {})
    hasty = asked._replace(placement=asked.placement._replace(scheduler=Scheduler("fifo", 1), vcpu=(frozenset((6,)),)))
    with pytest.raises(Refusal, match=r"^iothread\.b\.cpus: CPU 6 is a real-time vCPU's"):
        place(hasty, HOST, TWO, [], {})


def test_the_emulator_is_on_the_guests_own_node() -> None:
    far = place(guest(2, dedicated=True, nodes="1"), host("0"), TWO, [], {})
    assert (far.emulator, far.why[-2]) == (
        frozenset((0,)),
        "emulator on CPU 0, of another node: cpu.housekeeping in /etc/kvmsup.toml names no CPU of node 1",
    )
    near = place(guest(2, dedicated=True, nodes="1"), host("0,3"), TWO, [], {})
    assert near.emulator == {3}
    with pytest.raises(Taken) as caught:
        everything = claim("db", map(str, range(8)))
        place(guest(1, emulator=""), HOST, TWO, [everything._replace(emulator=frozenset())], {})
    assert "dedicated to guest db" in caught.value.what


def test_refused_for_isolation_waits_for_nobody() -> None:
    with pytest.raises(Refusal) as caught:
        place(guest(1), HOST, topology(1, 2, 1, isolated=[0, 1]), [], {})
    assert str(caught.value) == (
        "no CPU is left for shared guests: all are isolated"
        "\n  hint: choose other nodes, or the CPUs in [placement.vcpu]"
    )
    assert not isinstance(caught.value, Taken)


PAGES = 2 << 20


def locked(asked: Guest) -> Guest:
    return asked._replace(memory=asked.memory._replace(lock=True))


@pytest.mark.parametrize(
    ("asked", "free", "nodes"),
    [
        (guest(1), {}, ""),
        (guest(1, nodes="0-1"), {}, "0-1"),
        (guest(1, dedicated=True), {}, "0"),
        (guest(1, page_size=PAGES), {0: 1 << 30, 1: 2 << 30}, "1"),
        (guest(1, page_size=PAGES), {0: 2 << 30, 1: 2 << 30}, "0"),
        (guest(1, dedicated=True), {0: 1 << 20, 1: 1 << 30}, "1"),
        (guest(1, dedicated=True), {0: 1 << 20, 1: 1 << 20}, "0"),
        (guest(1, dedicated=True, size=3 << 30), {0: 2 << 30, 1: 2 << 30}, "0-1"),
        (guest(1, dedicated=True, size=3 << 30, nodes="0"), {0: 2 << 30, 1: 2 << 30}, "0"),
        (guest(1, dedicated=True, page_size=PAGES), {0: 1 << 20, 1: 1 << 30}, "1"),
        (guest(1, page_size=PAGES, nodes="0"), {}, "0"),
        (guest(1, page_size=PAGES, vcpu=["2"]), {}, "1"),
        (guest(2, dedicated=True, vcpu=["1", "2"]), {}, "0-1"),
    ],
)
def test_memory_nodes(asked: Guest, free: dict[int, int], nodes: str) -> None:
    assert cpulist.render(place(asked, HOST, TWO, [], free).nodes) == nodes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            guest(2, dedicated=True, vcpu=["1", "2"], page_size=PAGES),
            "its CPUs are on nodes 0-1, but hugepages are reserved on one node"
            "\n  hint: choose CPUs of one node, or leave memory.hugepages out",
        ),
        (guest(1, page_size=PAGES, size=3 << 30), "memory.size = 3G: the most on one node is 2047M, on 1"),
    ],
)
def test_memory_refused(asked: Guest, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        place(asked, HOST, TWO, [], {0: 1 << 30, 1: (2 << 30) - 1})
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("asked", "roomy", "fill"),
    [
        (guest(2, dedicated=True), 0, []),
        (guest(2, dedicated=True, page_size=PAGES), 0, ["1,5"]),
        (guest(2, page_size=PAGES, nodes="1"), 0, ["2-3,6-7"]),
        (guest(2, page_size=PAGES), 0, ["0-1,4-5"]),
        # All CPUs of node 1 may be given to others later.
        (guest(2, page_size=PAGES), 1, ["0-7"]),
        (guest(2, dedicated=True, page_size=PAGES, cells=[cell("0", 1), cell("1", 0)]), 0, ["2", "1"]),
        (guest(2, dedicated=True, page_size=PAGES, vcpu=["2", "6"]), 0, ["2,6"]),
        (locked(guest(2, dedicated=True)), 0, ["1,5"]),
        (locked(guest(2, dedicated=True, page_size=PAGES)), 0, ["1,5"]),
        (locked(guest(2, dedicated=True, vcpu=["1", "2"])), 0, ["1-2"]),
        (locked(guest(2)), 0, ["0-7"]),
        (locked(guest(2, nodes="1")), 0, ["2-3,6-7"]),
        (locked(guest(2, cells=[cell("0", 1), cell("1", 0)])), 0, ["2-3,6-7", "0-1,4-5"]),
    ],
)
def test_memory_is_filled_on_the_guests_own_cpus_of_its_node(asked: Guest, roomy: int, fill: list[str]) -> None:
    placed = place(asked, HOST, TWO, [], {0: 2 << 30, 1: 2 << 30, roomy: 3 << 30})
    claimed = placing.claim(asked, placed, "")
    assert list(map(cpulist.render, claimed.fill)) == fill


@pytest.mark.parametrize("threads", [{"emulator": "1"}, {"iothreads": {"io": "1"}}])
def test_a_vcpu_is_not_put_where_qemus_own_threads_were_chosen(threads: dict[str, Any]) -> None:
    beside = place(guest(2, dedicated=True, **threads), HOST, EIGHT, [], {})
    assert cpulist.render(frozenset().union(*beside.vcpu)) == "2,6"
    # A real-time vCPU could not even start there.
    fifo = guest(2, dedicated=True, **threads)
    fifo = fifo._replace(placement=fifo.placement._replace(scheduler=Scheduler("fifo", 10)))
    assert place(fifo, HOST, EIGHT, [], {}).vcpu == beside.vcpu
    # Where nothing else is left they share it, as they always could.
    assert place(guest(6, dedicated=True, **threads), HOST, EIGHT, [], {})


@pytest.mark.parametrize(
    ("asked", "key"),
    [({"emulator": "5"}, "placement.emulator"), ({"iothreads": {"io": "5"}}, "iothread.io.cpus")],
)
def test_what_stays_idle_runs_none_of_qemus_own_threads(asked: dict[str, Any], key: str) -> None:
    with pytest.raises(Refusal) as refused:
        place(guest(1, dedicated=True, smt="isolate", vcpu=["1"], **asked), HOST, EIGHT, [], {})
    assert refused.value.what == f'{key}: CPU 5 stays idle, as smt = "isolate" has it'
    # The housekeeping CPUs have become db's: QEMU's threads go to any that are left.
    kept = place(guest(1, dedicated=True, smt="isolate"), host("1,5"), EIGHT, [claim("db", ["1", "5"])], {})
    assert not kept.emulator & (kept.idle | kept.vcpu[0])
    assert f"emulator on CPU {cpulist.render(kept.emulator)}: no housekeeping CPU is free" in kept.why


EIGHT = topology(1, 4, 2)
