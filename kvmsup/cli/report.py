# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything about one guest that is not down, for `kvmsup status` and for programs."""

from __future__ import annotations

from collections.abc import Callable

from kvmsup import cpulist
from kvmsup.cli import show
from kvmsup.effects import glance, hugepages, inside, interfaces, ksm, observe, outdated
from kvmsup.effects.numa_maps import Part
from kvmsup.errors import HostError
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


class Sources(NamedTuple):
    """Where what costs the guest something is from."""

    resident: Callable[[str, glance.Seen], list[Part]]
    balloon: Callable[[str, glance.Seen], dict[str, Any] | None]
    agent: Callable[[str, glance.Seen], dict[str, Any] | None]


ASKED = Sources(observe.resident, observe.balloon, inside.answered)
# Again and again: nothing that wakes an idle guest, and no walk through the page tables of a large one.
WATCHED = Sources(lambda _root, _seen: [], observe.balloon_unasked, inside.unasked)


def describe(seen: glance.Seen, sources: Sources, noise: float = 0.0) -> dict[str, Any]:
    """What status.at_rest leaves open of the guest, listening to its isolated CPUs for `noise` seconds.

    Raises KvmsupError.
    """
    claim = seen.claim
    threads = observe.threads("", seen)
    cpu = observe.cpu("", seen)
    resident = sources.resident("", seen)
    wired = interfaces.of_guest("", claim, seen.pid) if claim and seen.pid else []
    isolated = _isolation(seen, threads, noise)
    return {
        "state": observe.state("", seen),
        "vnc": observe.vnc("", seen),
        "placement": show.placement(claim) if claim else None,
        "cpu": cpu._asdict() if cpu else None,
        "memory": _memory(seen),
        "resident": [one._asdict() for one in resident],
        "balloon": sources.balloon("", seen),
        "ksm": _ksm(seen),
        "ready": inside.said("", seen),
        "agent": sources.agent("", seen),
        "changed": _changed(seen),
        "qemu": outdated.qemu("", seen.pid)._asdict() if seen.pid else None,
        "isolation": isolated,
        "nets": [_net(one) for one in wired],
        "threads": [_thread(one) for one in threads],
        "foreign": [one._asdict() for one in observe.intruders("", seen)],
        "drift": any(one.drifted for one in threads)
        or bool(cpu and cpu.missing)
        or any(one.astray for one in resident)
        or any(one.wrong for one in wired)
        or bool(isolated and isolated["amiss"]),
    }


def _isolation(seen: glance.Seen, threads: list[observe.Thread], noise: float) -> dict[str, Any] | None:
    """What is true of the CPUs of a guest that is isolated; None of others. Raises KvmsupError."""
    claim = seen.claim
    if not claim or not claim.isolate or not seen.pid:
        if noise:
            raise HostError(f"guest {seen.name} is not isolated", "isolate = true in its [placement], and a restart")
        return None
    from kvmsup.cli import isolation  # few guests are isolated

    return isolation.describe("", claim, threads, noise)


def _changed(seen: glance.Seen) -> list[dict[str, Any]] | None:
    """What its file says otherwise than what it runs with; None while it is down, and where that is not known."""
    guest = outdated.configured("", seen.name) if seen.pid else None
    found = outdated.changed("", guest) if guest else None
    return None if found is None else [one._asdict() for one in found]


def _thread(one: observe.Thread) -> dict[str, Any]:
    return {
        "tid": one.tid,
        "name": one.name,
        "role": one.role,
        "wanted": cpulist.render(one.wanted),
        "actual": cpulist.render(one.actual),
        "scheduler": one.scheduler,
        "last": one.last,
        "drift": one.drifted,
    }


def _net(one: interfaces.Seen) -> dict[str, Any]:
    return one._asdict() | {"traffic": one.traffic._asdict() if one.traffic else None}


def _memory(seen: glance.Seen) -> list[dict[str, Any]]:
    """One entry for each node that hugepages were claimed on."""
    claim = seen.claim
    if not claim or not claim.page_size:
        return []
    entries = []
    for node, faulted in observe.memory("", seen).items():
        pool = hugepages.pool("", node, claim.page_size)
        entry = {"node": node, "page_size": claim.page_size, "claimed": claim.pages[node], "held": faulted}
        entries.append(entry | {"added": claim.grown.get(node, 0), "pool": pool.total, "free": pool.free})
    return entries


def _ksm(seen: glance.Seen) -> dict[str, Any] | None:
    """What KSM does for a guest that consents; None for others, and where the kernel does not tell."""
    if not seen.pid or not seen.claim or not seen.claim.ksm:
        return None
    merged = ksm.of_process("", seen.pid)
    return {**merged._asdict(), "running": ksm.running("")} if merged else None
