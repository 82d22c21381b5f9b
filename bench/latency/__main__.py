# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure on a lab host and write the section of bench/RESULTS.md: python3 -m bench.latency --deb FILE."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from bench import sections
from bench.latency import guest
from tests.host import guests
from tests.lab.host import Host, Lab
from tests.lab.progress import Progress

IMAGE = "/var/lib/latency.img"
_LEAST_MICROSECONDS = 250

TOML = f"""
[machine]
type = "pc-q35-7.2"
[memory]
size = "64M"
[disk.boot]
path = "{IMAGE}"
format = "raw"
read-only = true
[placement]
"""
KINDS = {
    "shared": 'cpus = "shared"\n[placement.vcpu]\n0 = "2-3"\n',
    "pinned": 'cpus = "dedicated"\n',
    "isolated": 'cpus = "dedicated"\nisolate = true\n',
    # Without a neighbour: what the others would be on CPUs that are not emulated.
    "alone": 'cpus = "dedicated"\nisolate = true\n',
}
# Bound to each CPU that a guest is given here, as a service would be that nobody thinks of: busy for 4 ms in 20.
NEIGHBOUR = """
import os, sys, time
for cpu in (2, 3):
    if os.fork() == 0:
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError:  # the CPU is isolated: it goes where it may
            pass
        while True:
            end = time.perf_counter() + 0.004
            while time.perf_counter() < end:
                pass
            time.sleep(0.016)
time.sleep(1e6)
"""


def prepare(host: Host) -> float:
    """The three guests, and their neighbour; returns the ticks of the clock in a microsecond."""
    # The fewer CPUs there are to emulate, the less it is the emulator that the guest waits for.
    host.run("echo 0 | tee /sys/devices/system/cpu/cpu[4-7]/online")
    host.put(guest.image(), IMAGE)
    guests.configure(host, {kind: TOML + wish for kind, wish in KINDS.items()})
    guests.keep_supervisor(host)
    host.put(NEIGHBOUR.encode(), "/root/neighbour.py")
    return float(host.run("awk '/^cpu MHz/ {print $4; exit}' /proc/cpuinfo").stdout)


def run(host: Host, kind: str, lines: int) -> list[guest.Line]:
    """Start the guest, and what it tells while its neighbour is noisy."""
    guests.start(host, kind)
    # After the guest: whoever is where it goes has to leave.
    if kind != "alone":
        host.run("systemd-run --quiet --unit neighbour python3 /root/neighbour.py")
    begin = host.run("date '+%Y-%m-%d %H:%M:%S'").stdout.strip()
    found: list[guest.Line] = []
    until = time.monotonic() + 300
    while len(found) < lines and time.monotonic() < until:
        time.sleep(2)
        shown = host.run(f"journalctl --sync; journalctl -o cat --no-pager -u kvm@{kind} --since '{begin}'").stdout
        found = guest.lines(shown)
    host.run("systemctl stop neighbour; systemctl reset-failed neighbour", check=False)
    guests.kill(host, kind)
    return found[:lines]


def measure(host: Host, rounds: int, lines: int) -> tuple[dict[str, list[guest.Line]], float]:
    """All kinds in turn, so often; with the ticks in a microsecond."""
    ticks = prepare(host)
    found: dict[str, list[guest.Line]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in KINDS:
            found[kind] += run(host, kind, lines)
            print(f"round {number + 1} of {rounds}: {kind}", file=sys.stderr)
    return found, ticks


def table(found: Mapping[str, list[guest.Line]], ticks: float) -> str:
    """Medians of the lines, each with its ratio to the isolated guest's."""
    least = _LEAST_MICROSECONDS * ticks
    figures = {
        kind: (
            median(guest.lost(line, least) for line in lines) * 100,
            median(guest.over(line, least) for line in lines),
            median(line.longest for line in lines) / ticks / 1000,
        )
        for kind, lines in found.items()
    }
    base = figures["isolated"]
    rows = [
        "| the guest is | time lost, % | ratio | gaps | ratio | longest, ms | ratio |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for kind, values in figures.items():
        cells = " | ".join(
            f"{value:.2f} | {value / one:.1f}" if one else f"{value:.2f} | –"
            for value, one in zip(values, base, strict=True)
        )
        rows.append(f"| {kind} | {cells} |")
    return "\n".join(rows)


def section(host: Host, rounds: int, lines: int) -> str:
    found, ticks = measure(host, rounds, lines)
    software = "Linux $(uname -r), $(qemu-system-x86_64 --version | head -1)"
    where = host.run(f"echo $(nproc --all) CPUs, $(nproc) of them online, {software}").stdout.strip()
    counted = (
        f"gaps of about {_LEAST_MICROSECONDS} µs or more; medians of {rounds * lines} lines a kind, in {rounds} rounds"
    )
    return f"Measured in the lab: {where}; {counted}.\n\n{table(found, ticks)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m bench.latency", description=__doc__)
    parser.add_argument("--deb", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=4)
    parser.add_argument("--print", action="store_true", help="leave bench/RESULTS.md alone")
    asked = parser.parse_args()
    lab = Lab("trixie")
    lab.ensure_built(Progress())
    with lab.fresh(lab.installed(asked.deb)) as host:
        found = section(host, asked.rounds, asked.lines)
    print(found)
    if not asked.print:
        sections.write("latency", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
