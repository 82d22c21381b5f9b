# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is true of a running guest right now, read from its claim, QEMU and the kernel; nothing is remembered."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

from kvmsup.effects import balloon as balloons
from kvmsup.effects import (
    cgroup,
    fence,
    files,
    foreign,
    hugepages,
    models,
    numa_maps,
    pin,
    proc,
    qmp,
)
from kvmsup.effects import threads as guest_threads
from kvmsup.effects.foreign import Foreign
from kvmsup.effects.glance import Seen
from kvmsup.effects.numa_maps import Part
from kvmsup.errors import KvmsupError, QmpError
from kvmsup.plan.duties import Duty
from kvmsup.plan.models import Running, told
from kvmsup.plan.paths import socket
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_PATIENCE_SECONDS = 2.0


class Thread(NamedTuple):
    """One thread of a guest: what it is for, where it should run and where the kernel lets it."""

    tid: int
    name: str
    role: str  # "vCPU 0" | "iothread io0" | "emulator"
    wanted: frozenset[int]
    actual: frozenset[int]
    wanted_scheduler: str  # "" where any is right
    scheduler: str
    last: int  # the CPU it ran on last

    @property
    def drifted(self) -> bool:
        """Whether the kernel does something else with it than was asked for."""
        return self.actual != self.wanted or self.wanted_scheduler not in ("", self.scheduler)


def threads(root: str, seen: Seen) -> list[Thread]:
    """Every thread that works for the guest, vCPUs first. Raises KvmsupError when QEMU cannot be asked."""
    claim = seen.claim
    if not claim or not seen.pid:
        return []
    try:
        named = guest_threads.ask(root + socket(seen.name, "admin.qmp"), seen.pid, claim, _PATIENCE_SECONDS)
    except QmpError as error:
        raise KvmsupError(f"QEMU of {seen.name} cannot be asked for its threads: {error}") from None
    duties = guest_threads.of_guest(root, seen.pid, claim, named)
    fenced = None if claim.dedicated else fence.current(root)
    return [_thread(root, tid, duty, fenced) for tid, duty in duties.items() if guest_threads.name(root, tid)]


def _thread(root: str, tid: int, duty: Duty, fenced: frozenset[int] | None) -> Thread:
    return Thread(
        tid=tid,
        name=guest_threads.name(root, tid),
        role=duty.role,
        wanted=duty.cpus if fenced is None else duty.cpus & fenced,
        actual=proc.allowed(f"{root}/proc/{tid}"),
        wanted_scheduler=duty.scheduler,
        scheduler=pin.scheduled(tid) or "",
        last=found.last_cpu if (found := proc.stat(f"{root}/proc/{tid}")) else -1,
    )


def cpu(root: str, seen: Seen) -> Running | None:
    """What a running guest's vCPUs have been given; None when it is down. Raises KvmsupError."""
    if not seen.pid:
        return None
    try:
        words = files.read(f"{root}/proc/{seen.pid}/cmdline").split("\0")
        model, features = told(words[words.index("-cpu") + 1])
        path = root + socket(seen.name, "admin.qmp")
        with qmp.Monitor(path, seen.pid, time.monotonic() + _PATIENCE_SECONDS) as monitor:
            monitor.negotiate()
            return Running(model, features, models.vcpu(monitor).missing)
    except (OSError, ValueError, IndexError):  # it is ending
        return None
    except QmpError as error:
        raise KvmsupError(f"QEMU of {seen.name} cannot be asked for its CPU model: {error}") from None


def state(root: str, seen: Seen) -> str | None:
    """What QEMU does with the guest: "running", "paused", "internal-error" (qapi/run-state.json, RunState).

    None where it is down. Raises KvmsupError.
    """
    if not seen.pid:
        return None
    try:
        path = root + socket(seen.name, "admin.qmp")
        with qmp.Monitor(path, seen.pid, time.monotonic() + _PATIENCE_SECONDS) as monitor:
            monitor.negotiate()
            found = monitor.execute("query-status")
    except QmpError as error:
        raise KvmsupError(f"QEMU of {seen.name} cannot be asked for its state: {error}") from None
    return files.printable(str(found.get("status"))[:40]) if isinstance(found, dict) else None


def vnc(root: str, seen: Seen) -> str | None:
    """The path of the socket on which a running guest's screen can be seen; None where it has none.

    None too for a link: the directory is QEMU's, who could lead root's viewer to another socket by it.
    """
    path = socket(seen.name, "vnc")
    try:
        is_socket = stat.S_ISSOCK(os.lstat(root + path).st_mode)
    except OSError:
        return None
    return path if seen.pid and is_socket else None


def balloon(root: str, seen: Seen) -> dict[str, Any] | None:
    """Sizes in bytes of a running guest with a balloon.

    What is `available` in it its driver tells, if it "answers"; None while that is "silent". Raises KvmsupError.
    """
    return _balloon(root, seen, lambda talk: balloons.ask(talk, _PATIENCE_SECONDS / 4), "silent")


def balloon_unasked(root: str, seen: Seen) -> dict[str, Any] | None:
    """As `balloon`, but the guest is left to sleep where the supervisor does not ask it anyway: it is "unasked"."""
    return _balloon(root, seen, lambda _talk: None, "unasked")


def _balloon(
    root: str, seen: Seen, ask: Callable[[qmp.Conversation], balloons.Statistics | None], otherwise: str
) -> dict[str, Any] | None:
    claim = seen.claim
    if not claim or not claim.balloon or not seen.pid:
        return None
    try:
        with balloons.monitor(root, seen.name, seen.pid, "admin", _PATIENCE_SECONDS) as talk:
            polled = claim.balloon_auto and balloons.interval(talk) == balloons.POLL_SECONDS
            told = balloons.latest(talk) if polled else ask(talk)
            actual = balloons.actual(talk)
    except QmpError as error:
        raise KvmsupError(f"QEMU of {seen.name} cannot be asked for its balloon: {error}") from None
    driver = "answers" if told else "silent" if polled else otherwise
    return {
        "size": claim.size,
        "min": claim.balloon,
        "automatic": claim.balloon_auto,
        "actual": actual,
        "driver": driver,
        "available": told.available if told else None,
        "free": told.free if told else None,
    }


def intruders(root: str, seen: Seen) -> list[Foreign]:
    """Threads that are not the guest's and ran on its own CPUs since it started; none for a shared guest."""
    claim = seen.claim
    if not claim or not seen.pid or not claim.own_cpus:
        return []
    own = {*cgroup.processes(root, claim), *guest_threads.of_kernel(root, seen.pid)}
    return foreign.threads(root, claim.own_cpus, own, seen.since_boot)


def memory(root: str, seen: Seen) -> dict[int, int]:
    """Hugepages of the guest's size that its QEMU holds, by node; empty for a guest with ordinary pages."""
    claim = seen.claim
    return {node: hugepages.faulted(root, claim, node) for node in claim.pages} if claim else {}


def resident(root: str, seen: Seen) -> list[Part]:
    """Where the memory of a running guest is, as far as it has been touched.

    What is bound is the guest's alone. Of a guest whose memory is not bound, QEMU's own is among it.
    """
    if not seen.claim or not seen.pid:
        return []
    return numa_maps.bound(root, seen.pid) if seen.claim.nodes else numa_maps.own(root, seen.pid)
