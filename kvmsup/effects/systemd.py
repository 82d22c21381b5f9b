# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd over D-Bus for what stays resident: the only importer of pystemd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pystemd import daemon
from pystemd.dbuslib import DBus

from kvmsup.errors import HostError

_MANAGER = (b"org.freedesktop.systemd1", b"/org/freedesktop/systemd1", b"org.freedesktop.systemd1.Manager")
_LOGIND = (b"org.freedesktop.login1", b"/org/freedesktop/login1", b"org.freedesktop.login1.Manager")


def notify(**states: str | int) -> None:
    """Tell systemd a state, such as ready=1 or status="…" (sd_notify(3)); nothing happens outside a service."""
    daemon.notify(False, **states)


_SILENT_ENOUGH = 4


class Signals:
    """A stream of what systemd says: jobs that it has finished, and moments after which pins may have moved."""

    def __init__(self, finished: Callable[[str], None], shaken: Callable[[str], None]) -> None:
        """From `dispatch`, call `finished` with the unit of every finished job, and `shaken` with what has happened
        when systemd has loaded its configuration anew, or the host wakes up.

        Raises HostError when there is no system bus.
        """
        self._finished = finished
        self._shaken = shaken
        self._heard_one = False
        # pystemd marks a callback with an attribute, which a bound method cannot take, and keeps no reference to it.
        self._callbacks = {
            (*_MANAGER, b"JobRemoved"): lambda message, **_: self._job(message),
            (*_MANAGER, b"Reloading"): lambda message, **_: self._over(message, "daemon-reload"),
            (*_LOGIND, b"PrepareForSleep"): lambda message, **_: self._over(message, "resume"),
        }
        self._bus = DBus()
        try:
            self._bus.open()
            for signal, callback in self._callbacks.items():
                self._bus.match_signal(*signal, callback, None)
            self._bus.call_method(*_MANAGER, b"Subscribe", [])
        except Exception as error:  # pystemd's errors share no base class but this one
            raise HostError(f"systemd cannot be reached over D-Bus: {error}") from None

    def _job(self, message: Any) -> None:
        message.process_reply(False)
        _id, _path, unit, _result = message.body
        self._heard_one = True
        self._finished(unit.decode())

    def _over(self, message: Any, what: str) -> None:
        """Both signals come twice: with true before, and with false when it is over."""
        message.process_reply(False)
        self._heard_one = True
        if not message.body:
            self._shaken(what)

    def fileno(self) -> int:
        """The descriptor to poll for reading; call `dispatch` when it is ready."""
        return int(self._bus.get_fd())

    def dispatch(self) -> None:
        """Handle everything that has arrived. Raises HostError when the bus is gone.

        One process() takes in all that the socket has but handles one message, and does not say whether that was the
        last (sd_bus_process(3)); messages of the bus itself look like none. So it is asked until it stays silent.
        """
        silent = 0
        try:
            while silent < _SILENT_ENOUGH:
                self._heard_one = False
                message = self._bus.process()
                silent = 0 if self._heard_one or not message.is_empty() else silent + 1
        except Exception as error:
            raise HostError(f"the connection to systemd is lost: {error}") from None
