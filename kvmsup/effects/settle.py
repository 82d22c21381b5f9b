# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bring a running guest's threads back to where they should be, and say what had moved."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kvmsup import cpulist
from kvmsup.effects import claims, fence, pin, proc, qmp, sysfs, threads
from kvmsup.errors import HostError
from kvmsup.model.claim import Claim
from kvmsup.plan import duties
from kvmsup.plan.duties import Duty
from kvmsup.plan.paths import socket

_QMP_SECONDS = 2.0


def guest(root: str, name: str, pid: int) -> Iterator[str]:
    """Look at every thread of guest `name`, whose QEMU is `pid`, and move those that are elsewhere; says which were.

    A worker that was born on the wrong CPUs is moved without a word. What hinders one thread hinders no other. Raises
    KvmsupError where QEMU cannot be asked.
    """
    claim = claims.read(root, name)
    if claim is None or not claim.held:
        return
    named = threads.ask(root + socket(claim.guest, "supervisor.qmp"), pid, claim, _QMP_SECONDS)
    if claims.read(root, name) != claim:  # a reload was quicker, after which it is looked at again
        return
    online, fenced = sysfs.online(root), fence.current(root)
    if claim.isolate:
        yield from _undone(root, claim, pid)
    for tid, duty in threads.of_guest(root, pid, claim, named).items():
        possible = duties.now(duty, claim, online, fenced)
        try:
            moved = restore(root, claim, tid, possible)
        except HostError as error:
            yield f"{duty.role} is not where it should be: {error}"
            continue
        if not duty.cpus & online:
            gone = f"CPU {cpulist.render(duty.cpus)} is offline"
            hint = f"echo 1 > /sys/devices/system/cpu/cpu{min(duty.cpus)}/online"
            yield f"{duty.role} runs on CPU {cpulist.render(possible.cpus)} for now: {gone}\n  hint: {hint}"
        elif moved and duty.role != "emulator":
            yield moved


def _undone(root: str, claim: Claim, pid: int) -> Iterator[str]:
    """Why its CPUs are not isolated any more, as when all of them were offline.

    They are not isolated again here: only CAP_SYS_ADMIN makes a partition so far down (kernel/cgroup/cpuset.c,
    remote_partition_enable), which whoever talks to guests' QEMUs all the time had better not have.
    """
    from kvmsup.effects import partition  # for guests that are isolated alone

    if (wrong := partition.stays_amiss(root, claim)) and not proc.has_ended(pid):
        what = f"CPU {cpulist.render(claim.isolated)} is not isolated any more: {wrong}"
        yield f"{what}\n  hint: systemctl reload kvm@{claim.guest} isolates it again"


def is_paused(root: str, name: str) -> bool:
    """Whether a reload has left guest `name` paused. Raises HostError."""
    claim = claims.read(root, name)
    return claim is not None and claim.paused


def resume(root: str, name: str, pid: int) -> bool:
    """Let guest `name`, whose QEMU is `pid`, go on where a reload has left it paused; returns whether it was.

    The caller holds the claims' lock. Raises KvmsupError.
    """
    claim = claims.read(root, name)
    if claim is None or not claim.paused:
        return False
    with qmp.Monitor(root + socket(name, "supervisor.qmp"), pid, time.monotonic() + _QMP_SECONDS) as monitor:
        monitor.negotiate()
        monitor.execute("cont")
    claims.write(root, claim._replace(paused=False))
    return True


def restore(root: str, claim: Claim, tid: int, duty: Duty) -> str:
    """Move `tid` where it should be; says what had changed, "" when nothing had. Raises HostError."""
    found = []
    threads.admit(root, claim, tid, duty.cpus)
    actual = pin.allowed(tid)
    if actual not in (duty.cpus, None):
        pin.pin(tid, duty.cpus)
        if (held := pin.allowed(tid)) not in (duty.cpus, None):
            # The kernel drops without a word what the cpuset of its control group does not have.
            told = f"thread {tid} may run on CPU {cpulist.render(held or ())}"
            raise HostError(f"{told} after it was pinned to {cpulist.render(duty.cpus)}")
        found.append(f"was allowed on CPU {cpulist.render(actual or ())}, is back on {cpulist.render(duty.cpus)}")
    scheduler = pin.scheduled(tid)
    if duty.scheduler and scheduler not in (duty.scheduler, None):
        pin.schedule(tid, duty.scheduler)
        found.append(f"ran as {scheduler}, runs as {duty.scheduler} again")
    return f"{duty.role} (thread {tid}, {threads.name(root, tid)}) {' and '.join(found)}" if found else ""
