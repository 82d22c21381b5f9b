# SPDX-License-Identifier: LGPL-2.1-or-later
"""The peers that bench/ compares with place guests legally, and what is counted is what it says."""

from __future__ import annotations

import random

import pytest

from bench.placement.arrivals import stream, usable
from bench.placement.peers import CHOOSERS, Room
from bench.placement.run import check_legal, least_caches, least_cut, marks, measure, memory_of
from bench.placement.shapes import SHAPES
from tests.unit.hosts import claim, guest, topology


@pytest.mark.parametrize("name", CHOOSERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_legal_on_random_hosts(name: str, shape: str) -> None:
    """Whatever is free: only that, nothing twice, siblings where asked for, hugepages on one node."""
    dice = random.Random(shape)
    found = SHAPES[shape]
    placed = 0
    for arrival in stream(3, 150, found, 1.0, hugepages=False):
        free = frozenset(cpu for cpu in usable(found) if dice.random() < 0.6)
        claims = [claim("others", map(str, sorted(usable(found) - free)))]
        room = Room(found, free, {node: dice.randrange(size) for node, size in found.memory.items()}, claims)
        cpus = CHOOSERS[name](arrival.guest, room)
        if cpus is not None:
            check_legal(arrival.guest, cpus, room)
            placed += 1
    assert placed > 20


# Node 0 has CPUs 0-1 and 4-5, node 1 has 2-3 and 6-7; 0 and 4 are one core.
TWO = topology(2, 2, 2)
GIB = 1 << 30


def test_marks() -> None:
    room = Room(TWO, frozenset((1, 5, 2, 3, 7)), {0: GIB, 1: 4 * GIB}, ())
    one = guest(1, dedicated=True)
    assert (least_cut(one, room), least_caches(one, room)) == (0, 1)
    assert marks(one, (2,), {1: GIB}, room) == (False, False, False, False, False)
    assert marks(one, (1,), {1: GIB}, room) == (False, True, False, True, False)
    two = guest(2, dedicated=True)
    assert marks(two, (1, 2), {0: GIB}, room) == (True, True, True, False, False)
    odd = guest(5, dedicated=True)
    assert (least_cut(odd, room), least_caches(odd, room)) == (0, 2)
    assert memory_of(guest(1, size=3 * GIB), (1,), room) == {0: GIB, 1: 2 * GIB}
    assert memory_of(guest(1, size=3 * GIB, page_size=2 << 20), (1,), room) is None


def test_a_guest_too_wide_for_a_node_has_two_cells_in_nova() -> None:
    wide = topology(3, 4, 2)  # six CPUs of each node are for guests
    room = Room(wide, usable(wide) - {1}, dict.fromkeys(range(3), 4 * GIB), ())
    for name, nodes in (("Nova, spread", {1, 2}), ("Nova, pack", {0, 1})):
        cpus = CHOOSERS[name](guest(8, dedicated=True), room)
        assert cpus and [wide.node_of(cpu) for cpu in cpus].count(1) == 4
        assert wide.nodes_of(cpus) == nodes
    assert CHOOSERS["Nova, pack"](guest(7, dedicated=True), room) is None


def test_the_same_seed_is_the_same_demand() -> None:
    found = SHAPES[next(iter(SHAPES))]
    first, again = (list(stream(7, 50, found, 1.0, hugepages=True)) for _ in range(2))
    assert first == again
    assert first != list(stream(8, 50, found, 1.0, hugepages=True))
    for choose in CHOOSERS.values():
        share = measure(found, choose, first)
        assert 0 < share.vcpus <= 100 and share.split == share.far == 0
