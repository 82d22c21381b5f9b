# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a guest cannot be placed, in sentences that name the holders, and the checks that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kvmsup import cpulist, sizes
from kvmsup.errors import Refusal
from kvmsup.model import vsock
from kvmsup.model.claim import Claim, Held
from kvmsup.model.guest import Guest
from kvmsup.model.topology import Topology
from kvmsup.plan import packing
from kvmsup.plan.scene import EMULATOR, OWNED, Holder, Scene

_PLURAL = {OWNED: "are dedicated to guest", EMULATOR: "run QEMU's own threads of guest"}


class Taken(Refusal):
    """Refused because of other guests: `holders` names them, so that setup can wait for those that are leaving."""

    catalog = "in-use"

    def __init__(self, what: str, hint: str, holders: Sequence[str], catalog: str = "") -> None:
        super().__init__(what, hint, catalog)
        self.holders = tuple(holders)


def no_cpus(what: str, hint: str, holders: Sequence[str] = ()) -> Refusal:
    """The refusal for want of CPUs: Taken, where it is `holders` that have them."""
    return Taken(what, hint, holders, "no-cpus") if holders else Refusal(what, hint, "no-cpus")


def _told(cpus: Iterable[int], holders: Mapping[int, Holder]) -> str:
    """`CPU 2 is dedicated to guest web, CPU 4-5 are dedicated to guest db`."""
    found: dict[Holder, list[int]] = {}
    for cpu in sorted(cpus):
        found.setdefault(holders[cpu], []).append(cpu)
    return ", ".join(
        f"CPU {cpulist.render(cpus)} {holder.how if len(cpus) == 1 else _PLURAL[holder.how]} {holder.guest}"
        for holder, cpus in found.items()
    )


def _names(cpus: Iterable[int], holders: Mapping[int, Holder]) -> list[str]:
    return sorted({holders[cpu].guest for cpu in cpus})


def check_free(asked: str, cpus: frozenset[int], holders: Mapping[int, Holder]) -> None:
    """Raises Taken, beginning with `asked`, when somebody holds one of `cpus`."""
    clash = cpus.intersection(holders)
    if clash:
        hint = "choose other CPUs, or stop that guest"
        raise no_cpus(f"{asked}: {_told(clash, holders)}", hint, _names(clash, holders))


def check_cid(guest: Guest, claims: Iterable[Claim]) -> None:
    """Raises Taken when one of `claims` has the vsock address that the guest's name stands for."""
    cid = vsock.cid(guest.name)
    others = sorted(claim.guest for claim in claims if claim.cid == cid and claim.guest != guest.name)
    if guest.inside.ready and others:
        what = f"guest.ready: vsock address (CID) {cid} is that of guest {others[0]} too: both names stand for it"
        raise Taken(what, "rename one of them, leave guest.ready out, or stop that guest", others)


def check_disks(name: str, disks: Iterable[Held], claims: Iterable[Claim]) -> None:
    """Raises Taken when another guest has one of the `disks` of guest `name`, or a part, unless both only read it."""
    theirs = [(claim.guest, one) for claim in claims if claim.guest != name for one in claim.disks]
    for disk in disks:
        for guest, other in theirs:
            if common := _common(disk, other):
                what = f"disk.{disk.name}: guest {guest} has {common} as its disk.{other.name}"
                raise Taken(what, "stop that guest, or make it read-only in both", [guest])


def check_apart(disks: Sequence[Held]) -> None:
    """Raises Refusal when two of a guest's own `disks` are one, or parts of one, unless both are only read."""
    for index, disk in enumerate(disks):
        for other in disks[:index]:
            if common := _common(disk, other):
                raise Refusal(f"disk.{disk.name}: disk.{other.name} is {common}", "each needs an image of its own")


def _common(disk: Held, other: Held) -> str:
    """What `other` is to `disk`, "" where neither can spoil the other."""
    if not (disk.write or other.write):
        return ""
    if other.identity == disk.identity:
        return "the same one"
    if other.identity in disk.on:
        return "what it lies on"
    return "a part of it" if disk.identity in other.on else ""


def check_real_time(real_time: bool, asked: str, both: frozenset[int]) -> None:
    """Raises Refusal, beginning with `asked`, when there are CPUs of `both` a `real_time` vCPU and another thread."""
    if real_time and both:
        what = f"{asked}: CPU {cpulist.render(both)} is a real-time vCPU's, which would starve QEMU there"
        raise no_cpus(what, "choose other CPUs for it, or leave placement.scheduler out")


def check_idle(asked: str, both: frozenset[int]) -> None:
    """Raises Refusal, beginning with `asked`, when `both`, CPUs that it names and siblings kept idle, is not empty."""
    if both:
        what = f'{asked}: CPU {cpulist.render(both)} stays idle, as smt = "isolate" has it'
        raise no_cpus(what, "choose other CPUs for it, or leave placement.smt out")


def check_isolated(asked: str, both: frozenset[int]) -> None:
    """Raises Refusal, beginning with `asked`, when `both`, CPUs that it names and the isolated ones, is not empty."""
    if both:
        what = f"{asked}: CPU {cpulist.render(both)} is isolated, for vCPUs alone"
        raise no_cpus(what, "choose other CPUs for it, or leave placement.isolate out")


def check_housekeeping(left: frozenset[int], isolated: frozenset[int]) -> None:
    """Raises Refusal when no CPU for housekeeping is `left` to the host beside the `isolated` ones."""
    if not left:
        what = f"with CPU {cpulist.render(isolated)} isolated the host would have no housekeeping CPU that is online"
        raise no_cpus(what, "bring one online, or set cpu.housekeeping in /etc/kvmsup.toml")


