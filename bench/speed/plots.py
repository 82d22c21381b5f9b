# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was measured, as pictures beside bench/RESULTS.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Json = Mapping[str, Any]
# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
_COLOURS = {
    "kvmsup": "#0072B2",
    "libvirt": "#D55E00",
    "bare": "#999999",
    "quadlet": "#009E73",
    "fstab": "#CC79A7",
    "first": "#56B4E9",
}
_PARTS = ("#56B4E9", "#0072B2", "#CCCCCC", "#009E73", "#E69F00")
_NAMES = {"bare": "QEMU by itself", "first": "kvmsup, after an edit of all"}
_INCHES = (7.5, 3.6)


def draw(found: Json, directory: Path) -> list[str]:
    """Write one PNG a measurement below `directory`; their names."""
    matplotlib.use("Agg")
    names = []
    for name, make in _PICTURES.items():
        if name in found:
            figure = Figure(figsize=_INCHES, dpi=110, layout="constrained")
            make(found[name], figure)
            figure.savefig(directory / f"{name}.png", metadata={"Software": ""})
            names.append(f"{name}.png")
    return names


def _starts(found: Json, figure: Figure) -> None:
    """A bar for each shape and peer; kvmsup's is divided by what the time goes into."""
    axes = figure.subplots()
    rows = [(shape, who) for shape in found for who in ("bare", "kvmsup", "libvirt")]
    for place, (shape, who) in enumerate(rows):
        runs = found[shape][who]
        total = median(one["start"] for one in runs)
        if who != "kvmsup":
            axes.barh(place, total, color=_COLOURS[who])
        else:
            _divided(axes, place, runs, total)
        axes.text(total, place, f" {total:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{shape}, {_NAMES.get(who, who)}" for shape, who in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds until the guest runs and is pinned (medians)")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=7, loc="outside lower center", ncols=3)
    _plain(axes)


def _divided(axes: Axes, place: int, runs: list[Json], total: float) -> None:
    left = 0.0
    parts = [part for part in runs[0] if part not in ("start", "cpu", "end") and "alone" not in part]
    for part, colour in zip(parts, _PARTS, strict=False):
        width = median(one[part] for one in runs)
        axes.barh(place, width, left=left, color=colour, label=part)
        left += width
    axes.barh(place, max(0.0, total - left), left=left, color="#F0E442", label="systemctl and systemd's jobs")


def _crowd(found: Json, figure: Figure) -> None:
    """Starts by number, and what is resident."""
    times, memory = figure.subplots(1, 2)
    counts = sorted(map(int, found["starts"]))
    for how, line in (("one by one", "--"), ("at once", "-")):
        for who in ("kvmsup", "libvirt", "bare"):
            totals = [median(one[how]["total"] for one in found["starts"][str(count)][who]) / 1000 for count in counts]
            label = f"{_NAMES.get(who, who)}, {how}"
            times.plot(counts, totals, line, marker="o", markersize=3, color=_COLOURS[who], label=label)
    times.set(xscale="log", yscale="log", xlabel="guests", ylabel="seconds until all run")
    times.set_xticks(counts, [str(count) for count in counts])
    times.minorticks_off()
    times.legend(fontsize=6.5)
    for number, who in enumerate(("kvmsup", "libvirt")):
        pss = [sum(one["pss"] for one in found["resident"][str(count)][who]["memory"]) / 1024 for count in counts]
        places = [place + 0.38 * number for place in range(len(counts))]
        bars = memory.bar(places, pss, 0.36, color=_COLOURS[who], label=who)
        memory.bar_label(bars, fmt="%.0f", fontsize=8)
    memory.set_xticks([place + 0.19 for place in range(len(counts))], [str(count) for count in counts])
    memory.set(xlabel="guests", ylabel="resident daemons, MiB (PSS)")
    memory.legend(fontsize=7)
    for axes in (times, memory):
        _plain(axes)


def _generators(found: Json, figure: Figure) -> None:
    axes = figure.subplots()
    counts = sorted(map(int, found["runs"]))
    for who in ("kvmsup", "first", "quadlet", "fstab"):
        walls = [median(one["wall"] for one in found["runs"][str(count)][who]) for count in counts]
        axes.plot(counts, walls, marker="o", markersize=3, color=_COLOURS[who], label=_NAMES.get(who, who))
    axes.set(xscale="log", yscale="log", xlabel="files", ylabel="milliseconds (medians)")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    _plain(axes)


def _wide(found: Json, figure: Figure) -> None:
    axes = figure.subplots()
    widths = sorted(int(width) for width in found if width.isdigit() and "attach" in found[width])
    for name, points in _lines(found, widths):
        axes.plot(widths, points, marker="o", markersize=3, label=name, color=_COLOURS[name.partition(":")[0]])
    axes.set(xlabel="vCPUs", ylabel="milliseconds from a QEMU that answers")
    axes.legend(fontsize=8)
    _plain(axes)


def _lines(found: Json, widths: list[int]) -> Iterator[tuple[str, list[float]]]:
    for who, name in (("kvmsup", "kvmsup: attach"), ("bare", "bare: pinning by a process that is there")):
        yield name, [median(run["active"] for run in found[str(width)]["attach"][who]) for width in widths]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


_PICTURES = {"starts": _starts, "crowd": _crowd, "generators": _generators, "wide": _wide}
