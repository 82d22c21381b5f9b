# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup list: the host in one line, and a line for each guest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from kvmsup import cpulist, sizes
from kvmsup.cli import show
from kvmsup.effects import ksm, observe, outdated, pressure, sysfs, usage
from kvmsup.model.claim import Claim
from kvmsup.model.guest import Guest
from kvmsup.plan import overcommit
from kvmsup.plan.changes import LIVE
from kvmsup.plan.overcommit import Books

_NOTE = "NOTE"
_HEADS = ("GUEST", "STATE", "VCPUS", "CPUS", "PLACEMENT", "MEMORY", "PAGES", "NODE", "KSM", _NOTE)


def run(asked: argparse.Namespace) -> int:
    """Print the listing."""
    seen = observe.guests("")
    rows = [row(one, outdated.configured("", one.name)) for one in seen]
    if asked.json:
        memory = overcommitted(seen, rows)._asdict()
        print(json.dumps({"host": host(seen) | {"memory": memory}, "guests": rows}, indent=2))
        return 0
    print(_glance(host(seen)))
    print(overcommit.glance(overcommitted(seen, rows)))
    if not rows:
        print("no guests: describe one in /etc/kvmsup/NAME.toml, see kvmsup.guest(5)")
        return 0
    for line in show.table(*_without_empty_notes([_cells(one) for one in rows])):
        print(line)
    return 0


def host(seen: list[observe.Seen]) -> dict[str, Any]:
    """The host's figures. Raises KvmsupError."""
    topology = sysfs.topology("")
    merging = ksm.read("", ksm.thread(""))
    owned = frozenset[int]().union(*(one.claim.own_cpus for one in seen if one.claim))
    return {
        "cpus": cpulist.render(topology.online),
        "nodes": cpulist.render(topology.nodes),
        "dedicated": cpulist.render(owned),
        "running": sum(one.active == "active" for one in seen),
        "guests": len(seen),
        "ksm": ksm.running(""),
        "ksm_saved": merging.saved,
        "ksmd_seconds": merging.cpu_seconds,
    }


def overcommitted(seen: list[observe.Seen], rows: list[dict[str, Any]]) -> Books:
    """What the running guests were promised, against what the host has. Raises KvmsupError."""
    sizes_of = {row["name"]: row["memory"] or 0 for row in rows}
    promises = [
        usage.promise("", one.claim, one.pid, one.claim.size or sizes_of[one.name])
        for one in seen
        if one.claim and one.pid
    ]
    return overcommit.books(promises, ksm.read("", None), pressure.read(""))


def _glance(host: dict[str, Any]) -> str:
    owned = host["dedicated"]
    saved = f", {host['ksm_saved'] >> 20}M saved" if host["ksm_saved"] else ""
    parts = [
        f"{host['running']} of {host['guests']} guests running",
        f"CPU {host['cpus']}{f', {owned} dedicated' if owned else ''}",
        f"node {host['nodes']}",
        f"KSM {'on' if host['ksm'] else 'off'}{saved}",
    ]
    return " · ".join(parts)


def row(seen: observe.Seen, guest: Guest | None) -> dict[str, Any]:
    """One guest for programs; what only a running guest has is null while it is down."""
    claim = seen.claim
    return {
        "name": seen.name,
        "active": seen.active,
        "sub": seen.sub,
        "result": seen.result,
        "pid": seen.pid or None,
        "enabled": seen.enabled == "enabled",
        "description": seen.description,
        "sound": guest is not None,
        "vcpus": claim.vcpus if claim else guest.cpu.vcpus if guest else None,
        "cpus": cpulist.render(frozenset().union(*claim.vcpu)) if claim else None,
        "placement": _kind(claim, guest),
        "memory": (claim.size if claim else 0) or (guest.memory.size if guest else None),
        "page_size": claim.page_size if claim else guest.memory.page_size if guest else None,
        "nodes": cpulist.render(claim.nodes) if claim else None,
        "ksm": claim.ksm if claim else guest.memory.ksm if guest else None,
        "changed": _changed(guest) if guest and seen.pid else None,
        "qemu": outdated.qemu("", seen.pid)._asdict() if seen.pid else None,
    }


def _changed(guest: Guest) -> list[dict[str, Any]] | None:
    found = outdated.changed("", guest)
    return None if found is None else [one._asdict() for one in found]


def _kind(claim: Claim | None, guest: Guest | None) -> str | None:
    if claim is None and guest is None:
        return None
    dedicated = claim.dedicated if claim else guest is not None and guest.placement.dedicated
    return "dedicated" if dedicated else "shared"


def _cells(one: dict[str, Any]) -> list[str]:
    state = one["active"] if one["sound"] or one["active"] != "inactive" else "broken file"
    return [
        one["name"],
        state,
        str(one["vcpus"] or ""),
        one["cpus"] or "",
        one["placement"] or "",
        sizes.render(one["memory"]) if one["memory"] else "",
        sizes.render(one["page_size"]) if one["page_size"] else "4K" if one["memory"] else "",
        one["nodes"] or "",
        "yes" if one["ksm"] else "",
        ", ".join(_notes(one)),
    ]


def _notes(one: dict[str, Any]) -> Iterator[str]:
    if one["changed"]:
        reload = any(change["how"] == LIVE for change in one["changed"])
        yield "edited: reload" if reload else "edited: restart"
    if one["qemu"] and one["qemu"]["differs"]:
        yield show.other_qemu(one["qemu"])


def _without_empty_notes(rows: list[list[str]]) -> tuple[tuple[str, ...], list[list[str]]]:
    if any(row[-1] for row in rows):
        return _HEADS, rows
    return _HEADS[:-1], [row[:-1] for row in rows]
