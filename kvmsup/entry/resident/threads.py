# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keep guests' threads, and what is fenced off and moved away for them, where they should be."""

from __future__ import annotations

import time
from collections.abc import Mapping

from kvmsup.effects import claims, fence, journal, settle, systemctl
from kvmsup.entry.resident.lock import lock_now
from kvmsup.errors import KvmsupError

_SECOND_LOOK_SECONDS = 1.0
# While somebody is at the claims: not for long, but where hugepages are made.
_BUSY_SECONDS = 0.5
# CPUs that come and go do so one by one, and the kernel moves threads before it says so.
_CALM_SECONDS = 0.3
# A host too busy for an answer is asked again.
_PATIENCE_SECONDS = 10.0


class Threads:
    """Looks at a guest's threads after its start, and at every guest's after anything that may have moved them."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.when: dict[str, float] = {}  # guests whose threads are to be looked at, and when
        self.shaken_by: dict[str, str] = {}  # guest → why that is
        self.unseen: set[str] = set()  # guests whose QEMU does not answer, of which that has been told

    def job_finished(self, unit: str) -> None:
        if unit.startswith("kvm@"):
            guest = unit.removeprefix("kvm@").removesuffix(".service")
            self.when[guest] = time.monotonic() + _SECOND_LOOK_SECONDS

    def shaken(self, what: str, /) -> None:
        soon = time.monotonic() + _CALM_SECONDS
        for guest in claims.names(self.root):
            self.when[guest] = min(self.when.get(guest, soon), soon)
            self.shaken_by[guest] = what

    def due(self) -> float | None:
        return min(self.when.values(), default=None)

    def act(self) -> None:
        """Put back the threads that are not where they should be, those too that were born after attach was done."""
        now = time.monotonic()
        units = {guest: f"kvm@{guest}.service" for guest, when in self.when.items() if when <= now}
        for guest in units:
            # Once more if anything fails from here on; what succeeds strikes it out.
            self.when[guest] = now + _PATIENCE_SECONDS
        try:
            self._settle_host()
        except claims.Busy:
            self.when |= dict.fromkeys(units, now + _BUSY_SECONDS)
            return
        running = _running(units)
        for guest in units:
            del self.when[guest]
            why = self.shaken_by.pop(guest, "")
            if guest in running:
                self._settle(guest, running[guest], why)
            else:
                self.unseen.discard(guest)

    def _settle_host(self) -> None:
        """Put back what is fenced off and moved away for all guests. Raises KvmsupError, Busy among it."""
        with lock_now(self.root):
            known = list(claims.read_all(self.root).values())
            fence.settle(self.root, known)
            if any(claim.isolate for claim in known):
                from kvmsup.effects import masks  # for hosts with such guests alone

                # A CPU that goes offline takes masks with it (kernel/irq/cpuhotplug.c, migrate_one_irq).
                masks.settle(self.root, known)

    def _settle(self, guest: str, pid: int, why: str) -> None:
        try:
            for told in settle.guest(self.root, guest, pid):
                told = f"after {why}: {told}" if why else told
                journal.tell(self.root, guest, journal.WARNING, told, "threads-moved")
            # Its threads are in place now.
            if settle.is_paused(self.root, guest):
                self._resume(guest, pid)
            self.unseen.discard(guest)
        except claims.Busy:
            self.when[guest] = time.monotonic() + _SECOND_LOOK_SECONDS
        except KvmsupError as error:
            self.when[guest] = time.monotonic() + _PATIENCE_SECONDS  # once more if anything fails from here on
            if guest not in _running({guest: f"kvm@{guest}.service"}):  # it has ended meanwhile
                del self.when[guest]
                return
            if guest not in self.unseen:
                told = f"its threads could not be looked at: {error}"
                journal.tell(self.root, guest, journal.WARNING, told, "threads-unseen")
            if settle.is_paused(self.root, guest):  # until it goes on
                self.unseen.add(guest)
            else:
                del self.when[guest]

    def _resume(self, guest: str, pid: int) -> None:
        """Raises KvmsupError, and Busy while somebody, such as the reload that has paused it, is at the claims."""
        with lock_now(self.root):
            resumed = settle.resume(self.root, guest, pid)
        if resumed:
            told = "a reload that ended in the middle had left it paused"
            journal.tell(self.root, guest, journal.WARNING, told, "left-paused")


def _running(units: Mapping[str, str]) -> dict[str, int]:
    """QEMU's pid by guest, of those of `units` that run.

    One that is only starting is attach's, and will be looked at when it has; one that stops need not be.
    """
    shown = systemctl.show(list(units.values()), ("ActiveState", "MainPID"))
    found = {guest: shown.get(unit, {}) for guest, unit in units.items()}
    pids = {guest: int(one.get("MainPID") or 0) for guest, one in found.items() if one.get("ActiveState") == "active"}
    return {guest: pid for guest, pid in pids.items() if pid}
