# SPDX-License-Identifier: LGPL-2.1-or-later
"""How long one decision takes on a full host, and how that grows with the host."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

from bench.placement.arrivals import stream
from bench.placement.peers import CHOOSERS, Chooser, Room
from bench.placement.run import Run
from bench.placement.shapes import server
from kvmsup.model.guest import Guest
from kvmsup.model.topology import Topology

CPUS = (64, 128, 256, 512, 1024)
_GUESTS = 300 / 1024  # a CPU
_SMALL = 4  # vCPUs, so that so many guests find room
_ASKED = 60
_ROUNDS = 5


class Timed(NamedTuple):
    """Milliseconds a decision by chooser, the median of all; `slowest` is the guest that took kvmsup the longest."""

    cpus: int
    guests: int
    medians: dict[str, float]
    slowest: float


def timed(cpus: int) -> Timed:
    """Fills a host of `cpus` CPUs, then lets everyone decide in turn about the same guests, several times."""
    topology = server(cpus)
    wanted = int(cpus * _GUESTS)
    room = _full(topology, wanted)
    asked = [arrival.guest for arrival in stream(2, _ASKED, topology, 1.0, hugepages=False)]
    best = {name: [_best(choose, guest, room) for guest in asked] for name, choose in CHOOSERS.items()}
    return Timed(cpus, len(room.claims), {name: median(times) for name, times in best.items()}, max(best["kvmsup"]))


def _full(topology: Topology, guests: int) -> Room:
    run = Run(topology, CHOOSERS["kvmsup"], warm=0.0)
    for arrival in stream(1, 20 * guests, topology, 1.0, hugepages=False):
        if len(run.held) < guests and arrival.guest.cpu.maxcpus <= _SMALL:
            run.arrive(arrival._replace(at=0.0, stay=1.0))
    return run.room


def _best(choose: Chooser, guest: Guest, room: Room) -> float:
    """The quickest of some rounds: what the machine does beside this is not the algorithm's."""
    return min(_once(choose, guest, room) for _ in range(_ROUNDS))


def _once(choose: Chooser, guest: Guest, room: Room) -> float:
    begin = perf_counter()
    choose(guest, room)
    return 1000 * (perf_counter() - begin)


def all_timed(sizes: Sequence[int] = CPUS) -> list[Timed]:
    """`timed` for each of `sizes`."""
    return [timed(cpus) for cpus in sizes]
