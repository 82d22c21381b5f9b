# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records for tests: hosts, guests and claims in a few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmsup import cpulist
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Cell, Cpu, Guest, Host, IoThread, Machine, Memory, Wishes
from kvmsup.model.topology import LogicalCpu, Topology

Cpus = frozenset[int]
HOST = Host(None, "always")


def host(housekeeping: str = "") -> Host:
    return Host(cpulist.parse(housekeeping) or None, "always")


def topology(
    nodes: int = 1, cores: int = 2, threads: int = 2, *, offline: Iterable[int] = (), isolated: Iterable[int] = ()
) -> Topology:
    """`cores` a node, numbered as servers do: siblings are half of all CPUs apart, nodes one after the other."""
    half = nodes * cores
    gone = frozenset(offline)
    online = [number for number in range(half * threads) if number not in gone]
    on_node = [frozenset(number for number in online if number % half // cores == node) for node in range(nodes)]
    cpus = {}
    for number in online:
        core = number % half
        siblings = frozenset(core + half * thread for thread in range(threads)) - gone
        node = core // cores
        cpus[number] = LogicalCpu(number, node, 0, node, siblings, on_node[node])
    far = {node: {other: 10 if node == other else 20 for other in range(nodes)} for node in range(nodes)}
    return Topology(
        cpus=cpus,
        present=frozenset(range(half * threads)),
        isolated=frozenset(isolated),
        nohz_full=frozenset(),
        nodes=frozenset(range(nodes)),
        distances=far,
        memory=dict.fromkeys(range(nodes), 4 << 30),
    )


def guest(
    vcpus: int = 1,
    *,
    name: str = "web",
    dedicated: bool = False,
    nodes: str = "",
    emulator: str = "",
    vcpu: Iterable[str] = (),
    size: int = 1 << 30,
    page_size: int = 0,
    ksm: bool = False,
    smt: str = "prefer",
    threads: int = 1,
    iothreads: Mapping[str, str] | None = None,
    cells: Iterable[Cell] = (),
) -> Guest:
    wishes = Wishes(
        dedicated,
        cpulist.parse(nodes) or None,
        cpulist.parse(emulator) or None,
        None,
        smt,
        False,
        tuple(map(cpulist.parse, vcpu)),
    )
    return Guest(
        name,
        "",
        Machine("pc-q35-7.2", "kvm", "", "", ""),
        Cpu("host", (), vcpus, vcpus, 1, 1, vcpus // threads, threads),
        wishes,
        Memory(size, page_size, False, ksm),
        tuple(IoThread(name, cpulist.parse(cpus) or None) for name, cpus in (iothreads or {}).items()),
        tuple(cells),
    )


def claim(
    name: str,
    vcpu: Iterable[str] = ("1",),
    *,
    dedicated: bool = True,
    held: bool = True,
    idle: str = "",
    emulator: str = "0",
    scheduler: str = "",
    nodes: str = "0",
    page_size: int = 0,
    pages: Mapping[int, int] | None = None,
    grown: Mapping[int, int] | None = None,
    before: Mapping[int, int] | None = None,
    ksm: bool = False,
) -> Claim:
    cpus = tuple(map(cpulist.parse, vcpu))
    return Claim(
        guest=name,
        held=held,
        dedicated=dedicated,
        vcpu=cpus,
        idle=cpulist.parse(idle),
        emulator=cpulist.parse(emulator),
        iothread={},
        scheduler=scheduler,
        core_scheduling=False,
        nodes=cpulist.parse(nodes),
        cells=(),
        fill=(),
        page_size=page_size,
        pages=pages or {},
        grown=grown or {},
        before=before or {},
        vcpus=len(cpus),
        ksm=ksm,
        loaded="",
    )
