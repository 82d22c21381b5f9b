# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup verify: what guests were given, read back from the kernel and from QEMU; every difference is told."""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup import cpulist, sizes
from kvmsup.cli import show
from kvmsup.effects import configs, fence, glance, interfaces, kernel, observe
from kvmsup.errors import KvmsupError
from kvmsup.model.claim import Claim
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from typing import Any

_HEADS = ("GUEST", "WHAT", "WANTED", "ACTUAL")

_RELOAD = "systemctl reload kvmsup puts threads and cpusets back"
# Automatic NUMA balancing passes bound memory by (kernel/sched/fair.c, task_numa_work, vma_policy_mof).
_MEMORY = (
    "a restart of the guest puts its memory back, and so may migratepages(8); that, or AllowedMemoryNodes= of its unit"
    " or slice, may have moved it"
)
_NET = "ip link set LINK master BRIDGE puts an interface back, or a restart of the guest"
_MASKS = "somebody has moved it since, mostly irqbalance(1): IRQBALANCE_BANNED_CPULIST= keeps that off these CPUs"
_RESTART = "a restart of the guest gives it what its file says"


class Difference(NamedTuple):
    """One thing that is not as the guest's claim has it."""

    guest: str
    what: str
    wanted: str
    actual: str
    hint: str  # what would put it right, "" where nothing is known to


def run(asked: argparse.Namespace) -> int:
    """Print the differences; 1 when there are any."""
    seen = _running(asked.guests)
    found = [difference for one in seen for difference in _told(one)] + list(_fence("", seen))
    if asked.json:
        told: dict[str, Any] = {"ok": not found, "guests": [one.name for one in seen]}
        show.as_json(told | {"differences": [one._asdict() for one in found]})
    elif found:
        for line in show.table(_HEADS, [one[: len(_HEADS)] for one in found]):
            print(line)
        for hint in dict.fromkeys(one.hint for one in found if one.hint):
            print(f"hint: {hint}")
    else:
        print(f"{len(seen)} running guest{' is' if len(seen) == 1 else 's are'} as claimed")
    return 1 if found else 0


def _running(names: list[str]) -> list[glance.Seen]:
    """The guests of `names`, which must run, or all that do. Raises KvmsupError."""
    seen = glance.guests("", names or None)
    for one in seen if names else ():
        if not one.claim or not one.pid:
            near = configs.nearest("", one.name) if not one.configured else ""
            raise KvmsupError(f"guest {one.name} does not run", f"did you mean {near}?" if near else "")
    # One that is only starting has not been given everything yet.
    return [one for one in seen if one.claim and one.pid and one.active == "active"]


def _told(seen: glance.Seen) -> list[Difference]:
    """The differences of one guest; that it cannot be asked is one."""
    try:
        return list(differences("", seen))
    except KvmsupError as error:
        return [Difference(seen.name, "QEMU", "an answer", error.what, error.hint)]


def differences(root: str, seen: glance.Seen) -> Iterator[Difference]:
    """What of one guest is not as claimed: threads, memory, the CPU that it sees. Raises KvmsupError."""
    claim = seen.claim
    assert claim
    for one in observe.threads(root, seen):
        what = f"{one.role}, thread {one.tid} ({one.name})"
        if one.actual != one.wanted:
            wanted, actual = (f"CPU {cpulist.render(cpus)}" for cpus in (one.wanted, one.actual))
            yield Difference(seen.name, what, wanted, actual, _RELOAD)
        if one.wanted_scheduler not in ("", one.scheduler):
            yield Difference(seen.name, what, one.wanted_scheduler, one.scheduler, _RELOAD)
    yield from _memory(root, seen, claim)
    given = observe.cpu(root, seen)
    if given and given.missing:
        yield Difference(seen.name, f"CPU model {given.model}", " ".join(given.missing), "missing", _RESTART)
    for net in interfaces.of_guest(root, claim, seen.pid):
        if net.wrong:
            yield Difference(seen.name, f"net.{net.name}", f"{net.link}, {net.kind} {net.over}", net.wrong, _NET)
    if claim.isolate:
        yield from _isolation(root, claim)
    if claim.core_scheduling and not kernel.core_cookie(seen.pid):
        yield Difference(seen.name, "core scheduling", "a cookie", "none", _RESTART)


def _isolation(root: str, claim: Claim) -> Iterator[Difference]:
    from kvmsup.effects import masks, partition  # few guests are isolated

    cpus = f"CPU {cpulist.render(claim.isolated)}"
    if wrong := partition.amiss(root, claim):
        yield Difference(claim.guest, cpus, "isolated", wrong, _RELOAD)
    for told in masks.astray(root, claim.isolated):
        yield Difference(claim.guest, told, f"not on {cpus}", "may come there", _MASKS)


def _memory(root: str, seen: glance.Seen, claim: Claim) -> Iterator[Difference]:
    for node, count in observe.memory(root, seen).items():
        if count != claim.pages[node]:
            size = sizes.render(claim.page_size)
            what = f"hugepages of {size} on node {node}"
            yield Difference(seen.name, what, str(claim.pages[node]), str(count), _MEMORY)
    # What is not bound is nowhere astray, and looking for it walks all of its page tables.
    for part in observe.resident(root, seen) if claim.nodes and not claim.page_size else ():
        if part.astray:
            what = f"memory on node {part.node}, bound to node {cpulist.render(claim.nodes)}"
            yield Difference(seen.name, what, "none", f"{part.astray >> 10}K", _MEMORY)


def _fence(root: str, seen: list[glance.Seen]) -> Iterator[Difference]:
    """Shared guests must not be able to run on anybody's own CPUs."""
    owned = frozenset[int]().union(*(one.claim.own_cpus for one in seen if one.claim))
    shared = any(not one.claim.dedicated for one in seen if one.claim)
    allowed = fence.effective(root) if shared else None
    if allowed is not None and allowed & owned:
        wanted = f"none of CPU {cpulist.render(owned)}"
        yield Difference("", f"cpuset of {fence.SHARED}", wanted, f"CPU {cpulist.render(allowed)}", _RELOAD)
