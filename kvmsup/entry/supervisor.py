# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup.service: what must be done for the host while guests run. No guest depends on it staying alive.

It keeps no state: at every finished job of a guest's units it looks at the claims again. It sleeps in between.
"""

from __future__ import annotations

import os
import selectors
import signal
import time

from kvmsup.effects import claims, configs, fence, journal, ksm, ledger, settle, sysfs, systemctl, systemd, udev
from kvmsup.errors import ConfigError, KvmsupError
from kvmsup.model import config
from kvmsup.model.guest import Host
from kvmsup.plan import ksm as policy


def main(root: str = "") -> int:
    """Run until SIGTERM; 0, or 1 with the reason on standard error."""
    try:
        Supervisor(root).run()
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error))
        return 1
    return 0


def restore(root: str = "") -> int:
    """ExecStopPost=: whatever ended the supervisor, the host's settings are as they were found."""
    try:
        ksm.restore(root)
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error))
        return 1
    return 0


_SECOND_LOOK_SECONDS = 1.0
# CPUs that come and go do so one by one, and the kernel moves threads before it says so.
_CALM_SECONDS = 0.3


class Supervisor:
    """The resident loop over D-Bus, the kernel's events and signals."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.host = Host(None, "never")
        self.merging = False
        self.stale = True
        self.due: dict[str, float] = {}  # guests whose threads are to be looked at, and when
        self.shaken_by: dict[str, str] = {}  # guest → why that is

    def run(self) -> None:
        """Adopt what runs, say READY, and follow. Raises KvmsupError."""
        signals = _signal_pipe()
        bus = systemd.Signals(self.job_finished, self.shaken)
        cpus = udev.CpuEvents()
        with claims.lock(self.root):
            ledger.sweep(self.root, claims.read_all(self.root))
        self.look()
        systemd.notify(ready=1)
        self.shaken("start of the supervisor")
        with selectors.DefaultSelector() as selector:
            for source in (signals, bus, cpus):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(self._pause())}
                if signals in ready and not self._again(signals):
                    return
                bus.dispatch()
                for event in cpus.dispatch():
                    self.shaken(event)
                if self.stale:
                    self.look()
                self.look_at_threads()

    def _again(self, signals: int) -> bool:
        """Whether the signals that came are wishes to look again (SIGHUP), and none to end."""
        if set(os.read(signals, 64)) != {signal.SIGHUP}:
            return False
        self.shaken("reload")
        return True

    def job_finished(self, unit: str) -> None:
        """Claims come and go with the jobs of guests' units."""
        self.stale = self.stale or unit.startswith(("kvm-setup@", "kvm@"))
        if unit.startswith("kvm@"):
            guest = unit.removeprefix("kvm@").removesuffix(".service")
            self.due[guest] = time.monotonic() + _SECOND_LOOK_SECONDS

    def shaken(self, what: str) -> None:
        """Something has happened after which the threads of every guest may be elsewhere."""
        for guest in claims.names(self.root):
            self.due[guest] = time.monotonic() + _CALM_SECONDS
            self.shaken_by[guest] = what

    def _pause(self) -> float | None:
        """Seconds to sleep until something is due; None, for ever, while nothing is."""
        return max(0.0, min(self.due.values()) - time.monotonic()) if self.due else None

    def look_at_threads(self) -> None:
        """Put back the threads that are not where they should be, those too that were born after attach was done."""
        due = [guest for guest, when in self.due.items() if when <= time.monotonic()]
        if not due:
            return
        try:
            with claims.lock(self.root):
                fence.settle(self.root, sysfs.online(self.root), list(claims.read_all(self.root).values()))
        except KvmsupError as error:
            journal.say(journal.WARNING, str(error))
        units = {guest: f"kvm@{guest}.service" for guest in due}
        shown = systemctl.show(list(units.values()), ("ActiveState", "MainPID"))
        for guest, unit in units.items():
            del self.due[guest]
            why = self.shaken_by.pop(guest, "")
            # One that is only starting is attach's, and will be looked at when it has; one that stops need not be.
            if shown[unit]["ActiveState"] == "active":
                self._settle(guest, int(shown[unit]["MainPID"]), why)

    def _settle(self, guest: str, pid: int, why: str) -> None:
        try:
            for told in settle.guest(self.root, guest, pid):
                journal.tell(self.root, guest, journal.WARNING, f"after {why}: {told}" if why else told)
        except KvmsupError as error:
            journal.tell(self.root, guest, journal.WARNING, f"its threads could not be looked at: {error}")

    def look(self) -> None:
        """Bring the host to what the present guests ask for. Raises KvmsupError."""
        self.stale = False
        self._read_host()
        known = claims.read_all(self.root).values()
        wanted = policy.wanted(self.host.ksm, known)
        if wanted != self.merging and ksm.available(self.root):
            consenting = ", ".join(claim.guest for claim in known if claim.ksm)
            if wanted:
                ksm.start(self.root)
                journal.say(journal.NOTICE, f"KSM is on for {consenting}")
            else:
                ksm.restore(self.root)
                journal.say(journal.NOTICE, "KSM is as it was found: no guest asks for it")
            self.merging = wanted
            systemd.notify(status=f"KSM on for {consenting}" if wanted else "KSM not in use")

    def _read_host(self) -> None:
        """Take the host's file as it is now; while it is wrong, the last good one holds."""
        try:
            self.host = config.read_host(configs.HOST_FILE, configs.read_host(self.root))
        except ConfigError as error:
            journal.say(journal.WARNING, str(error))


def _signal_pipe() -> int:
    """A descriptor from which the numbers of signals can be read, so that the loop has one place to wait."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading
