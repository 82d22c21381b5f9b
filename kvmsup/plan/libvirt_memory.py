# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a libvirt domain → [memory], [memory.balloon] and [numa.N]; pure."""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup import cpulist, sizes
from kvmsup.errors import KvmsupError
from kvmsup.model import cells, config
from kvmsup.plan import libvirt_values
from kvmsup.plan.guestfile import Section
from kvmsup.plan.libvirt_cpu import Processor
from kvmsup.plan.libvirt_values import Lists, amount, rounded, whole
from kvmsup.plan.libvirt_xml import Node
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_M = sizes.UNITS["M"]
_MOST_HOST_NODE = 1023


def read(domain: Node, processor: Processor, lists: Lists, guest: str) -> Iterator[Section]:
    """The tables. Raises KvmsupError where nobody can tell how much memory there is."""
    memory = domain.at("memory")
    size = amount(memory)
    numa = domain.at("cpu").at("numa").all("cell")
    if not memory.there and not numa:
        raise KvmsupError("the domain does not say how much memory it has", "<memory unit='GiB'>4</memory>")
    page = _page(domain.at("memoryBacking"))
    unit = sizes.parse(page) if page else _M
    nodes = _cells(domain, numa, processor, lists, unit)
    if nodes:
        size = sum(node["memory"] for node in nodes)
    if not size:
        raise KvmsupError("memory: is no amount of memory that a guest can have", "<memory unit='GiB'>4</memory>")
    whole_size = rounded(size, unit)
    if whole_size != size:
        memory.changed(f"is made {sizes.render(whole_size)}, a multiple of {sizes.render(unit)}")
    values: dict[str, Any] = {"size": sizes.render(whole_size)}
    values |= {"hugepages": page} if page else {}
    backing = domain.at("memoryBacking")
    values |= {"lock": True} if backing.at("locked").there else {}
    values |= {"ksm": False} if backing.at("nosharepages").there else {}
    yield Section("memory", "", values)
    yield from _balloon(domain, whole_size, guest, plain=not page and "lock" not in values)
    for number, node in enumerate(nodes):
        yield Section(f"numa.{number}", "", node | {"memory": sizes.render(node["memory"])})


def _page(backing: Node) -> str:
    """The size of hugepages, "" for none: one for all of the memory."""
    pages = backing.at("hugepages")
    found = pages.all("page")
    if pages.there and not found:
        pages.changed("the host's default size of hugepages is taken to be 2M")
        return "2M"
    kinds = {libvirt_values.amount_attribute(page, "size") for page in found}
    names = [sizes.render(kind) for kind in kinds if kind]
    for page in found:
        page.attribute("nodeset")
    if len(kinds) == 1 and names and names[0] in ("2M", "1G"):
        return names[0]
    for page in found:
        page.lost("all of a guest's memory is of hugepages of 2M, or of 1G, or of ordinary pages: memory.hugepages")
    return ""


def _balloon(domain: Node, size: int, guest: str, *, plain: bool) -> Iterator[Section]:
    current = domain.at("currentMemory")
    least = amount(current) if current.there else size
    if not least:
        current.lost("is no amount of memory")
    balloon = domain.at("devices").at("memballoon")
    if balloon.attribute("model") == "none":
        balloon.passed()
        return
    if not least or least >= size:
        if balloon.there:
            balloon.lost('how small it may be made is for you to say: [memory.balloon] min = "…"')
        return
    least = rounded(max(least, config.LEAST_MEMORY), _M)
    if not plain or least > size:
        current.lost("a balloon gives nothing back from hugepages and locked memory, and no guest runs in under 64M")
        return
    balloon.passed()
    told = f"libvirt made it as small at the start; here `kvmsup balloon {guest} {sizes.render(least)}` does."
    yield Section("memory.balloon", told, {"min": sizes.render(least)})


def _cells(domain: Node, numa: list[Node], processor: Processor, lists: Lists, unit: int) -> list[dict[str, Any]]:
    """The guest's nodes in their order; none where they do not share out all vCPUs and all memory."""
    bound = {node.attribute("cellid"): node for node in domain.at("numatune").all("memnode")}
    found: dict[int, dict[str, Any]] = {}
    taken: dict[int, frozenset[int]] = {}
    for place, cell in enumerate(numa if len(numa) <= cells.MOST_NODES else ()):
        number = whole(cell.attribute("id") or str(place), 0, cells.MOST_NODES - 1)
        vcpus = lists.cpus(cell.attribute("cpus"))
        size = libvirt_values.amount_attribute(cell, "memory")
        if number is None or not size or not vcpus:
            continue
        taken[number] = vcpus
        found[number] = {"vcpus": cpulist.render(vcpus), "memory": rounded(size, unit)}
        if (host := _host_node(bound.get(str(number)), lists)) is not None:
            found[number]["host-node"] = host
        found[number] |= _distances(cell, number, len(numa))
    parted = any(
        len({index // processor.threads for index in taken_by}) * processor.threads != len(taken_by)
        for taken_by in taken.values()
    )
    numbered = sorted(found) == list(range(len(numa)))
    shared_out = sorted(index for vcpus in taken.values() for index in vcpus) == list(range(processor.maxcpus))
    if not numbered or not shared_out or parted:
        why = lists.why("guest nodes share out all vCPUs, whole cores, and each has some and memory: [numa.N]")
        for node in (*numa, *bound.values()):
            node.lost(why)
        return []
    for key, node in bound.items():
        if whole(key, 0, len(numa) - 1) is None:
            node.lost("is for no guest node that there is")
    return [found[number] for number in sorted(found)]


def _host_node(node: Node | None, lists: Lists) -> int | None:
    if node is None:
        return None
    mode = node.attribute("mode") or "strict"
    hosts = lists.cpus(node.attribute("nodeset")) or frozenset()
    if len(hosts) == 1 and mode in ("strict", "restrictive") and min(hosts) <= _MOST_HOST_NODE:
        return min(hosts)
    node.lost("a guest node is bound to one node of the host: numa.N.host-node")
    return None


def _distances(cell: Node, number: int, nodes: int) -> dict[str, list[int]]:
    """As libvirt completes them: 10 to itself, 20 where nothing is said."""
    siblings = cell.at("distances").all("sibling")
    told = {one.attribute("id"): whole(one.attribute("value"), 10, 254) for one in siblings}
    if not told:
        return {}
    row = [10 if other == number else told.get(str(other)) or 20 for other in range(nodes)]
    if any(distance == 10 for other, distance in enumerate(row) if other != number):
        cell.at("distances").lost("another node is not as near as a node to itself")
        return {}
    return {"distances": row}
