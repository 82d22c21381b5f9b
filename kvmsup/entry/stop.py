# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm@NAME, ExecStop=: press the guest's power button until it has shut down.

This waits for QEMU's end, presses again (a guest in its boot loader does not hear the first time), and gives up only
when the patience is over. A guest that is paused or asleep is made to go on, because it hears nothing as it is; one
that will never run again is cut off. An agent in the guest is asked as well, after the button: it costs no time, and
thaws file systems that are frozen.

What ends QEMU is here, to the last: systemd would kill it only when TimeoutStopSec= is over, which a QEMU that was
taken over can put off again and again where its unit lets it notify (sd_notify(3), EXTEND_TIMEOUT_USEC=).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

from kvmsup.effects import journal, proc, qmp, systemctl
from kvmsup.errors import HostError, KvmsupError, QmpError
from kvmsup.plan.paths import socket
from kvmsup.steps import step

_AGAIN_SECONDS = 5.0
# Of these, for the agent to answer in: it may hang, or not be there at all.
_AGENT_SECONDS = 1.0
# What is kept of TimeoutStopSec= for QEMU to quit after the patience, before it is killed, and then for systemd.
_QUIT_SECONDS = 10.0
# TimeoutStopSec= as kvm@.service has it, for when systemd cannot be asked.
_USUAL_TIMEOUT_SECONDS = 120.0


def main(name: str, root: str = "") -> int:
    """Power the guest called `name` down; 0 also when it had to be cut off, which is then said."""
    try:
        pid = int(os.environ["MAINPID"])
    except (KeyError, ValueError):
        return 0  # QEMU ended by itself
    return end(name, pid, root)


def end(name: str, pid: int, root: str) -> int:
    """As `main`, of the guest whose QEMU is `pid`; 1 when it could not be asked, or did not end and was killed."""
    with proc.descriptor(pid) as process:
        if process is None:
            return 0
        patience, to_quit = _spans(name)
        status = _asked(name, pid, root, patience, to_quit)
        if proc.kill_after(process, to_quit / 2):
            journal.say(journal.WARNING, "QEMU did not end when it was told to: it was killed", "killed")
            status = 1
    if os.environ.get("KVMSUP_ISOLATE") == "yes":
        from kvmsup.effects import partition  # for guests that are isolated alone

        partition.clear(root, name)
    return status


def _asked(name: str, pid: int, root: str, patience: float, to_quit: float) -> int:
    try:
        run(name, pid, root, patience, to_quit, has_agent=os.environ.get("KVMSUP_AGENT") == "yes")
    except KvmsupError as error:
        what = f"the guest could not be asked to power down: {error}: its power is cut"
        journal.say(journal.WARNING, what, "power-cut")
        proc.send(pid, signal.SIGTERM)
        return 1
    return 0


def _spans(name: str) -> tuple[float, float]:
    """Seconds to wait for the guest, and then for QEMU to quit: what the unit's TimeoutStopSec= leaves, which the user
    may have changed.
    """
    try:
        seconds = systemctl.stop_timeout(f"kvm@{name}.service")
    except HostError:
        seconds = _USUAL_TIMEOUT_SECONDS
    patience = max(seconds - 2 * _QUIT_SECONDS, seconds / 2)
    return patience, (seconds - patience) / 2


def run(
    name: str, pid: int, root: str, patience: float, to_quit: float = _QUIT_SECONDS, *, has_agent: bool = False
) -> None:
    """Power down, repeated, for `patience` seconds; then have QEMU quit, for `to_quit`.

    Raises KvmsupError when QEMU does not listen.
    """
    also = partial(_ask_agent, name, pid, root) if has_agent else _nobody
    deadline = time.monotonic() + patience
    if proc.is_stopped(f"{root}/proc/{pid}"):
        journal.say(journal.NOTICE, "QEMU was stopped by a signal: it goes on, so that the guest can shut down")
        proc.send(pid, signal.SIGCONT)
    step("stop.connect")
    try:
        with qmp.Monitor(root + socket(name, "control.qmp"), pid, deadline) as monitor:
            monitor.negotiate()
            if not _power_down(monitor, deadline, also):
                _cut(monitor, to_quit)
    except QmpError:
        if not proc.has_ended(pid):
            raise


def _cut(monitor: qmp.Monitor, to_quit: float) -> None:
    step("stop.quit")
    monitor.deadline = time.monotonic() + to_quit
    monitor.execute("quit")
    monitor.wait_for_end(to_quit)


def _nobody() -> None:
    """Ask nobody else: the guest has no agent."""


def _ask_agent(name: str, pid: int, root: str) -> None:
    """Ask the agent, and be content with whatever comes of it: the power button has been pressed."""
    from kvmsup.effects import agent  # only for guests that have one

    try:
        with agent.connected(root, name, pid, _AGENT_SECONDS) as talk:
            agent.shut_down(talk)
    except QmpError:
        pass


def _power_down(monitor: qmp.Monitor, deadline: float, also: Callable[[], None]) -> bool:
    """Whether QEMU ended before `deadline`; `also` is done each time after the power button.

    That the power has to be cut is said.
    """
    start = time.monotonic()
    while (now := time.monotonic()) < deadline:
        if not _hears(monitor):
            return False
        step("stop.powerdown")
        try:
            monitor.execute("system_powerdown")
        except QmpError:
            pass  # refused for now, or QEMU is ending: what follows tells
        also()
        step("stop.wait")
        if monitor.wait_for_end(max(0.0, min(now + _AGAIN_SECONDS, deadline) - time.monotonic())):
            return True
    what = f"the guest has not shut down within {deadline - start:.0f} s: cutting its power"
    journal.say(journal.WARNING, what, "power-cut")
    return False


# What a guest in one of these states (qapi/run-state.json, RunState) needs before it hears, and what is said of it.
_WAKING = {
    "paused": ("cont", "the guest was paused: it goes on, to shut down"),
    "debug": ("cont", "the guest was held by a debugger: it goes on, to shut down"),
    "watchdog": ("cont", "the guest was paused by its watchdog: it goes on, to shut down"),
    "io-error": ("cont", "the guest was paused by an error of a disk: it tries again, to shut down"),
    "suspended": ("system_wakeup", "the guest was asleep: it is woken, to shut down"),
}
# States that a guest never leaves by itself; before its first instruction there is nothing to lose.
_DEAD = {
    "internal-error": "KVM could not run the guest any further (internal-error): cutting its power",
    "guest-panicked": "the guest's kernel has panicked: cutting its power",
    "shutdown": "the guest has shut down, and was kept: cutting its power",
    "prelaunch": "",
}


def _hears(monitor: qmp.Monitor) -> bool:
    """Whether the guest can notice its power button, once it has been woken where it has to be."""
    try:
        found = monitor.execute("query-status")
        state = str(found.get("status")) if isinstance(found, dict) else ""
        if state in _DEAD:
            if _DEAD[state]:
                journal.say(journal.WARNING, _DEAD[state], "power-cut")
            return False
        if state in _WAKING:
            command, said = _WAKING[state]
            journal.say(journal.NOTICE, said)
            monitor.execute(command)
    except QmpError:
        pass  # as with the button: what follows tells
    return True
