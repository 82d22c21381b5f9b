# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup.service: what must be done for the host while guests run. No guest depends on it staying alive.

It keeps no state: at every finished job of a guest's units it looks at the claims again. It sleeps in between.
"""

from __future__ import annotations

import os
import selectors
import signal
import time

from kvmsup.effects import cgroup, claims, configs, journal, ksm, ledger, pin, qmp, systemd
from kvmsup.errors import ConfigError, KvmsupError
from kvmsup.model import config
from kvmsup.model.guest import Host
from kvmsup.plan import ksm as policy
from kvmsup.plan.qemu import socket


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
_QMP_SECONDS = 2.0


class Supervisor:
    """The resident loop over D-Bus and signals."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.host = Host(None, "never")
        self.merging = False
        self.stale = True
        self.due: dict[str, float] = {}  # guests whose threads are to be looked at, and when

    def run(self) -> None:
        """Adopt what runs, say READY, and follow. Raises KvmsupError."""
        stopped = _signal_pipe()
        jobs = systemd.Jobs(self.job_finished)
        with claims.lock(self.root):
            ledger.sweep(self.root, claims.read_all(self.root))
        self.look()
        systemd.notify(ready=1)
        with selectors.DefaultSelector() as selector:
            selector.register(stopped, selectors.EVENT_READ)
            selector.register(jobs, selectors.EVENT_READ)
            while not any(key.fileobj == stopped for key, _ in selector.select(self._pause())):
                jobs.dispatch()
                if self.stale:
                    self.look()
                self.look_at_threads()

    def job_finished(self, unit: str) -> None:
        """Claims come and go with the jobs of guests' units."""
        self.stale = self.stale or unit.startswith(("kvm-setup@", "kvm@"))
        if unit.startswith("kvm@"):
            guest = unit.removeprefix("kvm@").removesuffix(".service")
            self.due[guest] = time.monotonic() + _SECOND_LOOK_SECONDS

    def _pause(self) -> float | None:
        """Seconds to sleep until something is due; None, for ever, while nothing is."""
        return max(0.0, min(self.due.values()) - time.monotonic()) if self.due else None

    def look_at_threads(self) -> None:
        """Gather the threads that were born after attach was done with a guest."""
        for guest in [guest for guest, when in self.due.items() if when <= time.monotonic()]:
            del self.due[guest]
            try:
                self._gather(guest)
            except KvmsupError as error:
                journal.say(journal.WARNING, f"{guest}: {error}")

    def _gather(self, guest: str) -> None:
        claim = claims.read(self.root, guest)
        if claim is None:
            return
        for pid in cgroup.processes(self.root, claim):
            vcpus = qmp.ask_vcpu_threads(self.root + socket(guest, "supervisor.qmp"), pid, _QMP_SECONDS).values()
            pin.gather(self.root, pid, vcpus, claim.emulator)

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
    """A descriptor that becomes readable at SIGTERM or SIGINT, so that the loop has one place to wait."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reading
