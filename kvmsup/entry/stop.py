# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStop=: press the guest's power button until it has shut down.

SIGTERM, which systemd sends once this program has ended, is a power cut for the guest. So this waits for QEMU's end,
presses again (a guest in its boot loader does not hear the first time), and gives up only when the patience is over.
"""

from __future__ import annotations

import os
import select
import time

from kvmsup.effects import journal, qmp, systemctl
from kvmsup.errors import HostError, KvmsupError, QmpError
from kvmsup.plan.qemu import socket
from kvmsup.steps import step

_AGAIN_SECONDS = 5.0
# What is kept of TimeoutStopSec= for QEMU to quit after the patience, before systemd's SIGKILL.
_QUIT_SECONDS = 10.0
# TimeoutStopSec= as kvm@.service has it, for when systemd cannot be asked.
_USUAL_TIMEOUT_SECONDS = 120.0


def main(name: str, root: str = "") -> int:
    """Power the guest called `name` down; 0 also when it had to be cut off, which is then said."""
    try:
        pid = int(os.environ["MAINPID"])
    except (KeyError, ValueError):
        return 0  # QEMU ended by itself
    try:
        run(name, pid, root, _patience(name))
    except KvmsupError as error:
        journal.say(journal.WARNING, f"the guest could not be asked to power down: {error}")
        return 1
    return 0


def _patience(name: str) -> float:
    """Seconds to wait for the guest: what the unit's TimeoutStopSec= leaves, which the user may have changed."""
    try:
        seconds = systemctl.stop_timeout(f"kvm@{name}.service")
    except HostError:
        seconds = _USUAL_TIMEOUT_SECONDS
    return max(seconds - 2 * _QUIT_SECONDS, seconds / 2)


def run(name: str, pid: int, root: str, patience: float) -> None:
    """Power down, repeated, for `patience` seconds; then quit QEMU. Raises KvmsupError when QEMU does not listen."""
    deadline = time.monotonic() + patience
    step("stop.connect")
    try:
        with qmp.Monitor(root + socket(name, "control.qmp"), pid, deadline) as monitor:
            monitor.negotiate()
            if not _power_down(monitor, deadline):
                _cut(monitor, patience)
    except QmpError:
        if not _ended(pid):
            raise


def _cut(monitor: qmp.Monitor, patience: float) -> None:
    journal.say(journal.WARNING, f"the guest has not shut down within {patience:.0f} s: cutting its power")
    step("stop.quit")
    monitor.deadline = time.monotonic() + _QUIT_SECONDS
    monitor.execute("quit")
    monitor.wait_for_end(_QUIT_SECONDS)


def _power_down(monitor: qmp.Monitor, deadline: float) -> bool:
    """Whether QEMU ended before `deadline`."""
    while time.monotonic() < deadline:
        step("stop.powerdown")
        try:
            monitor.execute("system_powerdown")
        except QmpError:
            pass  # refused for now, or QEMU is ending: what follows tells
        step("stop.wait")
        if monitor.wait_for_end(min(_AGAIN_SECONDS, max(0.0, deadline - time.monotonic()))):
            return True
    return False


def _ended(pid: int) -> bool:
    """Whether the process has ended, also while nobody has collected it yet."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return bool(select.select([process], [], [], 0)[0])
    finally:
        os.close(process)
