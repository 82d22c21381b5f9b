# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup.service: what must be done for the host while guests run. No guest depends on it staying alive.

What it does is in kvmsup.entry.resident. It keeps no state that cannot be had again from the claims and the kernel.
"""

from __future__ import annotations

import os
import selectors
import signal
import time

from kvmsup.effects import journal, systemd, udev
from kvmsup.entry.resident import Task
from kvmsup.entry.resident.ballooning import Ballooning
from kvmsup.entry.resident.merging import Merging
from kvmsup.entry.resident.sweeping import Sweeping
from kvmsup.entry.resident.threads import Threads
from kvmsup.errors import KvmsupError


def main(root: str = "") -> int:
    """Run until SIGTERM; 0, or 1 with the reason on standard error."""
    try:
        Supervisor(root).run()
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error), "supervisor-failed")
        return 1
    return 0


class Supervisor:
    """The resident loop over D-Bus, the kernel's events and signals, in which the tasks take their turns."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.ballooning = Ballooning(root)
        self.sweeping = Sweeping(root)
        self.tasks: tuple[Task, ...] = (
            self.sweeping,
            Merging(root, lambda status: systemd.notify(status=status)),
            Threads(root),
            self.ballooning,
        )

    def run(self) -> None:
        """Adopt what runs, say READY, and follow. Raises KvmsupError."""
        signals = _signal_pipe()
        bus = systemd.Signals(self.job_finished, self.shaken)
        cpus = udev.CpuEvents()
        self.take_turns()
        systemd.notify(ready=1)
        self.shaken("start of the supervisor")
        with selectors.DefaultSelector() as selector:
            for source in (signals, bus, cpus, self.ballooning.alarm):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(self._pause())}
                if signals in ready and not self._again(signals):
                    return self._take_turn(self.sweeping)  # it may have been kept until a start was called off
                bus.dispatch()
                if self.ballooning.alarm in ready:
                    self.ballooning.alarmed()
                for event in cpus.dispatch():
                    self.shaken(event)
                self.take_turns()

    def _again(self, signals: int) -> bool:
        """Whether the signals that came are wishes to look again (SIGHUP), and none to end."""
        if set(os.read(signals, 64)) != {signal.SIGHUP}:
            return False
        self.shaken("reload")
        return True

    def job_finished(self, unit: str) -> None:
        for task in self.tasks:
            task.job_finished(unit)

    def shaken(self, what: str) -> None:
        for task in self.tasks:
            task.shaken(what)

    def _pause(self) -> float | None:
        """Seconds to sleep until something is due; None, for ever, while nothing is."""
        due = [when for task in self.tasks if (when := task.due()) is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def take_turns(self) -> None:
        """Let each task act that is due; what goes wrong with one is told and is not the others' concern."""
        for task in self.tasks:
            when = task.due()
            if when is not None and when <= time.monotonic():
                self._take_turn(task)

    def _take_turn(self, task: Task) -> None:
        try:
            task.act()
        except KvmsupError as error:
            journal.say(journal.WARNING, str(error), "supervisor-failed")


def _signal_pipe() -> int:
    """A descriptor from which the numbers of signals can be read, so that the loop has one place to wait."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading
