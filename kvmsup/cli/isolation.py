# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `kvmsup status` tells of a guest's isolated CPUs: whether they are, what ran there, and how quiet they are."""

from __future__ import annotations

from collections.abc import Sequence

from kvmsup import cpulist
from kvmsup.cli import show
from kvmsup.effects import intrusions, kernel, masks, observe, partition
from kvmsup.model.claim import Claim
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# Of each kind on each CPU; the rest is summed up.
_NAMED = 5


def describe(root: str, claim: Claim, threads: Sequence[observe.Thread], seconds: float) -> dict[str, Any]:
    """All of it for programs; noise only where that is to be listened to, for so many seconds. Raises KvmsupError."""
    found = intrusions.since_start(root, claim)
    return {
        "cpus": cpulist.render(claim.isolated),
        "partition": kernel.has_partitions(),
        "amiss": partition.amiss(root, claim),
        "stuck": [one._asdict() for one in masks.stuck(root, claim.isolated)],
        "ran": None if found is None else [one._asdict() for one in found],
        "noise": _noise(root, claim, threads, seconds) if seconds else None,
    }


def _noise(root: str, claim: Claim, threads: Sequence[observe.Thread], seconds: float) -> list[dict[str, Any]]:
    from kvmsup.effects import noise  # only where it is asked for

    vcpus = {cpu: one.tid for one in threads if one.role.startswith("vCPU") for cpu in one.actual}
    return [one._asdict() for one in noise.listen(root, claim, vcpus, seconds)]


def lines(report: dict[str, Any]) -> list[str]:
    """It for people."""
    how = "nothing else is scheduled there, and no load balanced" if report["partition"] else "all services keep off"
    wrong = f"{show.paint('drift')}: {report['amiss']}" if report["amiss"] else how
    found = [f"  isolation  CPU {report['cpus']}: {wrong}"]
    if report["stuck"]:
        stuck = ", ".join(f"{one['name']} ({one['irq']})" for one in report["stuck"])
        found.append(f"             interrupts that cannot be moved: {stuck}")
    found += _ran(report["ran"]) if report["ran"] else []
    return found + (_heard(report["noise"]) if report["noise"] else [])


def _ran(ran: list[dict[str, Any]]) -> list[str]:
    by: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for one in ran:
        by.setdefault((one["cpu"], one["kind"]), []).append(one)
    rows = []
    for (cpu, kind), some in by.items():
        rows += [[str(cpu), kind, one["name"], str(one["times"])] for one in some[:_NAMED]]
        if rest := some[_NAMED:]:
            rows.append([str(cpu), kind, f"({len(rest)} others)", str(sum(one["times"] for one in rest))])
    heads = ("CPU", "WHAT OF THE KERNEL RAN THERE", "SINCE THE GUEST STARTED", "TIMES")
    return ["", *(f"  {line}" for line in show.table(heads, rows))]


def _heard(noise: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            str(one["cpu"]),
            f"{one['seconds']:g} s",
            str(one["gaps"]),
            f"{one['longest'] / 1000:.1f} µs",
            f"{one['lost'] / one['seconds'] / 1e7:.4f} %",
            f"{one['guest'] / one['seconds'] / 1e7:.4f} %",
        ]
        for one in noise
    ]
    least = f"GAPS OVER {noise[0]['least'] // 1000} µs"
    heads = ("CPU", "LISTENED FOR", least, "LONGEST", "OF THE TIME", "OF WHICH THE GUEST ITSELF")
    return ["", *(f"  {line}" for line in show.table(heads, rows))]
