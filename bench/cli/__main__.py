# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure and write the section of bench/RESULTS.md: python3 -m bench.cli. Root, systemd, libvirtd, and kvmsup."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from bench import sections
from bench.cli.run import VIRSH, Pair, interleaved, run

ETC = Path("/etc/kvmsup")
GUESTS = (1, 10, 50)
TOML = '[machine]\ntype = "pc-q35-7.2"\n[cpu]\nvcpus = 2\n[memory]\nsize = "1G"\n'
DOMAIN = (
    "<domain type='qemu'><name>{}</name><memory unit='GiB'>1</memory><vcpu>2</vcpu>"
    "<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os></domain>"
)


@contextlib.contextmanager
def guests(count: int) -> Iterator[str]:
    """That many guests, described and down, here and in libvirt; the name of one. Whoever has any keeps them."""
    there = [*ETC.glob("*.toml"), *run(*VIRSH, "list", "--all", "--name").split()]
    if there:
        raise SystemExit(f"there are guests already: {', '.join(map(str, there))}; this needs a host without")
    names = [f"bench{number}" for number in range(count)]
    ETC.mkdir(exist_ok=True)
    try:
        for name in names:
            (ETC / f"{name}.toml").write_text(TOML)
            run(*VIRSH, "define", "/dev/stdin", text=DOMAIN.format(name))
        run("systemctl", "daemon-reload")
        yield names[0]
    finally:
        for name in names:
            (ETC / f"{name}.toml").unlink(missing_ok=True)
            subprocess.run((*VIRSH, "undefine", name), capture_output=True, check=False)
        run("systemctl", "daemon-reload")


def measure(pairs: int) -> dict[tuple[str, int], Pair]:
    """By verb and number of guests."""
    found = {}
    for count in GUESTS:
        with guests(count) as name:
            found["list", count] = interleaved(("kvmsup", "list"), (*VIRSH, "list", "--all"), pairs)
            found["status", count] = interleaved(("kvmsup", "status", name), (*VIRSH, "dominfo", name), pairs)
            found["check", count] = interleaved(("kvmsup", "check"), (*VIRSH, "list", "--all"), pairs)
    return found


def table(found: Mapping[tuple[str, int], Pair]) -> str:
    lines = [
        "| kvmsup | guests | beside | wall, ratio | CPU, ratio | CPU, ms | its CPU, ms |",
        "| :-- | --: | :-- | --: | --: | --: | --: |",
    ]
    beside = {"list": "list --all", "status": "dominfo", "check": "list --all"}
    for (verb, count), pair in found.items():
        ours, theirs = (median(one.cpu for one in runs) for runs in pair)
        ratios = " | ".join(f"{ratio:.2f}" for ratio in pair.ratio)
        lines.append(f"| {verb} | {count} | virsh {beside[verb]} | {ratios} | {ours:.0f} | {theirs:.0f} |")
    return "\n".join(lines)


def section(pairs: int) -> str:
    load = os.getloadavg()[0]
    found = table(measure(pairs))
    virsh = run("virsh", "--version").strip()
    where = f"{os.cpu_count()} CPUs, Python {platform.python_version()}, libvirt {virsh}, load average {load:.1f}"
    return f"Measured on {where} at the start; {pairs} pairs a line, medians.\n\n{found}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.cli", description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--print", action="store_true", help="leave bench/RESULTS.md alone")
    asked = parser.parse_args()
    found = section(asked.pairs)
    print(found)
    if not asked.print:
        sections.write("cli", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
