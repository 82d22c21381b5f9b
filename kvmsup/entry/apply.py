# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecReload=: apply what the guest's file says now, as far as a running guest can change, and say the rest.

The file itself is read, whether or not systemd has loaded it. All that is refused is refused before anything is
touched. What is under way is written down first, so that after a kill at any moment the next reload does all of it
again; until then the supervisor moves threads to where the claim says, and lets a guest go on that was left paused.
"""

from __future__ import annotations

import contextlib
import os
import time

from kvmsup import cpulist
from kvmsup.effects import (
    balloon,
    claims,
    configs,
    fence,
    journal,
    kernel,
    ledger,
    qmp,
    reconfigure,
    running,
    settle,
    sysfs,
    threads,
)
from kvmsup.entry import stop, stopping
from kvmsup.entry.request import Request, requested
from kvmsup.errors import HostError, KvmsupError, QmpError
from kvmsup.model.claim import Claim
from kvmsup.plan import changes, duties, live
from kvmsup.plan.changes import Change
from kvmsup.plan.duties import Duty
from kvmsup.plan.paths import socket
from kvmsup.plan.placement import Placement
from kvmsup.steps import step

# Somebody who makes hugepages holds the lock for long. A stop that comes during a reload is a power cut (systemd's
# service_stop), so a reload rather fails than waits.
_LOCK_SECONDS = 5.0
_QMP_SECONDS = 10.0
# The kernel copies each merged page when merging ends, while QEMU waits for it.
_UNMERGE_SECONDS = 60.0


def main(name: str, root: str = "") -> int:
    """Apply the file of the guest called `name`; 0, or 1 with the reason on standard error."""
    try:
        pid = int(os.environ["MAINPID"])
    except (KeyError, ValueError):
        journal.say(journal.ERROR, "apply is run by systemctl reload, with MAINPID=")
        return 1
    try:
        stopping.listen()
        status = _applied(name, pid, root)
        stopping.deafen()
    except stopping.Stopping:
        return stop.end(name, pid, root)
    return status


def _applied(name: str, pid: int, root: str) -> int:
    try:
        run(name, pid, root)
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error), error.catalog or "reload-failed")
        return 1
    return 0


def run(name: str, pid: int, root: str) -> None:
    """Apply, and say what was applied and what needs a restart. Raises KvmsupError; the guest goes on in any case."""
    step("apply.configuration")
    request = requested(name, root)
    if request is None:
        raise HostError(f"{configs.guest_file(name)} is gone", f"{name} goes on as it is until it is stopped")
    step("apply.lock")
    try:
        with claims.lock_within(root, _LOCK_SECONDS):
            _Reload(request, pid, root).run()
    except claims.Busy:
        raise HostError("another guest is being set up or released", f"systemctl reload kvm@{name}, later") from None


class _Reload:
    """One reload, under the claims' lock. `claim` and `keys` are what is written down, and follow what is done."""

    def __init__(self, request: Request, pid: int, root: str) -> None:
        self.request, self.pid, self.root = request, pid, root
        self.guest, self.name = request.guest, request.guest.name
        step("apply.claims")
        standing = ledger.sweep(root, claims.read_all(root), keep=self.name)
        mine, keys = standing.pop(self.name, None), running.read(root, self.name)
        if mine is None or keys is None:
            what = f"it is not known what {self.name} was started with: kvmsup was an older one then"
            raise HostError(what, f"systemctl restart kvm@{self.name}")
        self.claim, self.keys, self.others = mine, keys, list(standing.values())
        self.wanted = changes.flatten(request.guest)
        self.before = dict(keys)

    def run(self) -> None:
        """Decide, apply, tell. Raises KvmsupError."""
        found = changes.decide(changes.differences(self.keys, self.wanted))
        step("apply.place")
        placement, found = self._place(found)
        keys = [change.key for change in found if change.how == changes.LIVE]
        new = live.claim_after(self.guest, self.claim, keys, placement)
        live.check_real_time(new)
        undone = self._undone()
        if keys or self.claim.paused or undone:
            step("apply.connect")
            deadline = time.monotonic() + _QMP_SECONDS
            with qmp.Monitor(self.root + socket(self.name, "control.qmp"), self.pid, deadline) as monitor:
                monitor.negotiate()
                self._apply(monitor, keys, new)
        if undone:
            journal.say(journal.NOTICE, f"CPU {cpulist.render(self.claim.isolated)} is isolated again: {undone}")
        self._finish(found)

    def _undone(self) -> str:
        """Why its CPUs are not isolated any more, "" where they are or never were."""
        if not self.claim.isolate:
            return ""
        from kvmsup.effects import partition  # for guests that are isolated alone

        return partition.amiss(self.root, self.claim)

    def _place(self, found: list[Change]) -> tuple[Placement | None, list[Change]]:
        """Where its threads go, if any of them moves; what the memory would have to follow waits for a restart."""
        keys = [change.key for change in found if change.how == changes.LIVE]
        if not live.moves(keys):
            return None, found
        request = self.request
        try:
            placed = live.place(request.guest, self.claim, keys, request.host, request.topology, self.others)
        except live.MemoryElsewhere as error:
            waits = [live.moves([change.key]) and change.how == changes.LIVE for change in found]
            later = {"how": changes.RESTART, "why": error.what}
            found = [one._replace(**later) if late else one for one, late in zip(found, waits, strict=True)]
            return None, found
        return placed, found

    def _apply(self, monitor: qmp.Monitor, keys: list[str], new: Claim) -> None:
        """All of `keys`, with which the claim is `new`; what has been done when one of them fails stays, and is
        written down. Raises KvmsupError.
        """
        named, old = threads.named_by_qemu(monitor, self.claim), self.claim
        step("apply.intend")
        running.write(self.root, self.name, changes.unsure(self.keys, keys))
        self.keys = changes.unsure(self.keys, keys)
        try:
            self._move(named, old, new)
            others = [key for key in keys if not key.startswith(("cpu.", "memory."))]
            self.keys = changes.settled(self.keys, self.wanted, others)
            step("apply.memory")
            self._memory(monitor, [key for key in keys if key.startswith("memory.")])
            if "cpu.vcpus" in keys:
                self._add_vcpus(monitor)
            elif self.claim.paused:
                self._go_on(monitor)
        finally:
            running.write(self.root, self.name, self.keys)

    def _move(self, named: duties.Named, old: Claim, new: Claim) -> None:
        """Claim, then move every thread to where the claim says. Raises KvmsupError with all as it was."""
        self._claim(new)
        try:
            fence.settle(self.root, [*self.others, new])
            self._isolate()
            step("apply.pin")
            self._pin(named, bool(old.scheduler and not new.scheduler))
        except KvmsupError:
            self._claim(old)
            self.keys = self.before
            with contextlib.suppress(KvmsupError):  # what is told is why, and the supervisor looks again
                fence.settle(self.root, [*self.others, old])
                self._isolate()
                self._pin(named, bool(new.scheduler and not old.scheduler))
            raise

    def _isolate(self) -> None:
        """Isolate the CPUs that the claim has now, where they are others. Raises HostError."""
        step("apply.isolate")
        if not self.claim.isolate:
            return
        from kvmsup.effects import masks, partition  # for guests that are isolated alone

        masks.settle(self.root, [*self.others, self.claim])
        if partition.amiss(self.root, self.claim):
            partition.build(self.root, self.claim, self.pid)
            partition.settle(self.root, [*self.others, self.claim])

    def _claim(self, claim: Claim) -> None:
        claims.write(self.root, claim)
        self.claim = claim

    def _pin(self, named: duties.Named, ordinary: bool) -> None:
        """Every thread by the claim; vCPUs are made `ordinary` where they had a scheduler and have none now."""
        for tid, duty in threads.of_guest(self.root, self.pid, self.claim, named).items():
            if ordinary and tid in named.vcpu.values():
                duty = duty._replace(scheduler=duties.ORDINARY)
            self._pin_one(tid, duty)

    def _pin_one(self, tid: int, duty: Duty) -> None:
        online, fenced = sysfs.online(self.root), fence.current(self.root)
        settle.restore(self.root, self.claim, tid, duties.now(duty, self.claim, online, fenced))

    def _memory(self, monitor: qmp.Monitor, keys: list[str]) -> None:
        memory = self.guest.memory
        if "memory.ksm" in keys and not memory.page_size:
            monitor.deadline = time.monotonic() + _UNMERGE_SECONDS
            for number in range(len(self.claim.cells) or 1):
                reconfigure.set_merging(monitor, f"mem{number}", memory.ksm)
            monitor.deadline = time.monotonic() + _QMP_SECONDS
        if memory.balloon and any(key.startswith("memory.balloon.") for key in keys):
            if balloon.actual(monitor) < memory.balloon.least:
                balloon.resize(monitor, memory.balloon.least)
            if not memory.balloon.auto:
                balloon.poll(monitor, 0)
        self.keys = changes.settled(self.keys, self.wanted, keys)

    def _add_vcpus(self, monitor: qmp.Monitor) -> None:
        """Add those that are missing. The guest is paused until each has its place. Raises KvmsupError."""
        wanted = self.guest.cpu.vcpus
        missing = [slot for slot in self._slots(monitor)[:wanted] if not slot.there]
        if missing and (self.claim.paused or reconfigure.running(monitor)):
            step("apply.pause")
            self._claim(self.claim._replace(paused=True))
            monitor.execute("stop")
        try:
            failed = self._add(monitor, missing)
            there = sum(slot.there for slot in self._slots(monitor))
            self._claim(self.claim._replace(vcpus=there))
            self.keys = self.keys | {"cpu.vcpus": there}
        finally:
            if self.claim.paused:
                self._go_on(monitor)
        if failed:
            raise HostError(f"{failed}; the guest goes on with {there} of {wanted} vCPUs")

    def _add(self, monitor: qmp.Monitor, missing: list[reconfigure.Slot]) -> str:
        """Add and pin those; says why not all of them, "" when they are."""
        try:
            for slot in missing:
                step("apply.add")
                tid = reconfigure.add(monitor, slot)
                step("apply.pin-added")
                self._pin_added(slot.vcpu, tid)
        except KvmsupError as error:
            return error.what
        return ""

    def _slots(self, monitor: qmp.Monitor) -> list[reconfigure.Slot]:
        """Raises QmpError, also when there are others than the claim has CPUs for: a claim is what others read."""
        slots = reconfigure.slots(monitor)
        there, most = sum(slot.there for slot in slots), len(self.claim.vcpu)
        if len(slots) != most or there < self.claim.vcpus:
            raise QmpError(f"QEMU says that {there} of {len(slots)} vCPUs are there, {most} were asked for")
        return slots

    def _pin_added(self, index: int, tid: int) -> None:
        if tid not in threads.of_process(self.root, self.pid):
            raise QmpError(f"QEMU named a thread that it does not have: {tid}")
        self._pin_one(tid, Duty(f"vCPU {index}", self.claim.vcpu[index], self.claim.scheduler))
        if self.claim.core_scheduling and not kernel.core_cookie(tid):
            raise HostError(f"vCPU {index} (thread {tid}) shares its core with anybody")

    def _go_on(self, monitor: qmp.Monitor) -> None:
        step("apply.run")
        # A QEMU that has used up the time for all else is told this all the same.
        monitor.deadline = time.monotonic() + _QMP_SECONDS
        monitor.execute("cont")
        self._claim(self.claim._replace(paused=False))

    def _finish(self, found: list[Change]) -> None:
        """Write down what the guest runs with from now on, and tell."""
        step("apply.hold")
        left = {change.key: change for change in changes.decide(changes.differences(self.keys, self.wanted))}
        found = [left.get(change.key, change) if change.how == changes.LIVE else change for change in found]
        later = [change for change in found if change.how == changes.RESTART]
        loaded = live.loaded(self.claim.loaded, self.request.loaded, bool(later))
        if loaded != self.claim.loaded:
            self._claim(self.claim._replace(loaded=loaded))
        for change in found:
            if change.how == changes.LIVE:
                journal.say(journal.NOTICE, f"{change.told}, applied")
            else:
                told = f"{change.told}, needs a restart{change.why and f': {change.why}'}"
                journal.say(journal.NOTICE, told, "needs-restart")
        if not found:
            journal.say(journal.NOTICE, f"{self.name} runs with all that {configs.guest_file(self.name)} says")
