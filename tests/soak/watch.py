# SPDX-License-Identifier: LGPL-2.1-or-later
"""A long time in which nothing happens: two guests and the supervisor, and what they take of the host."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from tests.host import guests
from tests.lab.host import Host

_SAMPLES = 20
# What an interpreter, or QEMU, may have more at the end: a page here and there that was touched late.
_SLACK_KIB = 64
_CALM_SECONDS = 60
# Of each process: what it has of memory that is its own, of descriptors and of threads, and how often it went to
# sleep, which it does as often as it has been woken up (proc(5), voluntary_ctxt_switches).
_SAMPLE = r"""
import glob, json, os, re, subprocess, sys
def read(path):
    with open(path) as file:
        return file.read()
def kib(name, text):
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1])
def switches(pid):
    return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", read(f"{t}/status"), re.M)[1])
               for t in glob.glob(f"/proc/{pid}/task/*"))
def sample(pid):
    rollup = read(f"/proc/{pid}/smaps_rollup")
    return {"kib": kib("Anonymous", rollup) - kib("AnonHugePages", rollup),
            "data": kib("VmData", read(f"/proc/{pid}/status")),
            "pss": kib("Pss", rollup),
            "fds": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
            "switches": switches(pid)}
lines = subprocess.run(["journalctl", "-b", "-q", "-o", "cat", "-u", "kvm*"], capture_output=True).stdout
jobs = subprocess.run(["journalctl", "-b", "-q", "-o", "cat", "_PID=1"], capture_output=True).stdout
files = glob.glob("/run/kvmsup/**", recursive=True)
print(json.dumps({"processes": {name: sample(int(pid)) for name, pid in (one.split("=") for one in sys.argv[1:])},
                  "lines": lines.count(b"\n"), "systemd": jobs.count(b"\n"),
                  "bytes": sum(map(os.path.getsize, filter(os.path.isfile, files)))}))
"""


class Process(NamedTuple):
    """One process at one moment.

    `kib` is anonymous memory, which a guest in hugepages is not, but for what khugepaged has made of it: that fills
    two megabytes of which a page was touched. `data` is what it has asked for, touched or not (VmData).
    """

    kib: int
    data: int
    pss: int
    fds: int
    threads: int
    switches: int


class Sample(NamedTuple):
    """One moment: processes by name, lines of the journal under kvmsup's units, and PID 1's, and bytes in /run."""

    processes: dict[str, Process]
    lines: int
    systemd: int
    bytes: int


def grown(samples: Sequence[Sample]) -> list[str]:
    """What there is more of at the end than at the beginning, in sentences; and who was woken up."""
    first, last = samples[0], samples[-1]
    found = []
    for name, before in first.processes.items():
        after = last.processes[name]
        # The guests' own memory is theirs to touch: of Linux, whose memory is ordinary, only the rest counts.
        if name != "linux" and after.kib > before.kib + _SLACK_KIB:
            found.append(f"{name}: {before.kib} KiB of memory became {after.kib}")
        if after.data > before.data:
            found.append(f"{name}: {before.data} KiB that it has asked for became {after.data}")
        if after.fds > before.fds:
            found.append(f"{name}: {before.fds} descriptors became {after.fds}")
        if after.threads > before.threads:
            found.append(f"{name}: {before.threads} threads became {after.threads}")
    if woken := wake_ups(samples):
        found.append(f"the supervisor was woken up {woken} times")
    if last.lines > first.lines:
        found.append(f"{last.lines - first.lines} lines more in the journal")
    if last.bytes > first.bytes:
        found.append(f"{last.bytes - first.bytes} bytes more in /run/kvmsup")
    return found


def wake_ups(samples: Sequence[Sample]) -> int:
    """How often the supervisor went to sleep again while it was watched."""
    return samples[-1].processes["supervisor"].switches - samples[0].processes["supervisor"].switches


def prepare(host: Host) -> dict[str, int]:
    """Linux, a guest in hugepages, the supervisor, and nothing else that systemd does; their processes by name."""
    guests.install_demo(host)
    guests.configure(host, {"linux": guests.LINUX, "still": guests.TINY})
    host.run("systemctl stop '*.timer'")
    for name in ("linux", "still"):
        guests.start(host, name)
    guests.booted(host, "linux")
    supervisor = int(guests.show(host, "kvmsup", "MainPID")["MainPID"])
    return {"supervisor": supervisor, "linux": guests.pid(host, "linux"), "still": guests.pid(host, "still")}


def run(host: Host, processes: dict[str, int], minutes: float) -> list[Sample]:
    """Samples over so many minutes, once everything is calm."""
    time.sleep(_CALM_SECONDS)
    found = [_sample(host, processes)]
    for _ in range(_SAMPLES):
        time.sleep(minutes * 60 / _SAMPLES)
        found.append(_sample(host, processes))
    return found


def _sample(host: Host, processes: dict[str, int]) -> Sample:
    command = ["python3", "-c", _SAMPLE, *(f"{name}={pid}" for name, pid in processes.items())]
    seen = json.loads(host.run(command, timeout=120).stdout)
    return Sample(
        {name: Process(**one) for name, one in seen["processes"].items()},
        lines=seen["lines"],
        systemd=seen["systemd"],
        bytes=seen["bytes"],
    )


def figures(samples: Sequence[Sample], minutes: float) -> dict[str, float | int | str]:
    """What the report tells of a run."""
    first, last = samples[0], samples[-1]
    told: dict[str, float | int | str] = {"minutes": minutes, "samples": len(samples)}
    told["wake-ups of the supervisor"] = wake_ups(samples)
    for name in first.processes:
        one, other = first.processes[name], last.processes[name]
        told[f"{name}: PSS, KiB"] = f"{one.pss} → {other.pss}"
        told[f"{name}: descriptors"] = f"{one.fds} → {other.fds}"
    told["lines under kvmsup's units in the journal"] = f"{first.lines} → {last.lines}"
    told["lines of PID 1 in the journal"] = f"{first.systemd} → {last.systemd}"
    return told
