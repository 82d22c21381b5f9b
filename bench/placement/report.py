# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tables of bench/RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import NamedTuple

from bench.placement.run import Measures
from bench.placement.timing import Timed

US, UNSPLIT = "kvmsup", "kvmsup, unsplit"
_SAME = 0.005  # percentage points: what rounding hides


class Case(NamedTuple):
    """One host, one load; `hugepages`: every guest has them, so that nobody may split one."""

    shape: str
    load: float
    hugepages: bool


Results = Mapping[Case, Mapping[str, Sequence[Measures]]]  # by chooser, a value a seed


class Column(NamedTuple):
    """A measure with its heading; `more`: more is better."""

    title: str
    value: Callable[[Measures], float]
    more: bool = False


COLUMNS = (
    Column("guests in", lambda found: found.guests, more=True),
    Column("vCPUs in", lambda found: found.vcpus, more=True),
    Column("local", lambda found: found.local, more=True),
    Column("split", lambda found: found.split),
    Column("far memory", lambda found: found.far),
    Column("caches", lambda found: found.caches),
    Column("cores broken", lambda found: found.broken),
    Column("cores in part", lambda found: found.partial),
    Column("of them shared", lambda found: found.shared),
    Column("slow cores", lambda found: found.slow),
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, the first column to the left."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: Sequence[float]) -> str:
    """`87.4 (85–90)`: the median of the seeds, the least and the most."""
    return f"{median(values):.1f} ({min(values):.0f}–{max(values):.0f})" if max(values) >= _SAME else "0"


def _measured(results: Results, cases: Sequence[Case]) -> str:
    """Everyone's measures, the mean over `cases` of each seed."""
    names = [name for name in results[cases[0]] if name != UNSPLIT or not cases[0].hugepages]
    rows = []
    for name in names:
        seeds = list(zip(*(results[case][name] for case in cases), strict=True))
        cells = [_cell([fmean(map(column.value, seed)) for seed in seeds]) for column in COLUMNS]
        rows.append([name, *cells])
    return table(["%", *(column.title for column in COLUMNS)], rows)


def by_load(results: Results, hugepages: bool) -> str:
    """A table a load, over all hosts."""
    cases = [case for case in results if case.hugepages == hugepages]
    loads = sorted({case.load for case in cases})
    parts = [(load, _measured(results, [case for case in cases if case.load == load])) for load in loads]
    return "\n\n".join(f"Load {load:.0%}:\n\n{part}" for load, part in parts)


def by_shape(results: Results, load: float, hugepages: bool) -> str:
    """A table a host, at `load`."""
    cases = [case for case in results if case.load == load and case.hugepages == hugepages]
    return "\n\n".join(f"Host: {case.shape}\n\n{_measured(results, [case])}" for case in cases)


def _ahead(results: Results, case: Case, us: str, peer: str, column: Column) -> list[float]:
    """By how many percentage points `us` is better, seed by seed."""
    pairs = zip(results[case][us], results[case][peer], strict=True)
    return [(column.value(mine) - column.value(other)) * (1 if column.more else -1) for mine, other in pairs]


def _told(ahead: Sequence[Sequence[float]]) -> str:
    """`**+1.2** ± 0.3, 12/3/1`: the mean and its standard error, then cases that are better, the same and worse.

    `ahead` has a row a case, a column a seed. Bold where the mean is farther from 0 than two standard errors.
    """
    medians = [median(case) for case in ahead]
    better, worse = sum(one > _SAME for one in medians), sum(one < -_SAME for one in medians)
    seeds = [fmean(seed) for seed in zip(*ahead, strict=True)]
    mean, error = fmean(seeds), stdev(seeds) / len(seeds) ** 0.5
    if max(map(abs, seeds)) < _SAME:
        return "same"
    sign = f"**{mean:+.2f}**" if abs(mean) > 2 * error else f"{mean:+.2f}"
    return f"{sign} ± {error:.2f}, {better}/{len(ahead) - better - worse}/{worse}"


def verdict(results: Results, hugepages: bool, us: str = US) -> str:
    """By how much `us` is better than each peer in each measure, over all cases."""
    cases = [case for case in results if case.hugepages == hugepages]
    peers = [name for name in results[cases[0]] if name not in (US, UNSPLIT)]
    rows = [
        [column.title, *(_told([_ahead(results, case, us, peer, column) for case in cases]) for peer in peers)]
        for column in COLUMNS
    ]
    return table([f"{us} ahead of", *peers], rows)


def times(found: Sequence[Timed]) -> str:
    """Milliseconds a decision, and how they grow."""
    names = [name for name in found[0].medians if name != UNSPLIT]
    rows = []
    for one, before in zip(found, [None, *found], strict=False):
        grown = f"{one.medians[US] / before.medians[US]:.1f} ×" if before else ""
        cells = [f"{one.medians[name]:.2f}" for name in names]
        ratio = f"{one.medians[US] / one.medians['first fit']:.0f} ×"
        rows.append([f"{one.cpus} CPUs, {one.guests} guests", *cells, f"{one.slowest:.2f}", grown, ratio])
    return table(["ms", *names, "kvmsup, slowest guest", "grown", "of first fit"], rows)
