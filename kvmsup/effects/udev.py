# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's device events for what stays resident: the only importer of pyudev."""

from __future__ import annotations

import pyudev


class CpuEvents:
    """A stream of CPUs that come and go.

    From the kernel itself: what udev sends on stays in the host's network namespace, which the supervisor is not in.
    """

    def __init__(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.filter_by("cpu")
        self._monitor.start()

    def fileno(self) -> int:
        """The descriptor to poll for reading; call `dispatch` when it is ready."""
        return int(self._monitor.fileno())

    def dispatch(self) -> list[str]:
        """What has arrived, such as "cpu3 offline"."""
        found = []
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                found.append(f"{device.sys_name} {device.action}")
        except OSError:  # ENOBUFS: more came than the socket holds
            found.append("events that were lost")
        return found
