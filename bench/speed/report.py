# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was measured, as the tables of bench/RESULTS.md; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from bench.speed import targets

Json = Mapping[str, Any]
_PEERS = {"kvmsup": "kvmsup", "libvirt": "libvirt", "bare": "QEMU by itself"}


def render(found: Json) -> str:
    """All sections; `found` is by measurement, with `where`, a sentence on the machine."""
    parts = [found["where"], promises(found)]
    for name, make in _SECTIONS.items():
        if name in found:
            parts.append(make(found[name]))
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; the first column is of words, the others of numbers."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def spread(values: Iterable[float], digits: int = 0) -> str:
    """The median, and from the least to the most."""
    found = sorted(values)
    return f"{median(found):.{digits}f} ({found[0]:.{digits}f}–{found[-1]:.{digits}f})"


def promises(found: Json) -> str:
    rows = []
    for one in targets.all_of(found):
        unit = f" {one.unit}" if one.unit not in ("", "%") else one.unit
        digits = 2 if one.unit == "×" else 1 if one.unit else 0
        told = f"{one.found:.{digits}f}{unit}"
        most = f"{one.most:g}{unit}"
        rows.append((one.what, one.beside, told, most, "yes" if one.met else "**no**"))
    return "### What was promised\n\n" + table(("what", "beside", "found", "at most", "met"), rows)


def _starts(found: Json) -> str:
    rows = []
    for shape, runs in found.items():
        for who, name in _PEERS.items():
            ratios = [f"{targets.ratio(runs, 'start', who, other):.2f}" for other in ("libvirt", "bare")]
            start, end = (spread(one[what] for one in runs[who]) for what in ("start", "end"))
            cpu = spread(one["cpu"] for one in runs[who])
            rows.append((f"{shape}, {name}", start, *ratios, cpu, end))
    head = ("guest", "start, ms", "to libvirt", "to QEMU", "CPU, ms", "end at once, ms")
    parts = [part for part in found["plain"]["kvmsup"][0] if part not in ("start", "cpu", "end")]
    where = [(part, *(spread(one[part] for one in found[shape]["kvmsup"]) for shape in found)) for part in parts]
    return "\n\n".join(("### One start", table(head, rows), _WHERE, table(("part", *found), where)))


_WHERE = "Where kvmsup's milliseconds go, by what systemd writes down; *attach alone* is beside QEMU's own."


def _units(found: Json) -> str:
    rows = [(_UNITS[kind], spread(runs)) for kind, runs in found.items()]
    return "\n\n".join(("### What systemd by itself takes for a start", _EMPTY, table(("units", "start, ms"), rows)))


_UNITS = {"sandboxed": "in their sandboxes", "open": "without"}
_EMPTY = """kvmsup's two units, with /bin/true for setup and for attach, and sleep(1) for QEMU: no line of kvmsup's
runs. systemd is done with attach's process, some 20 ms, before QEMU answers; all else of this is in a start."""


def _crowd(found: Json) -> str:
    return "\n\n".join(
        (
            "### Many guests",
            table(("guests, how, who", "total, ms", "a guest, ms", "CPU a guest, ms", "to libvirt"), _many(found)),
            "### Memory, wake-ups and CPU time of what stays",
            table(("guests", "who", "PSS, MiB", "wake-ups a minute", "CPU seconds an hour"), _resident(found)),
            _ksm(found["ksm"]),
        )
    )


def _many(found: Json) -> Iterator[Sequence[object]]:
    for count, runs in found["starts"].items():
        for how in ("one by one", "at once"):
            for who, name in _PEERS.items():
                flat = {peer: [one[how] for one in lists] for peer, lists in runs.items()}
                total = [one["total"] for one in flat[who]]
                cpu = median(one["cpu"] for one in flat[who]) / int(count)
                against = f"{targets.ratio(flat, 'total', who, 'libvirt'):.2f}"
                each = f"{median(total) / int(count):.0f}"
                yield f"{count} {how}, {name}", spread(total), each, f"{cpu:.0f}", against


