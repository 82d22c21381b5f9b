# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who drives KSM: kvmsup's own plan and effects, ksmtuned's rules written anew, the kernel's advisor."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

from kvmsup.effects import files, ksm
from kvmsup.model.ksm import Figures
from kvmsup.model.pressure import HostMemory
from kvmsup.plan import ksm as plan

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
KSM = Path("/sys/kernel/mm/ksm")


class Host(NamedTuple):
    """What a driver is told, in bytes: the host is as large as the bench says, the rest is measured."""

    total: int
    resident: int  # the guests' memory as RSS has it, merged or not
    figures: Figures

    @property
    def free(self) -> int:
        return self.total - self.resident + self.figures.saved


class Driver(Protocol):
    """Sets KSM up for a moment, and says in how many seconds it wants to be asked again; None: never."""

    def act(self, now: float, host: Host, /) -> float | None: ...


def write(name: str, value: object) -> None:
    files.write_attribute(str(KSM / name), str(value))


class Kvmsup:
    """What the supervisor does, by the same functions."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.state = plan.State()
        # The machine's own kernel, and a place of its own for what was found.
        self.root = tempfile.mkdtemp(prefix="kvmsup-bench-")
        os.symlink("/sys", f"{self.root}/sys")
        os.symlink("/proc", f"{self.root}/proc")
        os.makedirs(f"{self.root}/run/kvmsup")

    def act(self, now: float, host: Host, /) -> float | None:
        memory = HostMemory(host.total, host.free, 0, 0, 0, None)
        guests = frozenset({"guests"})
        step = plan.step(
            self.policy, self.state, plan.Look(now, guests, host.resident // KIB // 4, host.figures, memory)
        )
        self.state = step.state
        if step.state.settings:
            ksm.apply(self.root, step.state.settings)
        else:
            ksm.restore(self.root)
        return step.again


class Ksmtuned:
    """Its shell script's arithmetic with its default settings, once a minute, and at once at the start of the guests.

    thres = 20 % of all memory; it stops if the guests' RSS and thres fit into memory and more than thres is free; else
    300 pages more while less than thres is free, 50 fewer while more is, from 64 to 1250; its sleep is 10 ms on hosts
    of 16 GiB, longer on smaller ones. The machine's own memory decides the sleep, what the bench tells all the rest.
    """

    def __init__(self, machine: int) -> None:
        self.sleep = max(10, 10 * 16 * GIB // machine)
        self.pages = 0

    def act(self, _now: float, host: Host, /) -> float | None:
        threshold = max(host.total // 5, 2 * MIB)
        if host.resident + threshold < host.total and host.free > threshold:
            write("run", 0)
        else:
            self.pages = max(64, min(self.pages + (300 if host.free < threshold else -50), 1250))
            write("pages_to_scan", self.pages)
            write("sleep_millisecs", self.sleep)
            write("run", 1)
        return 60.0


class Advisor:
    """The kernel's own, with its default target of 200 s for a scan and at most 70 % of a CPU."""

    def act(self, _now: float, _host: Host, /) -> float | None:
        write("advisor_mode", "scan-time")
        write("run", 1)
        return None
