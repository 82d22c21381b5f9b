# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prints, as JSON, every mask of CPUs on this host: those of interrupts and the like, and each thread's.

It reads the kernel's files and shares no code with kvmsup. Stands alone: it is copied into the host.
"""

from __future__ import annotations

import glob
import json
import os
import re
from typing import Any

Json = dict[str, Any]
NO_SETAFFINITY, KTHREAD = 0x04000000, 0x00200000


def read(path: str) -> str:
    """The text of a file, "" where there is none (any more)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def listed(mask: str) -> str:
    """A hexadecimal mask as a list with ranges."""
    bits = int(mask.replace(",", ""), 16)
    cpus = [number for number in range(bits.bit_length()) if bits >> number & 1]
    starts = [number for number in cpus if number - 1 not in cpus]
    ends = [number for number in cpus if number + 1 not in cpus]
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))


def masks() -> dict[str, str]:
    """By what each is of."""
    found = {
        "default": listed(read("/proc/irq/default_smp_affinity")),
        "watchdog": read("/proc/sys/kernel/watchdog_cpumask"),
        "workqueues": listed(read("/sys/devices/virtual/workqueue/cpumask")),
    }
    for path in glob.glob("/proc/irq/[0-9]*/smp_affinity_list"):
        found[f"irq {path.split('/')[3]}"] = read(path)
    for path in glob.glob("/sys/class/net/*/queues/rx-*/rps_cpus"):
        _, _, _, _, link, _, queue, _ = path.split("/")
        found[f"rps {link} {queue}"] = listed(read(path))
    return {key: value for key, value in found.items() if value}


def threads() -> list[Json]:
    """Every thread but this one's; `bound`: the kernel lets nobody move it."""
    found = []
    for path in glob.glob("/proc/[0-9]*/task/[0-9]*"):
        _, _, pid, _, tid = path.split("/")
        stat, status = read(f"{path}/stat"), read(f"{path}/status")
        if not stat or not status or int(pid) == os.getpid():
            continue
        flags = int(stat.rpartition(")")[2].split()[6])
        cpus = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
        found.append(
            {
                "pid": int(pid),
                "tid": int(tid),
                "name": stat.partition("(")[2].rpartition(")")[0],
                "cpus": cpus[1] if cpus else "",
                "kernel": bool(flags & KTHREAD),
                "bound": bool(flags & NO_SETAFFINITY),
            }
        )
    return found


if __name__ == "__main__":
    print(json.dumps({"masks": masks(), "threads": threads()}))
