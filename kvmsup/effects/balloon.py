# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's balloon, over QMP: how large the guest is, how large it should be, and what it says of its own memory.

QEMU's docs/interop/virtio-balloon-stats.rst: statistics come from the guest's driver while somebody polls them.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from kvmsup.effects import qmp
from kvmsup.errors import QmpError
from kvmsup.plan.paths import socket

_DEVICE = "/machine/peripheral/balloon"
_INTERVAL = "guest-stats-polling-interval"
# What the driver does not tell is -1 in 64 bits (include/standard-headers/linux/virtio_balloon.h).
_UNSET = (1 << 64) - 1


class Statistics(NamedTuple):
    """What the guest's driver told `age` seconds ago; bytes, and counts since the guest's boot."""

    available: int
    free: int
    swapped_out: int
    major_faults: int
    age: float


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
        age=max(0.0, time.time() - last),
    )


def _number(stats: dict[str, Any], name: str) -> int | None:
    value = int(stats.get(name, _UNSET))
    return None if value < 0 or value == _UNSET else value


def ask(talk: qmp.Conversation, patience: float) -> Statistics | None:
    """The guest's statistics as of now, also while nobody polls them; None without an answer. Raises QmpError."""
    if interval(talk):
        return statistics(talk)
    start = time.time()
    poll(talk, 1)
    try:
        # QEMU keeps whole seconds (hw/virtio/virtio-balloon.c, stats_last_update).
        while (found := statistics(talk)) is None or found.age > time.time() - int(start):
            if time.time() > start + patience:
                return None
            time.sleep(0.02)
        return found
    finally:
        poll(talk, 0)
