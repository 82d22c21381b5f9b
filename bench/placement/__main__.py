# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 -m bench.placement`: runs the comparison, prints its tables and writes them into bench/RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

from bench import sections
from bench.placement import report
from bench.placement.arrivals import stream
from bench.placement.peers import CHOOSERS
from bench.placement.report import Case
from bench.placement.run import Measures, measure
from bench.placement.shapes import SHAPES
from bench.placement.timing import all_timed

LOADS = (0.6, 0.85, 1.0, 1.2)


def one_seed(case: Case, seed: int, arrivals: int) -> dict[str, Measures]:
    """What each chooser makes of the same arrivals."""
    topology = SHAPES[case.shape]
    coming = list(stream(seed, arrivals, topology, case.load, case.hugepages))
    return {name: measure(topology, choose, coming) for name, choose in CHOOSERS.items()}


def all_seeds(seeds: int, arrivals: int) -> report.Results:
    """Every case with every seed, on all CPUs of this machine."""
    cases = [Case(*one) for one in product(SHAPES, LOADS, (False, True))]
    asked = list(product(cases, range(seeds)))
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(one_seed, *zip(*asked, strict=True), [arrivals] * len(asked), chunksize=4))
    return {
        case: {name: [found[number * seeds + seed][name] for seed in range(seeds)] for name in CHOOSERS}
        for number, case in enumerate(cases)
    }


def machine() -> str:
    """What this was measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs ({model}), Python {platform.python_version()}, load average {load:.1f} at the start"


def section(seeds: int, arrivals: int) -> str:
    """The text between the markers."""
    where, timed = machine(), all_timed()
    results = all_seeds(seeds, arrivals)
    counts = f"{len(SHAPES)} hosts × {len(LOADS)} loads × {seeds} seeds (0–{seeds - 1}) × {arrivals} arrivals"
    return "\n\n".join(
        [
            f"Measured on {where}; {counts}, for each kind of demand. Cells: median of the seeds (least–most).",
            "### Where kvmsup stands\n\nAny guests:\n\n" + report.verdict(results, hugepages=False),
            "Any guests, kvmsup refusing what Nova refuses:\n\n" + report.verdict(results, False, report.UNSPLIT),
            "Guests with hugepages only, which nobody may split:\n\n" + report.verdict(results, hugepages=True),
            "### Any guests, mean of all hosts\n\n" + report.by_load(results, hugepages=False),
            "### Guests with hugepages only, mean of all hosts\n\n" + report.by_load(results, hugepages=True),
            "### Each host at load 100 %, any guests\n\n" + report.by_shape(results, 1.0, hugepages=False),
            "### Each host at load 100 %, hugepages only\n\n" + report.by_shape(results, 1.0, hugepages=True),
            "### Time of a decision\n\n" + report.times(timed),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m bench.placement", description=__doc__)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--arrivals", type=int, default=400)
    parser.add_argument("--print", action="store_true", help="leave bench/RESULTS.md alone")
    asked = parser.parse_args()
    found = section(asked.seeds, asked.arrivals)
    print(found)
    if not asked.print:
        sections.write("placement", found)


if __name__ == "__main__":
    main()
