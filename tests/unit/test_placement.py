# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where guests go: properties over small hosts, and refusals as whole texts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsup import cpulist
from kvmsup.errors import Refusal
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest, Host
from kvmsup.model.topology import Topology
from kvmsup.plan.placement import Placement, Taken, place
from tests.unit.hosts import HOST, Cpus, claim, guest, host, topology


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    nodes, cores, threads = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    everything = range(nodes * cores * threads)
    offline = draw(st.sets(st.sampled_from(everything), max_size=2)) - {0}
    isolated = draw(st.sets(st.sampled_from(everything), max_size=3))
    return topology(nodes, cores, threads, offline=offline, isolated=isolated)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Topology, Host, list[Guest]]:
    """A host, and guests that start on it one after the other."""
    found = draw(topologies())
    numbers = st.sampled_from(sorted(found.online))
    kept = draw(st.sets(numbers, max_size=2))
    guests = []
    for index in range(draw(st.integers(1, 8))):
        vcpus = draw(st.integers(1, 4))
        dedicated = draw(st.booleans())
        nodes = draw(st.sampled_from(["", "0", cpulist.render(found.nodes)]))
        pinned = st.lists(numbers, min_size=1, max_size=vcpus, unique=dedicated)
        chosen = draw(pinned) if draw(_RARELY) else []
        wished = draw(st.sets(numbers, max_size=2)) if draw(_RARELY) else ()
        guests.append(
            guest(
                vcpus if not chosen else len(chosen),
                name=f"g{index}",
                dedicated=dedicated,
                nodes=nodes,
                vcpu=map(str, chosen),
                emulator=cpulist.render(wished),
            )
        )
    return found, host(cpulist.render(kept)), guests


_RARELY = st.integers(0, 3).map(lambda number: number == 0)


def claimed(asked: Guest, placement: Placement) -> Claim:
    return claim(
        asked.name,
        map(cpulist.render, placement.vcpu),
        dedicated=asked.placement.dedicated,
        emulator=cpulist.render(placement.emulator),
    )


def owned(claims: Sequence[Claim]) -> frozenset[int]:
    return frozenset().union(*(held.own_cpus for held in claims))


def brute_force_fits(asked: Guest, found: Topology, kept: Cpus, claims: Sequence[Claim]) -> bool:
    """Whether any node has enough CPUs that are nobody's, counted one by one."""
    for node in asked.placement.nodes or found.nodes:
        free = 0
        for cpu in found.cpus.values():
            owned = any(cpu.number in cpus for held in claims if held.dedicated for cpus in held.vcpu)
            shared = any(cpu.number in held.emulator for held in claims)
            free += cpu.node == node and cpu.number not in kept and not owned and not shared
        if free >= asked.cpu.maxcpus:
            return True
    return False


def check_placed(asked: Guest, placement: Placement, found: Topology, kept: Cpus, claims: list[Claim]) -> None:
    used = frozenset().union(*placement.vcpu)
    assert len(placement.vcpu) == asked.cpu.maxcpus
    assert all(placement.vcpu) and placement.emulator
    assert used | placement.emulator <= found.online
    assert not (used | placement.emulator) & owned(claims)
    if asked.placement.emulator:
        assert placement.emulator == asked.placement.emulator
    if asked.placement.nodes:
        assert used <= found.cpus_of(asked.placement.nodes)
    if asked.placement.dedicated:
        assert all(len(cpus) == 1 for cpus in placement.vcpu)
        assert len(used) == asked.cpu.maxcpus
        assert not used & kept
        assert not used & frozenset().union(*(held.emulator - kept for held in claims))
        assert placement.nodes == found.nodes_of(used)
    elif not asked.placement.vcpu:
        assert set(placement.vcpu) == {used}
        assert not used & found.isolated
    if asked.placement.vcpu:
        assert placement.vcpu == asked.placement.vcpu


