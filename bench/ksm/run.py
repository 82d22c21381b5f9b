# SPDX-License-Identifier: LGPL-2.1-or-later
"""One driver with one workload for some time, on the real /sys/kernel/mm/ksm, which is put back whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.ksm.guests import Workload, running
from bench.ksm.peers import KSM, Driver, Host, write
from kvmsup.effects import ksm

_SAMPLE_SECONDS = 0.1
KNOBS = ("run", "advisor_mode", "pages_to_scan", "sleep_millisecs")


class Measured(NamedTuple):
    """`saved` in bytes at the end; ksmd's `cpu` seconds; 90 % of `saved` were there after `to_90`, with `cpu_90`."""

    saved: int
    cpu: float
    to_90: float
    cpu_90: float


@contextlib.contextmanager
def borrowed() -> Iterator[None]:
    """KSM is as it was found after the block, and after SIGKILL too: a process of its own sees to it.

    Raises SystemExit when somebody uses KSM.
    """
    if mergeable := others():
        raise SystemExit(f"ksmd would look at the memory of others too: {', '.join(mergeable)}; nothing is measured")
    found = {name: _value(name) for name in KNOBS if (KSM / name).exists()}
    if found.get("run") != "0" or _value("pages_shared") != "0":
        raise SystemExit("KSM is in use on this machine (or not there): nothing is measured")
    reading, writing = os.pipe()
    guard = os.fork()
    if not guard:
        _guard(reading, writing, found)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(guard, 0)


def others() -> list[str]:
    """Processes that have let KSM have some of their memory, as any QEMU has without -machine mem-merge=off."""
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            areas = (directory / "smaps").read_text().splitlines() if directory.name.isdecimal() else []
            if any(line.startswith("VmFlags:") and " mg" in line for line in areas):
                found.append(f"{directory.name} ({(directory / 'comm').read_text().strip()})")
    return found


def _value(name: str) -> str:
    text = (KSM / name).read_text().strip() if (KSM / name).exists() else ""
    return text.partition("[")[2].partition("]")[0] or text


def _guard(reading: int, writing: int, found: dict[str, str]) -> None:
    """Wait for the end of the measuring process, then put back. Never returns."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(writing)
    os.read(reading, 1)
    try:
        write("run", 2)
        if "advisor_mode" in found:
            write("advisor_mode", "none")
        for name in ("pages_to_scan", "sleep_millisecs", "advisor_mode", "run"):
            if name in found:
                write(name, found[name])
    finally:
        os._exit(0)


def measure(driver: Driver, load: Workload, total: int, seconds: float) -> Measured:
    """What `driver` makes of `load` on a host of `total` bytes. The block of `borrowed` is around it."""
    _reset()
    ksmd = ksm.thread("")
    with running(load):
        before = ksm.read("", ksmd)
        began = time.monotonic()
        samples: list[tuple[float, int, float]] = []
        due: float | None = began
        while (now := time.monotonic()) < began + seconds:
            figures = ksm.read("", ksmd)
            samples.append((now - began, figures.saved, figures.cpu_seconds - before.cpu_seconds))
            if due is not None and now >= due:
                again = driver.act(now, Host(total, load.resident, figures))
                due = None if again is None else now + again
            time.sleep(_SAMPLE_SECONDS)
    _, saved, cpu = samples[-1]
    to_90, _, cpu_90 = next(sample for sample in samples if sample[1] >= 0.9 * saved)
    return Measured(saved, cpu, to_90, cpu_90)


def _reset() -> None:
    """Nothing merged, and the settings of a kernel that has just booted."""
    write("run", 2)
    write("run", 0)
    if (KSM / "advisor_mode").exists():
        write("advisor_mode", "none")
    write("pages_to_scan", 100)
    write("sleep_millisecs", 20)
