# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure and write the section of bench/RESULTS.md: python3 -m bench.ksm. Root, KSM, 3 GiB of memory."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import sections
from bench.ksm.guests import Workload
from bench.ksm.peers import Advisor, Driver, Ksmtuned, Kvmsup
from bench.ksm.run import Measured, borrowed, measure
from kvmsup.effects import pressure

MIB = 1 << 20
ALIKE = {"identical": 1.0, "half-identical": 0.5}
OURS, THEIRS = "kvmsup, pressure", "ksmtuned"


def drivers() -> dict[str, Callable[[], Driver]]:
    machine = pressure.read("").total
    found: dict[str, Callable[[], Driver]] = {
        OURS: lambda: Kvmsup("pressure"),
        "kvmsup, always": lambda: Kvmsup("always"),
        THEIRS: lambda: Ksmtuned(machine),
    }
    if os.path.exists("/sys/kernel/mm/ksm/advisor_mode"):
        found["kernel's advisor"] = Advisor
    return found


def dominates(one: Measured, other: Measured) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better, by more than 1 %."""
    ahead = (one.saved - other.saved * 0.99, other.cpu * 1.01 - one.cpu, other.to_90 * 1.01 - one.to_90)
    better = one.saved > other.saved * 1.01 or one.cpu < other.cpu * 0.99 or one.to_90 < other.to_90 * 0.99
    return better and all(difference >= 0 for difference in ahead)


def table(results: Mapping[str, Mapping[str, Measured]]) -> str:
    lines = [
        "| workload | driver | saved, MiB | ksmd, CPU s | to 90 %, s | ksmd until then, CPU s |",
        "| :-- | :-- | --: | --: | --: | --: |",
    ]
    for load, rows in results.items():
        for name, one in rows.items():
            until = f"{one.to_90:.1f} | {one.cpu_90:.2f}" if one.saved else "– | –"
            figures = f"{one.saved / MIB:.0f} | {one.cpu:.2f} | {until}"
            lines.append(f"| {load} | {name} | {figures} |")
    return "\n".join(lines)


def section(seconds: float, size: int) -> str:
    results: dict[str, dict[str, Measured]] = {}
    with borrowed():
        for load, alike in ALIKE.items():
            workload = Workload(4, size, alike)
            for name, make in drivers().items():
                found = measure(make(), workload, workload.resident * 11 // 10, seconds)
                print(load, name, found, file=sys.stderr)
                results.setdefault(load, {})[name] = found
    lost = [
        load
        for load, rows in results.items()
        for ours in rows
        if ours.startswith("kvmsup") and dominates(rows[THEIRS], rows[ours])
    ]
    where = f"{os.cpu_count()} CPUs ({_model()}), Linux {platform.release()}, load average {os.getloadavg()[0]:.1f}"
    told = f"Measured on {where}; {seconds:.0f} s each, one run each; 4 × {size // MIB} MiB."
    verdict = f"ksmtuned dominates {'nowhere' if not lost else ', '.join(lost)}."
    return f"{told}\n\n{table(results)}\n\n{verdict}"


def _model() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.ksm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--mib", type=int, default=256, help="memory of each guest")
    parser.add_argument("--print", action="store_true", help="leave bench/RESULTS.md alone")
    asked = parser.parse_args()
    found = section(asked.seconds, asked.mib * MIB)
    print(found)
    if not asked.print:
        sections.write("ksm", found)
    return 0 if "dominates nowhere" in found else 1


if __name__ == "__main__":
    sys.exit(main())
