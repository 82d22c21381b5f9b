# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of the host runs on a guest's isolated CPUs all the same, counted since the guest started.

The kernel counts interrupts and softirqs by CPU, and how often each thread has been put on one; what was counted when
the guest started is written down (Documentation/filesystems/proc.rst, /proc/interrupts, /proc/softirqs).
"""

from __future__ import annotations

import json
import os

from kvmsup.effects import files, interrupts, proc
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.model.hostfacts import Intrusion
from kvmsup.plan.paths import ISOLATED

INTERRUPT, SOFTIRQ, THREAD = "interrupt", "softirq", "thread"


# Name and count by CPU, kind, and what tells one from another: a worker's name changes with its work.
Counts = dict[tuple[int, str, str], tuple[str, int]]


def _path(root: str, guest: str) -> str:
    return f"{root}{ISOLATED}/{guest}"


def remember(root: str, claim: Claim) -> None:
    """Count from now on for the guest of `claim`. Raises HostError."""
    counted = [[*key, count] for key, (_, count) in _counts(root, claim.isolated).items()]
    path = _path(root, claim.guest)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    except OSError as error:
        raise HostError(f"{path}: cannot write: {error.strerror}") from None
    files.replace(path, json.dumps(counted))


def counted(root: str, claim: Claim) -> bool:
    """Whether the guest of `claim` is isolated, and has begun to run."""
    return claim.isolate and os.path.exists(_path(root, claim.guest))


def forget(root: str, guest: str) -> None:
    """The guest has ended."""
    files.remove(_path(root, guest))


def since_start(root: str, claim: Claim) -> list[Intrusion] | None:
    """What ran on its CPUs since the guest started, by CPU, most first; None where that was not written down."""
    try:
        told = json.loads(files.read(_path(root, claim.guest)))
        before = {(cpu, kind, which): count for cpu, kind, which, count in told}
    except (OSError, ValueError, TypeError):
        return None
    found = [
        Intrusion(key[0], key[1], name, count - before.get(key, 0))
        for key, (name, count) in _counts(root, claim.isolated).items()
    ]
    return sorted((one for one in found if one.times > 0), key=lambda one: (one.cpu, one.kind, -one.times, one.name))


def _counts(root: str, cpus: frozenset[int]) -> Counts:
    found: Counts = {}
    for kind, file in ((INTERRUPT, "interrupts"), (SOFTIRQ, "softirqs")):
        for row in interrupts.rows(f"{root}/proc/{file}"):
            name = _name(row)
            found |= {(cpu, kind, name): (name, count) for cpu, count in row.counts.items() if cpu in cpus}
    for pid in filter(str.isdecimal, os.listdir(f"{root}/proc")):
        thread = proc.stat(f"{root}/proc/{pid}")
        if thread and thread.kernel and thread.bound and thread.last_cpu in cpus:
            found[thread.last_cpu, THREAD, pid] = (thread.name, proc.switches(f"{root}/proc/{pid}"))
    return found


def _name(row: interrupts.Row) -> str:
    """A device's interrupt is called by its drivers, or its controller where there is none; others in words."""
    if not row.words:
        return row.label
    called = (row.device or row.words[0]) if row.label.isdecimal() else " ".join(row.words)
    return f"{called} ({row.label})"
