# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's alarm when tasks of the host wait for memory (Documentation/accounting/psi.rst, "Monitoring")."""

from __future__ import annotations

import os
import select

# 200 ms of waiting within 2 s. Other windows than multiples of 2 s are for those with CAP_SYS_RESOURCE alone, and on
# older kernels all are (kernel/sched/psi.c, psi_trigger_create and psi_open).
_TRIGGER = b"some 200000 2000000\0"


class Alarm:
    """Becomes readable, for whoever polls it, at each alarm while it is `armed`; being polled is what takes it back.

    The kernel says POLLPRI, for which selectors have no word: so this is an epoll of its own, with that one file.
    """

    def __init__(self, root: str) -> None:
        self._path = f"{root}/proc/pressure/memory"
        self._epoll = select.epoll()
        self._file = -1

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def armed(self) -> bool:
        return self._file >= 0

    def arm(self) -> bool:
        """Whether it is armed now: not on a kernel without PSI, or one that has no alarms for this process."""
        if self.armed:
            return True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.write(file, _TRIGGER)
            self._epoll.register(file, select.EPOLLPRI)
        except OSError:
            os.close(file)
            return False
        self._file = file
        return True

    def disarm(self) -> None:
        """Let the host's tasks wait unheard; closing the file is what ends the trigger."""
        if self.armed:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        self.disarm()
        self._epoll.close()
