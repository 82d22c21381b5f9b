# SPDX-License-Identifier: LGPL-2.1-or-later
"""That kvm@NAME is to stop, heard by a program that systemd runs beside QEMU.

A unit that is stopped while it starts or reloads has no ExecStop=: systemd sends KillSignal= to QEMU and to that
program at once. It is a signal that QEMU pays no attention to, so that a guest never loses its power by it, and the
program sees to the guest.
"""

from __future__ import annotations

import signal

from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

# What QEMU kicks its vCPU threads with: blocked in all others, harmless in these (QEMU's SIG_IPI; system/main-loop.c,
# qemu_signal_init; accel/kvm/kvm-all.c, kvm_ipi_signal). A program of ours that does not listen ends by it.
KILL_SIGNAL = signal.SIGUSR1


class Stopping(BaseException):
    """The unit is to stop. Nothing but the program's entry point catches it.

    `came` says that it was raised: what somebody's `finally` raises takes its place.
    """

    came = False


def listen() -> None:
    """Have Stopping raised, once, wherever the program is when the signal comes: here, if it has come already.

    Until then the unit has it blocked (env --block-signal).
    """
    Stopping.came = False
    signal.signal(KILL_SIGNAL, _heard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (KILL_SIGNAL,))


def deafen() -> None:
    """A stop is not heard any more, by whoever is done, or is about to do what it would ask for.

    Raises Stopping where one has come before.
    """
    signal.signal(KILL_SIGNAL, signal.SIG_IGN)
    if Stopping.came:
        raise Stopping


def _heard(*_: object) -> NoReturn:
    signal.signal(KILL_SIGNAL, signal.SIG_IGN)
    Stopping.came = True
    raise Stopping
