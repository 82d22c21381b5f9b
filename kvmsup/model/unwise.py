# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest's file asks for that can be had and is better not asked for: warnings for whoever checks it; pure.

What one key alone, or one with its neighbours, shows to be so is noted where that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmsup import cpulist, sizes
from kvmsup.model.guest import Guest
from kvmsup.model.table import Path, Problem
from kvmsup.model.topology import Topology


def problems(guest: Guest, topology: Topology | None) -> Iterator[Problem]:
    """The warnings about a sound `guest`; those that the host decides only with its `topology`."""
    yield from _disturbed(guest)
    yield from _nodes_unseen(guest, topology)
    if topology:
        yield from _more_than_there_is(guest, topology)


def _warning(path: Path, what: str, hint: str, *, at_key: bool = False) -> Problem:
    return Problem(path, what, hint, at_key, "warning")


def _disturbed(guest: Guest) -> Iterator[Problem]:
    """Threads of QEMU that were put onto CPUs which are a vCPU's alone."""
    if not guest.placement.dedicated:
        return
    owner = {cpu: index for index, cpus in enumerate(guest.placement.vcpu) for cpu in cpus}
    chosen: Mapping[Path, frozenset[int] | None] = {
        ("placement", "emulator"): guest.placement.emulator,
        **{("iothread", one.name, "cpus"): one.cpus for one in guest.iothreads},
    }
    for path, cpus in chosen.items():
        both = sorted((cpus or frozenset()) & owner.keys())
        if both and guest.placement.scheduler:
            what = f"CPU {cpulist.render(both)} is a real-time vCPU's, which would starve it: a start is refused"
            yield _warning(path, what, "choose other CPUs for it, or leave placement.scheduler out")
        elif both:
            whose = "vCPU " + cpulist.render(owner[cpu] for cpu in both)
            what = f"CPU {cpulist.render(both)} is the own CPU of {whose}, which waits while QEMU works there"
            yield _warning(path, what, "choose CPUs that are no vCPU's, such as housekeeping ones")


def _nodes_unseen(guest: Guest, topology: Topology | None) -> Iterator[Problem]:
    """A guest that is spread over host nodes and sees one: its kernel takes all memory for equally near."""
    if guest.cells:
        return
    placement = guest.placement
    seen = "the guest sees one node, and takes memory of the others for as near"
    hint = "a [numa.N] for each, or the CPUs and memory of one node"
    if placement.nodes and len(placement.nodes) > 1:
        yield _warning(("placement", "nodes"), f"{len(placement.nodes)} nodes: {seen}", hint)
    elif topology and placement.dedicated and placement.vcpu:
        nodes = topology.nodes_of(frozenset().union(*placement.vcpu) & topology.cpus.keys())
        if len(nodes) > 1 and guest.memory.page_size:
            what = f"CPUs of node {cpulist.render(nodes)}, but hugepages are reserved on one node: a start is refused"
            yield _warning(("placement", "vcpu"), what, f"{hint}, or leave memory.hugepages out", at_key=True)
        elif len(nodes) > 1:
            what = f"CPUs of node {cpulist.render(nodes)}: {seen}"
            yield _warning(("placement", "vcpu"), what, hint, at_key=True)


def _more_than_there_is(guest: Guest, topology: Topology) -> Iterator[Problem]:
    """More vCPUs than CPUs, which wait for each other; more memory than the host has, which swaps or ends it."""
    online, total = len(topology.online), sum(topology.memory.values())
    if not guest.placement.dedicated and guest.cpu.vcpus > online:
        what = f"{guest.cpu.vcpus} vCPUs share this host's {online} CPUs, and one that holds a lock may not be running"
        yield _warning(("cpu", "vcpus"), what, f"vcpus = {online} or fewer")
    if total and guest.memory.size > total:
        what = f"{sizes.render(guest.memory.size)} is more than this host has, {_told(total)}"
        yield _warning(("memory", "size"), what, "what the guest touches beyond that is swapped, or it is killed")


def _told(size: int) -> str:
    """A size that need not be a whole number of anything, to a tenth."""
    return f"{size / sizes.UNITS['G']:.1f}G"
