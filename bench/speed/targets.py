# SPDX-License-Identifier: LGPL-2.1-or-later
"""What docs/design.md, section 7, promises, beside what was found; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

Json = Mapping[str, Any]


class Target(NamedTuple):
    """One promise: `found` is kept at no more than `most`, in `unit` ("×" is a ratio to `beside`)."""

    what: str
    beside: str
    found: float
    most: float
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.found <= self.most


def all_of(found: Json) -> Iterator[Target]:
    """Those of which something was measured, in the design's order; `found` is by measurement."""
    if "starts" in found:
        yield from _starts(found["starts"])
    if "crowd" in found:
        yield from _crowd(found["crowd"])
    if "views" in found:
        yield from _views(found["views"])
    if "stops" in found:
        stops = found["stops"]["stops"]
        yield Target(
            "a stop of a Linux guest",
            "`virsh shutdown`, until the guest is off",
            _of(stops["kvmsup"], "told") / _of(stops["libvirt"], "told"),
            1.0,
        )
    if "generators" in found:
        yield from _generators(found["generators"])
    if "wide" in found:
        yield from _wide(found["wide"])


def _of(runs: Sequence[Json], what: str) -> float:
    found: float = median(one[what] for one in runs)
    return found


def ratio(runs: Json, what: str, ours: str, theirs: str) -> float:
    """The median of the ratios of runs that followed one another: what else the machine did was the same for both."""
    pairs = zip(runs[ours], runs[theirs], strict=True)
    found: float = median(one[what] / other[what] for one, other in pairs)
    return found


_SHAPES = {
    "plain": "a start, four vCPUs pinned",
    "claimed": "a start with a CPU of its own",
    "pages": "a start with a CPU and hugepages of its own",
}


def _starts(found: Json) -> Iterator[Target]:
    for shape, what in _SHAPES.items():
        yield Target(what, "`virsh start`", ratio(found[shape], "start", "kvmsup", "libvirt"), 0.30)
        yield Target(what, "QEMU by itself, and QMP", ratio(found[shape], "start", "kvmsup", "bare"), 2.0)
    yield Target("an end at once", "`virsh destroy`", ratio(found["plain"], "end", "kvmsup", "libvirt"), 1.0)


def _crowd(found: Json) -> Iterator[Target]:
    for count, runs in found["starts"].items():
        for how in ("one by one", "at once"):
            flat = {who: [one[how] for one in lists] for who, lists in runs.items()}
            what = f"{count} started {how}" if count != "1" else "a small guest started"
            if count != "1" or how == "at once":
                yield Target(what, "libvirt", ratio(flat, "total", "kvmsup", "libvirt"), 0.35)
    yield growth(found["starts"])
    most = max(found["resident"], key=int)
    for count, both in found["resident"].items():
        what = f"resident memory with {count} guest{'s' if count != '1' else ''}"
        yield Target(what, "", sum(one["pss"] for one in both["kvmsup"]["memory"]) / 1024, 20.0, "MiB")
    ours, theirs = (sum(one["pss"] for one in found["resident"][most][who]["memory"]) for who in ("kvmsup", "libvirt"))
    yield Target(f"resident memory with {most} guests", "libvirt's daemons", ours / theirs, 0.5)
    waits = sum(one["waits"] for one in found["resident"][most]["kvmsup"]["idle"])
    yield Target(f"wake-ups while nothing changes, {most} guests", "", waits, 0, "")


def growth(starts: Json) -> Target:
    """What the last tenth of the most guests took each, beside the first tenth: flat is 1."""
    most = max(starts, key=int)
    each = [one["one by one"]["each"] for one in starts[most]["kvmsup"]]
    tenth = max(1, int(most) // 10)
    found = median(median(one[-tenth:]) / median(one[:tenth]) for one in each)
    return Target(f"the last starts of {most}", "the first of them", found, 1.25)


def _views(found: Json) -> Iterator[Target]:
    most = max(found, key=int)
    for view, ours, theirs, bound in (
        ("list", "`kvmsup list`, all run", "`virsh list`", 1.2),
        ("all figures", f"all figures of {most} as JSON", "`virsh domstats`", 0.3),
    ):
        yield Target(ours, theirs, ratio(found[most][view], "wall", "kvmsup", "libvirt"), bound)


def _generators(found: Json) -> Iterator[Target]:
    yield Target("the generator, each further guest", "", found["growth"]["kvmsup"]["wall"], 0.2, "ms")
    yield Target("the generator, 30 guests", "", _of(found["runs"]["30"]["kvmsup"], "wall"), 40.0, "ms")
    reload = found["reload"]
    share = 100 * _of(reload["generator"], "wall") / _of(reload["loaded"], "wall")
    yield Target("its share of a daemon-reload, 30 guests", "", share, 15.0, "%")


def _wide(found: Json) -> Iterator[Target]:
    widths = sorted(int(width) for width in found if width.isdigit() and "attach" in found[width])
    few, many = widths[min(1, len(widths) - 1)], widths[-1]
    each = {width: _of(found[str(width)]["attach"]["kvmsup"], "active") / width for width in (few, many)}
    yield Target(f"attach, a vCPU of {many}", f"a vCPU of {few}", each[many] / each[few], 1.0)
