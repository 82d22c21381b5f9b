# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kvmsup list shows: the host in one line, and a line for each guest."""

from __future__ import annotations

from collections.abc import Iterator

from kvmsup import cpulist, sizes
from kvmsup.cli import show
from kvmsup.effects import configs, ksm, outdated, overview, pressure, sysfs, usage
from kvmsup.effects.systemctl import Question
from kvmsup.model.claim import Claim
from kvmsup.plan import agreed, overcommit
from kvmsup.plan.agreed import Outline
from kvmsup.plan.overcommit import Books
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from kvmsup.plan.changes import Change

_NOTE = "NOTE"
_HEADS = ("GUEST", "STATE", "VCPUS", "CPUS", "PLACEMENT", "MEMORY", "PAGES", "NODE", "KSM", _NOTE)


def in_full(question: Question | None = None) -> show.Look:
    """The host and its guests now, with all that programs are told. Raises KvmsupError.

    `question` is systemctl.ask_for_guests, where systemd has been asked already.
    """
    return _look(question, ksm.thread(""))


def at_once(question: Question | None = None) -> show.Look:
    """As `in_full`, without what takes long to find out and people are not shown. Raises KvmsupError."""
    return _look(question, None)


def _look(question: Question | None, ksmd: int | None) -> show.Look:
    seen, shared = overview.guests("", question), configs.read_host("")
    rows = [row(one, *outdated.outline("", one.name, shared, one.claim if one.pid else None)) for one in seen]
    about, memory = host(seen, ksmd), overcommitted(seen, rows)
    lines = [*show.folded(_glance(about)), *show.folded(overcommit.glance(memory))]
    if rows:
        lines += show.table(*_without_empty_notes([_cells(one) for one in rows]))
    else:
        lines.append("no guests: describe one in /etc/kvmsup/NAME.toml, see kvmsup.guest(5)")
    return show.Look({"host": about | {"memory": memory._asdict()}, "guests": rows}, lines)


def host(seen: list[overview.Brief], ksmd: int | None) -> dict[str, Any]:
    """The host's figures. Raises KvmsupError."""
    merging = ksm.read("", ksmd)
    owned = frozenset[int]().union(*(one.claim.own_cpus for one in seen if one.claim))
    return {
        "cpus": cpulist.render(sysfs.online("")),
        "nodes": cpulist.render(sysfs.nodes("")),
        "dedicated": cpulist.render(owned),
        "running": sum(one.active == "active" for one in seen),
        "guests": len(seen),
        "ksm": ksm.running(""),
        "ksm_saved": merging.saved,
        "ksmd_seconds": merging.cpu_seconds,
    }


def overcommitted(seen: list[overview.Brief], rows: list[dict[str, Any]]) -> Books:
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
    saved = f", {show.amount(host['ksm_saved'])} saved" if host["ksm_saved"] else ""
    parts = [
        f"{host['running']} of {host['guests']} guests running",
        f"CPU {host['cpus']}{f', {owned} dedicated' if owned else ''}",
        f"node {host['nodes']}",
        f"KSM {'on' if host['ksm'] else 'off'}{saved}",
    ]
    return " · ".join(parts)


def row(seen: overview.Brief, outline: Outline | None, changed: list[Change] | None) -> dict[str, Any]:
    """One guest for programs; what only a running guest has is null while it is down."""
    claim = seen.claim
    return {
        "name": seen.name,
        "active": seen.active,
        "sub": seen.sub,
        "result": seen.result,
        "pid": seen.pid or None,
        "enabled": seen.enabled,
        "description": seen.description or (outline.description if outline else agreed.described(seen.name, "")),
        "sound": outline is not None,
        "vcpus": claim.vcpus if claim else outline.vcpus if outline else None,
        "cpus": cpulist.render(frozenset().union(*claim.vcpu)) if claim else None,
        "placement": _kind(claim, outline),
        "memory": (claim.size if claim else 0) or (outline.memory if outline else None),
        "page_size": claim.page_size if claim else outline.page_size if outline else None,
        "nodes": cpulist.render(claim.nodes) if claim else None,
        "ksm": claim.ksm if claim else outline.ksm if outline else None,
        "changed": None if changed is None or not seen.pid else [one._asdict() for one in changed],
        "qemu": outdated.qemu("", seen.pid)._asdict() if seen.pid else None,
    }


def _kind(claim: Claim | None, outline: Outline | None) -> str | None:
    if claim is None and outline is None:
        return None
    dedicated = claim.dedicated if claim else outline is not None and outline.dedicated
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
        from kvmsup.plan.changes import LIVE

        reload = any(change["how"] == LIVE for change in one["changed"])
        yield "edited: reload" if reload else "edited: restart"
    if one["qemu"] and one["qemu"]["differs"]:
        yield show.other_qemu(one["qemu"])


def _without_empty_notes(rows: list[list[str]]) -> tuple[tuple[str, ...], list[list[str]]]:
    if any(row[-1] for row in rows):
        return _HEADS, rows
    return _HEADS[:-1], [row[:-1] for row in rows]