def check_nets(guest: Guest, claims: Iterable[Claim]) -> None:
    """Raises Taken when one of `claims` has the address, or the host's end, of one of the guest's interfaces."""
    others = [claim for claim in claims if claim.guest != guest.name]
    addresses = {net.mac: (claim.guest, net.name) for claim in others for net in claim.nets}
    links = {net.link: (claim.guest, net.name) for claim in others for net in claim.nets if net.link}
    for net in guest.nets:
        if net.mac in addresses:
            holder, name = addresses[net.mac]
            what = f"net.{net.name}: {net.mac} is the address of net.{name} of guest {holder} too"
            raise Taken(what, f'mac = "…" in [net.{net.name}] gives it one of its own, or stop that guest', [holder])
        if net.link in links:
            holder, name = links[net.link]
            what = f"net.{net.name}: {net.link} is the host's end of net.{name} of guest {holder} too"
            raise Taken(what, "name another tap, rename the interface, or stop that guest", [holder])


def check_siblings(demand: packing.Demand, topology: Topology, allowed: frozenset[int]) -> None:
    """Raises Refusal when no core of the host, however free, could ever give what `demand` asks of one."""
    widest = max((len(topology.siblings(cpu) & allowed) for cpu in allowed), default=0)
    if demand.smt == packing.REQUIRE and widest == 1:
        what = 'smt = "require": the cores that guests may have show one CPU each, no siblings'
        raise no_cpus(what, 'turn SMT on in the firmware or in /sys/devices/system/cpu/smt/control, or smt = "prefer"')
    if demand.smt == packing.REQUIRE and widest and demand.vcpus % widest:
        what = f'smt = "require": {demand.vcpus} vCPUs do not fill cores of {widest} siblings'
        up = demand.vcpus + widest - demand.vcpus % widest
        raise no_cpus(what, f'{up} or {up - widest} vCPUs, or smt = "prefer"' if up > widest else f"{up} vCPUs")
    if demand.threads > max(widest, 1):
        what = (
            f"threads = {demand.threads}: the cores that guests may have show {widest} of their siblings at the most"
        )
        raise no_cpus(what, "threads = 1, or turn SMT on in the firmware or in /sys/devices/system/cpu/smt/control")


def too_few(guest: Guest, scene: Scene, cores: Sequence[packing.Core]) -> Refusal:
    """The refusal of a dedicated guest for which `cores`, with what they have to give, are too few."""
    wanted = guest.cpu.maxcpus
    nodes = [node for node in sorted(guest.placement.nodes or scene.topology.nodes) if scene.topology.cpus_of((node,))]
    by_node = packing.by(cores, lambda core: core.node)
    left = ", ".join(_room(node, by_node.get(node, ())) for node in nodes)
    where = " on one node" if guest.pages else ""
    what = f"{wanted} dedicated CPU{'s' if wanted > 1 else ''}{_units(guest)}{where}: there is room for {left}"
    held = (scene.topology.cpus_of(nodes) - scene.housekeeping).intersection(scene.holders)
    told = [_told(held, scene.holders)] if held else []
    told += [f"CPU {cpu} is the last one of a vCPU of guest {name}" for cpu, name in sorted(scene.kept.items())]
    hint = "ask for fewer vCPUs, choose the CPUs in [placement.vcpu], or stop a guest that holds some"
    holders = sorted({*_names(held, scene.holders), *scene.kept.values()})
    return no_cpus(f"{what}; {', '.join(told)}" if told else what, hint, holders)


def _room(node: int, cores: Sequence[packing.Core]) -> str:
    """`2 on node 0 (CPU 1,5)`."""
    cpus = [cpu for core in cores for group in core.groups for cpu in group]
    return f"{len(cpus)} on node {node}{f' (CPU {cpulist.render(cpus)})' if cpus else ''}"


def _units(guest: Guest) -> str:
    if guest.placement.smt != packing.PREFER:
        return {packing.REQUIRE: " on whole cores", packing.ISOLATE: ", each on a core of its own"}[
            guest.placement.smt
        ]
    return f" in groups of {guest.cpu.threads} SMT siblings" if guest.cpu.threads > 1 else ""


def too_little(guest: Guest, roomiest: int, free: Mapping[int, int]) -> Refusal:
    """The refusal of a guest whose hugepages have no room on any node, not even on the `roomiest`."""
    most = sizes.mebibytes(free.get(roomiest, 0))
    size = sizes.render(guest.memory.size)
    what = f"memory.size = {size}: the most on one node is {most}, on {roomiest}"
    return Refusal(what, catalog="no-pages")


def nothing_shared(guest: Guest, holders: Mapping[int, Holder]) -> Refusal:
    """The refusal of a shared guest where everything is owned by `holders`, or isolated."""
    where = f" of node {cpulist.render(guest.placement.nodes)}" if guest.placement.nodes else ""
    what = f"no CPU{where} is left for shared guests"
    if not holders:
        return no_cpus(f"{what}: all are isolated", "choose other nodes, or the CPUs in [placement.vcpu]")
    hint = "stop a dedicated guest, or choose other nodes"
    return no_cpus(f"{what}: {_told(holders, holders)}", hint, _names(holders, holders))


def nothing_for_emulator(holders: Mapping[int, Holder]) -> Refusal:
    """The refusal where every CPU that QEMU's own threads could run on is somebody's."""
    what = f"no CPU is left for QEMU's own threads: {_told(holders, holders)}"
    hint = "stop one of them, or set cpu.housekeeping in /etc/kvmsup.toml"
    return no_cpus(what if holders else what.partition(":")[0], hint, _names(holders, holders))
