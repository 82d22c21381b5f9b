# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's balloon, over QMP: how large the guest is, how large it should be, and what it says of its own memory.

QEMU's docs/interop/virtio-balloon-stats.rst: statistics come from the guest's driver while somebody polls them.
"""

from __future__ import annotations

import time

from kvmsup.effects import qmp
from kvmsup.errors import QmpError
from kvmsup.plan.paths import socket
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

_DEVICE = "/machine/peripheral/balloon"
_INTERVAL = "guest-stats-polling-interval"
# The supervisor's, so that each of its turns sees what the last one did; and that of somebody who asks once.
POLL_SECONDS, _ONCE_SECONDS = 2, 1
_FRESH_SECONDS = 3 * POLL_SECONDS
# What the driver does not tell is -1 in 64 bits (include/standard-headers/linux/virtio_balloon.h).
_UNSET = (1 << 64) - 1


class Statistics(NamedTuple):
    """What the guest's driver told; bytes, and counts since the guest's boot. None of it needs to be true.

    `last` is when, in whole seconds of the host's clock at that time, which somebody may have set since.
    """

    available: int
    free: int
    swapped_out: int
    major_faults: int
    last: int


def monitor(root: str, guest: str, pid: int, whose: str, patience: float) -> qmp.Monitor:
    """The monitor that is `whose` (supervisor or admin), ready for `patience` seconds. Raises QmpError."""
    found = qmp.Monitor(root + socket(guest, f"{whose}.qmp"), pid, time.monotonic() + patience)
    try:
        found.negotiate()
    except BaseException:
        found.close()
        raise
    return found


def actual(talk: qmp.Conversation) -> int:
    """The guest's size now, in bytes: all of it where there is no driver. Raises QmpError."""
    try:
        return int(talk.execute("query-balloon")["actual"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise QmpError("QEMU's size of the balloon is not as its schema says") from None


def resize(talk: qmp.Conversation, size: int) -> None:
    """Ask the guest to become `size` bytes; its driver takes its time. Raises QmpError."""
    talk.execute("balloon", value=size)


def interval(talk: qmp.Conversation) -> int:
    """Seconds between two looks at the guest's statistics; 0 while nobody polls them. Raises QmpError."""
    found = talk.execute("qom-get", path=_DEVICE, property=_INTERVAL)
    return found if isinstance(found, int) else 0


def poll(talk: qmp.Conversation, seconds: int) -> bool:
    """Have the guest's statistics polled; with 0 no more, so that an idle guest is left to sleep.

    Returns whether that is a change. Raises QmpError.
    """
    if interval(talk) == seconds:
        return False
    talk.execute("qom-set", path=_DEVICE, property=_INTERVAL, value=seconds)
    return True


def statistics(talk: qmp.Conversation) -> Statistics | None:
    """What the guest told last; None where it has told nothing. Raises QmpError."""
    answer = talk.execute("qom-get", path=_DEVICE, property="guest-stats")
    try:
        found, last = dict(answer["stats"]), int(answer["last-update"])
        free = _number(found, "stat-free-memory")
        # Drivers older than Linux 3.19 tell only what is free.
        available = _number(found, "stat-available-memory")
        swapped, faults = _number(found, "stat-swap-out"), _number(found, "stat-major-faults")
    except (KeyError, TypeError, ValueError, OverflowError):
        raise QmpError("QEMU's statistics of the guest are not as its documentation says") from None
    if not last or free is None:
        return None
    return Statistics(
        available=free if available is None else available,
        free=free,
        swapped_out=swapped or 0,
        major_faults=faults or 0,
        last=last,
    )


def _number(stats: dict[str, Any], name: str) -> int | None:
    value = int(stats.get(name, _UNSET))
    return None if value < 0 or value == _UNSET else value


def latest(talk: qmp.Conversation) -> Statistics | None:
    """The statistics of a guest that the supervisor polls; None where they are not of now. Raises QmpError."""
    found = statistics(talk)
    # From the future: the clock has been set back since.
    return found if found and 0 <= int(time.time()) - found.last <= _FRESH_SECONDS else None


def ask(talk: qmp.Conversation, patience: float) -> Statistics | None:
    """The statistics as of now, of a guest that nobody polls; None without an answer in `patience` seconds.

    Nobody polls it afterwards: who was killed while asking may have left it polled. Raises QmpError.
    """
    before, start, deadline = statistics(talk), int(time.time()), time.monotonic() + patience
    poll(talk, 0)  # QEMU asks the driver at once when polling begins, not when it goes on
    poll(talk, _ONCE_SECONDS)
    try:
        # QEMU keeps whole seconds (hw/virtio/virtio-balloon.c, stats_last_update).
        while not (found := statistics(talk)) or found.last == (before.last if before else 0) != start:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return found
    finally:
        if interval(talk) == _ONCE_SECONDS:  # or it is the supervisor's by now
            poll(talk, 0)
