# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which process has pages on which node: /proc/PID/numa_maps (numa(7)).

Reading it walks the page tables of the process, so it is read of guests, and of processes that are known to have what
is looked for; never of all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from kvmsup import cpulist
from kvmsup.effects import files, proc
from kvmsup.records import NamedTuple


class Mapping(NamedTuple):
    """One mapping; `bound` are the nodes that its memory may come from, empty where any may."""

    bound: frozenset[int]
    own: bool  # the memory of the process itself, no file's
    page_size: int
    pages: dict[int, int]  # by node


class Part(NamedTuple):
    """Bytes of memory on one node in pages of one size; `astray` of them are where they may not be."""

    node: int
    page_size: int  # that of the page tables; transparent hugepages are told as small pages (proc(5), numa_maps)
    size: int
    astray: int


class User(NamedTuple):
    """A process with hugepages on a node."""

    pid: int
    name: str
    pages: int


def mappings(root: str, pid: int) -> list[Mapping]:
    """The mappings of `pid` that have pages; none when it has ended."""
    return list(_parse(_lines(root, pid)))


def _lines(root: str, pid: int) -> list[str]:
    try:
        return files.read(f"{root}/proc/{pid}/numa_maps").splitlines()
    except OSError:
        return []


def _parse(lines: list[str]) -> Iterator[Mapping]:
    """`7f… bind:0 file=… huge dirty=256 N0=256 kernelpagesize_kB=2048`; a line that is something else is left out."""
    for line in lines:
        _, policy, *words = *line.split(), "", ""
        pairs = dict(word.split("=", 1) for word in words if "=" in word)
        counts = {key[1:]: value for key, value in pairs.items() if key[:1] == "N" and key[1:].isdecimal()}
        try:
            pages = {int(node): int(count) for node, count in counts.items()}
            page_size = int(pairs.get("kernelpagesize_kB", "0")) << 10
            mode, _, nodes = policy.partition(":")
            bound = cpulist.parse(nodes) if mode.partition("=")[0] == "bind" else frozenset[int]()
        except ValueError:
            continue
        if pages and page_size:
            # A memfd is nobody's file: QEMU's hugepages are in one.
            yield Mapping(bound, pairs.get("file", "/memfd:").startswith("/memfd:"), page_size, pages)


def maps_hugepages(root: str, pid: int) -> bool:
    """Whether `pid` has a mapping of hugepages, touched or not."""
    return any("huge" in line.split() for line in _lines(root, pid))


def users(root: str, node: int, page_size: int) -> list[User]:
    """The processes that have pages of `page_size` (bytes) on `node`, the largest first."""
    found = [User(pid, name, pages(root, pid, node, page_size)) for pid, name in _with_hugepages(root)]
    return sorted((user for user in found if user.pages), key=lambda user: (-user.pages, user.pid))


def pages(root: str, pid: int, node: int, page_size: int) -> int:
    """How many pages of `page_size` (bytes) `pid` has on `node`; 0 when it has ended."""
    return of_size(root, pid, page_size).get(node, 0)


def of_size(root: str, pid: int, page_size: int) -> dict[int, int]:
    """How many pages of `page_size` (bytes) `pid` has, by node; none when it has ended."""
    found: Counter[int] = Counter()
    for one in mappings(root, pid):
        if one.page_size == page_size:
            found.update(one.pages)
    return dict(sorted(found.items()))


def _with_hugepages(root: str) -> Iterator[tuple[int, str]]:
    """Processes with hugepages of any size, and their names: status tells cheaply (proc(5), HugetlbPages)."""
    try:
        pids = [int(name) for name in os.listdir(f"{root}/proc") if name.isdecimal()]
    except OSError:
        return
    for pid in pids:
        if proc.of_process(root, pid).get("HugetlbPages") and (stat := proc.stat(f"{root}/proc/{pid}")):
            yield pid, stat.name


def bound(root: str, pid: int) -> list[Part]:
    """Where the bound memory of `pid`, a guest's, is, by node and page size; nothing when it has ended."""
    return _parts(one for one in mappings(root, pid) if one.bound)


def own(root: str, pid: int) -> list[Part]:
    """Where all memory of `pid` is that is no file's, by node and page size; nothing when it has ended."""
    return _parts(one for one in mappings(root, pid) if one.own)


def _parts(found: Iterable[Mapping]) -> list[Part]:
    there: Counter[tuple[int, int]] = Counter()
    astray: Counter[tuple[int, int]] = Counter()
    for one in found:
        for node, count in one.pages.items():
            there[node, one.page_size] += count * one.page_size
            if one.bound and node not in one.bound:
                astray[node, one.page_size] += count * one.page_size
    return [Part(*place, size, astray[place]) for place, size in sorted(there.items())]
