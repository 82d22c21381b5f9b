# SPDX-License-Identifier: LGPL-2.1-or-later
"""cputune and numatune of a libvirt domain → [placement], and where its iothreads run; pure."""

from __future__ import annotations

from collections.abc import Mapping

from kvmsup import cpulist
from kvmsup.plan.libvirt_cpu import Processor
from kvmsup.plan.libvirt_values import Lists, whole
from kvmsup.plan.libvirt_xml import Node
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_NO_LIST = "is no list of CPUs or nodes"
_MOST_IOTHREADS = 1024


class Placed(NamedTuple):
    """What becomes [placement]; `pins` its vcpu table, `iothreads` the CPUs by libvirt's numbers, None for any."""

    values: dict[str, Any]
    pins: dict[str, str]
    iothreads: dict[int, str | None]


def read(domain: Node, processor: Processor, lists: Lists) -> Placed:
    """Where libvirt lets its threads run. vCPUs with a host CPU each, all of them, make the guest a dedicated one."""
    cputune = domain.at("cputune")
    everywhere = _list(lists, domain.at("vcpu"), "cpuset")
    pins = _pins(cputune, processor, lists, everywhere)
    own = len({cpus for cpus in pins.values() if len(cpus) == 1}) == processor.maxcpus
    values: dict[str, Any] = {"cpus": "dedicated"} if own else {}
    if nodes := _nodes(domain, lists):
        values["nodes"] = cpulist.render(nodes)
    emulator = _list(lists, cputune.at("emulatorpin"), "cpuset") or everywhere
    if emulator:
        values["emulator"] = cpulist.render(emulator)
    if scheduler := _scheduler(cputune, processor, lists, own):
        values["scheduler"] = scheduler
    rendered = {str(index): cpulist.render(pins[index]) for index in sorted(pins)}
    return Placed(values, rendered, _iothreads(domain, cputune, lists))


def _list(lists: Lists, node: Node, attribute: str) -> frozenset[int] | None:
    text = node.attribute(attribute)
    found = lists.cpus(text)
    if text and not found:
        node.part_lost(f"/@{attribute}", lists.why(_NO_LIST))
    return found


def _nodes(domain: Node, lists: Lists) -> frozenset[int] | None:
    memory = domain.at("numatune").at("memory")
    mode = memory.attribute("mode") or "strict"
    if mode not in ("strict", "restrictive"):
        memory.lost("memory is bound to nodes or goes where it likes: placement.nodes")
        return None
    return _list(lists, memory, "nodeset")


def _pins(
    cputune: Node, processor: Processor, lists: Lists, everywhere: frozenset[int] | None
) -> Mapping[int, frozenset[int]]:
    """Host CPUs by vCPU; none, or of all of them."""
    found: dict[int, frozenset[int]] = {}
    pinned = cputune.all("vcpupin")
    for pin in pinned:
        index = whole(pin.attribute("vcpu"), 0, processor.maxcpus - 1)
        cpus = _list(lists, pin, "cpuset") if index is not None and index not in found else None
        if cpus and index is not None:
            found[index] = cpus
        else:
            pin.lost(lists.why("is for no vCPU that there is, or not a list of CPUs for it"))
    if everywhere and lists.have_room(len(everywhere) * (processor.maxcpus - len(found))):
        return {index: found.get(index, everywhere) for index in range(processor.maxcpus)}
    if len(found) == processor.maxcpus:
        return found
    for pin in pinned:
        pin.lost(f"the CPUs of all {processor.maxcpus} vCPUs are chosen in placement.vcpu, or those of none")
    return {}


def _scheduler(cputune: Node, processor: Processor, lists: Lists, own: bool) -> str:
    """One policy for all vCPUs, or none."""
    asked = cputune.all("vcpusched")
    policies: dict[int, tuple[str, str]] = {}
    for one in asked:
        for index in lists.cpus(one.attribute("vcpus")) or ():
            policies[index] = (one.attribute("scheduler"), one.attribute("priority"))
    policy, priority = next(iter(policies.values()), ("", ""))
    same = len(set(policies.values())) == 1 and policies.keys() >= set(range(processor.maxcpus))
    why = lists.why("")
    if not why and (policy not in ("fifo", "rr") or not whole(priority, 1, 99)):
        why = "only fifo and rr are for vCPUs, with a priority from 1 to 99; Nice= of the unit is for all threads"
    elif not why and not same:
        why = "all vCPUs have one scheduler: placement.scheduler"
    elif not why and not own:
        why = "a real-time vCPU has a host CPU of its own: vcpupin, one for each"
    for one in asked if why else ():
        one.lost(why)
    return "" if why else f"{policy}:{int(priority)}"


def _iothreads(domain: Node, cputune: Node, lists: Lists) -> dict[int, str | None]:
    """Those there are, by number, with the CPUs they are pinned to."""
    iothreads = domain.at("iothreads")
    count = whole(iothreads.text() or "0", 0, _MOST_IOTHREADS)
    if count is None:
        iothreads.lost(f"is no number up to {_MOST_IOTHREADS}")
    numbers = [whole(one.attribute("id"), 1, 99_999_999) for one in domain.at("iothreadids").all("iothread")]
    found: dict[int, str | None] = {number: None for number in numbers if number}
    free = (number for number in range(1, 2 * _MOST_IOTHREADS) if number not in found)
    while len(found) < (count or 0):
        found[next(free)] = None
    for pin in cputune.all("iothreadpin"):
        number = whole(pin.attribute("iothread"), 1, 99_999_999)
        cpus = _list(lists, pin, "cpuset") if number in found else None
        if cpus and number is not None:
            found[number] = cpulist.render(cpus)
        else:
            pin.lost(lists.why("is for no iothread that there is"))
    return found