def check_whole_cores(asked: Guest, placement: Placement, found: Topology, kept: Cpus, claims: list[Claim]) -> None:
    """Siblings beside siblings, whole cores before parts, on the fullest node that fits."""
    used = [min(cpus) for cpus in placement.vcpu]
    (node,) = found.nodes_of(used)
    taken = kept | owned(claims) | frozenset().union(*(held.emulator for held in claims))
    free = {number: found.cpus_of([number]) - taken for number in asked.placement.nodes or found.nodes}
    assert all(len(cpus) >= len(free[node]) for cpus in free.values() if len(cpus) >= asked.cpu.maxcpus)
    cores = [core & free[node] for core in found.cores() if core & free[node]]
    assert sum(bool(core & set(used)) for core in cores) <= max(
        1, sum(1 for _ in _largest_first(cores, found, asked.cpu.maxcpus))
    )
    for core in cores:
        places = [index for index, cpu in enumerate(used) if cpu in core]
        assert not places or places == list(range(places[0], places[0] + len(places)))


def _largest_first(cores: list[frozenset[int]], found: Topology, count: int) -> list[frozenset[int]]:
    """The cores that `count` CPUs come from when whole ones are taken first."""
    taken: list[frozenset[int]] = []
    for core in sorted(cores, key=lambda core: core != found.siblings(min(core))):
        if sum(map(len, taken)) < count:
            taken.append(core)
    return taken


@given(arrivals())
def test_arrivals(case: tuple[Topology, Host, list[Guest]]) -> None:
    found, keeping, guests = case
    kept = (keeping.housekeeping or found.housekeeping()) & found.online
    claims: list[Claim] = []
    for asked in guests:
        automatic = asked.placement.dedicated and not asked.placement.vcpu
        try:
            placement = place(asked, keeping, found, claims, {})
        except Taken as refusal:
            assert refusal.holders
            assert set(refusal.holders) <= {held.guest for held in claims}
            assert all(holder in refusal.what for holder in refusal.holders)
            about_cpus = "dedicated CPU" in refusal.what
            assert not about_cpus or not automatic or not brute_force_fits(asked, found, kept, claims)
            continue
        except Refusal:
            assert not automatic or not brute_force_fits(asked, found, kept, claims)
            continue
        assert place(asked, keeping, found, claims, {}) == placement
        check_placed(asked, placement, found, kept, claims)
        if automatic:
            assert brute_force_fits(asked, found, kept, claims)
            check_whole_cores(asked, placement, found, kept, claims)
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
    assert place(guest(1, dedicated=True, nodes="1"), HOST, TWO, [batch], {}).vcpu == (frozenset((3,)),)


@pytest.mark.parametrize(
    ("asked", "keeping", "claims", "said", "holders"),
    [
        (
            guest(5, dedicated=True),
            HOST,
            [],
            f"5 dedicated CPUs on one node: free are 2 on node 0 (CPU 1,5), 4 on node 1 (CPU 2-3,6-7)\n  hint: {HINT}",
            None,
        ),
        (
            guest(1, dedicated=True, nodes="0"),
            HOST,
            [claim("db", ["5", "1"])],
            f"1 dedicated CPU on one node: free are 0 on node 0; CPU 1,5 are dedicated to guest db\n  hint: {HINT}",
            ("db",),
        ),
        (
            guest(4, dedicated=True),
            HOST,
            [claim("web", ["2"]), claim("db", ["3", "5"])],
            "4 dedicated CPUs on one node: free are 1 on node 0 (CPU 1), 2 on node 1 (CPU 6-7);"
            f" CPU 2 is dedicated to guest web, CPU 3,5 to guest db\n  hint: {HINT}",
            ("db", "web"),
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
    assert str(caught.value) == said
    assert getattr(caught.value, "holders", None) == holders


def test_refused_for_isolation_waits_for_nobody() -> None:
    with pytest.raises(Refusal) as caught:
        place(guest(1), HOST, topology(1, 2, 1, isolated=[0, 1]), [], {})
    assert str(caught.value) == (
        "no CPU is left for shared guests: all are isolated"
        "\n  hint: choose other nodes, or the CPUs in [placement.vcpu]"
    )
    assert not isinstance(caught.value, Taken)


PAGES = 2 << 20


@pytest.mark.parametrize(
    ("asked", "free", "nodes"),
    [
        (guest(1), {}, ""),
        (guest(1, nodes="0-1"), {}, "0-1"),
        (guest(1, dedicated=True), {}, "0"),
        (guest(1, page_size=PAGES), {0: 1 << 30, 1: 2 << 30}, "1"),
        (guest(1, page_size=PAGES), {0: 2 << 30, 1: 2 << 30}, "0"),
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
