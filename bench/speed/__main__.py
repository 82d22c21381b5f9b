# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure kvmsup beside QEMU by itself, libvirt and podman's quadlet, in a container on this machine's own kernel.

python3 -m bench.speed --deb FILE [--only starts,crowd] [--quick] [--print]

It rewrites a section of bench/RESULTS.md, and the pictures beside it. What was found is kept below build/bench, and
measurements that are not asked for are taken from there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from bench import sections
from bench.speed import container, plots, report
from bench.speed.container import Container
from tests.lab.progress import Progress

FOUND = container.REPOSITORY / "build/bench"
PICTURES = Path(__file__).parents[1] / "pictures"
# Arguments of each module of bench.speed.inside: a whole run, a look.
MEASURED = {
    "starts": (["21"], ["3"]),
    "units": (["21"], ["3"]),
    "crowd": (["2", "60", "1", "10", "50"], ["1", "5", "1", "4"]),
    "views": (["1", "10", "50"], ["1", "4"]),
    "stops": (["5"], ["1"]),
    "generators": (["15", "1", "10", "30", "100", "1000"], ["2", "1", "10", "30"]),
    "wide": (["3", "1", "16", "64", "128", "254", "288"], ["1", "1", "16"]),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--deb", type=Path, required=True, help="the package of kvmsup")
    parser.add_argument("--only", default=",".join(MEASURED), metavar="WHAT", help="some of %(default)s")
    parser.add_argument("--quick", action="store_true", help="few rounds and few guests")
    parser.add_argument("--print", action="store_true", help="leave bench/RESULTS.md and its pictures alone")
    asked = parser.parse_args()
    progress = Progress()
    for name in asked.only.split(","):
        progress.stage(f"measuring {name}")
        keep(name, measure(name, asked.deb, quick=asked.quick, progress=progress))
    found = kept()
    text = report.render(found)
    print(text)
    if not asked.print:
        PICTURES.mkdir(exist_ok=True)
        names = plots.draw(found, PICTURES)
        shown = "\n\n".join(f"![{name.removesuffix('.png')}](pictures/{name})" for name in names)
        sections.write("speed", f"{text}\n\n{shown}")
    return 0


def measure(name: str, deb: Path, *, quick: bool, progress: Progress) -> dict[str, object]:
    """What bench.speed.inside.`name` found, in a container of its own, with where that was."""
    load = os.getloadavg()[0]
    with container.booted(progress) as there:
        there.install(deb)
        told = there.run(["python3", "-m", f"bench.speed.inside.{name}", *MEASURED[name][quick]], timeout=3600)
        return {"found": json.loads(told), "where": where(there), "load": load}


def where(there: Container) -> str:
    """The machine and the versions, in words."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    versions = there.run(
        "uname -r; systemctl --version | sed -n '1s/ (.*//p'; qemu-system-x86_64 --version | sed -n '1s/ (.*//p'"
        "; echo libvirt $(virsh --version); podman --version; python3 --version"
    )
    kernel, *others = versions.splitlines()
    return f"{os.cpu_count()} CPUs ({cpu[1] if cpu else 'unknown'}), Linux {kernel}, {', '.join(others)}"


def keep(name: str, measured: dict[str, object]) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    (FOUND / f"{name}.json").write_text(json.dumps(measured))


def kept() -> dict[str, object]:
    """All that was found, by measurement, and `where` as a sentence."""
    files = {name: FOUND / f"{name}.json" for name in MEASURED}
    all_of = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    places = dict.fromkeys(one["where"] for one in all_of.values())
    loads = ", ".join(f"{name} {one['load']:.1f}" for name, one in all_of.items())
    where = f"Measured on {'; '.join(places)}. Load average at the start of each: {loads}."
    if missing := ", ".join(name for name in MEASURED if name not in all_of):
        where += f" Not measured: {missing}."
    return {"where": where} | {name: one["found"] for name, one in all_of.items()}


if __name__ == "__main__":
    sys.exit(main())