def _resident(found: Json) -> Iterator[Sequence[object]]:
    for count, both in found["resident"].items():
        for who, one in both.items():
            seconds = one["idle"][0]["seconds"]
            waits = sum(daemon["waits"] for daemon in one["idle"]) * 60 / seconds
            cpu = sum(daemon["cpu an hour"] for daemon in one["idle"])
            names = ", ".join(sorted({daemon["name"].rpartition("/")[2] for daemon in one["memory"]}))
            pss = sum(daemon["pss"] for daemon in one["memory"]) / 1024
            yield count, f"{who} ({names})", f"{pss:.1f}", f"{waits:.0f}", f"{cpu:.2f}"


def _ksm(found: Json) -> str:
    cpu = sum(one["cpu an hour"] for one in found["idle"])
    waits = sum(one["waits"] for one in found["idle"]) * 60 / found["idle"][0]["seconds"]
    return (
        f"The same with KSM on, for the most guests ({found['phase']}): {waits:.0f} wake-ups a minute, {cpu:.2f} CPU"
        f" seconds an hour of the supervisor's; ksmd looked at {found['scanned']} pages in the time."
    )


def _views(found: Json) -> str:
    rows = []
    for count, views in found.items():
        for view, runs in views.items():
            walls = (spread(one["wall"] for one in runs[who]) for who in ("kvmsup", "libvirt"))
            ratios = (f"{targets.ratio(runs, what, 'kvmsup', 'libvirt'):.2f}" for what in ("wall", "cpu"))
            rows.append((view, count, *walls, *ratios))
    head = ("view", "guests", "kvmsup, ms", "virsh, ms", "wall, ratio", "CPU, ratio")
    return "\n\n".join(("### Looking at all of them", table(head, rows)))


def _stops(found: Json) -> str:
    rows = [
        (who, *(spread(one[what] for one in runs) for what in ("gone", "told")))
        for who, runs in found["stops"].items()
    ]
    return "\n\n".join(
        (f"### A clean stop of a Linux guest ({found['accel']})", table(("who", "QEMU gone, ms", "told, ms"), rows))
    )


def _generators(found: Json) -> str:
    rows = []
    for count, runs in found["runs"].items():
        medians = (spread((one["wall"] for one in runs[who]), 1) for who in ("kvmsup", "first", "quadlet", "fstab"))
        rows.append((count, *medians, f"{targets.ratio(runs, 'wall', 'kvmsup', 'quadlet'):.2f}"))
    growth = ", ".join(
        f"{who} {found['growth'][who]['wall']:.3f}" for who in found["growth"] if who not in ("from", "to")
    )
    reload = found["reload"]
    walls = {name: [one["wall"] for one in reload[name]] for name in ("loaded", "copied", "masked", "generator")}
    told = {
        "loaded": "as it is",
        "copied": "its output copied there by a shell instead",
        "masked": "without it, and so without what it makes",
        "generator": "the generator by itself",
    }
    lines = [(told[name], spread(values)) for name, values in walls.items()]
    return "\n\n".join(
        (
            "### The generator",
            table(
                ("files", "kvmsup, ms", "the first time, ms", "quadlet, ms", "fstab, ms", "kvmsup to quadlet"), rows
            ),
            f"Each further file, ms: {growth}.",
            f"A whole `systemctl daemon-reload` with {reload['guests']} guests, {reload['units']} units loaded:",
            table(("daemon-reload", "wall, ms"), lines),
        )
    )


def _wide(found: Json) -> str:
    rows = []
    for width, one in found.items():
        if not width.isdigit() or "attach" not in one:
            continue
        attach = median(run["active"] for run in one["attach"]["kvmsup"])
        hand = median(run["active"] for run in one["attach"]["bare"])
        starts = (spread(run["start"] for run in one["starts"][who]) for who in _PEERS)
        rows.append((width, f"{attach:.1f}", f"{attach / int(width):.3f}", f"{hand:.1f}", *starts))
    head = ("vCPUs", "attach, ms", "a vCPU", "by hand, ms", "start: kvmsup, ms", "libvirt, ms", "QEMU, ms")
    accels = ", ".join(sorted({one["accel"] for width, one in found.items() if width.isdigit() and "accel" in one}))
    about = f"From a QEMU that answers until the guest runs and is pinned (accel: {accels}); then whole starts."
    return "\n\n".join(("### Wide guests", about, table(head, rows)))


_SECTIONS = {
    "starts": _starts,
    "units": _units,
    "crowd": _crowd,
    "views": _views,
    "stops": _stops,
    "generators": _generators,
    "wide": _wide,
}
