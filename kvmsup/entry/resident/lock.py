# SPDX-License-Identifier: LGPL-2.1-or-later
"""The claims' lock as the supervisor takes it: at once or not at all, and under a time-out of systemd's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvmsup.effects import claims, notify
from kvmsup.steps import step

# What is done under it takes milliseconds. Others wait for it for as long as its holder lives.
_SECONDS = 30


@contextmanager
def lock_now(root: str) -> Iterator[None]:
    """Hold the lock, but do not wait for it; who does not let go of it in time is killed, and starts again.

    The watchdog is on meanwhile alone (sd_notify(3), WATCHDOG_USEC=): an idle supervisor has no need to show that it
    lives. Raises Busy, or HostError.
    """
    notify.tell(WATCHDOG_USEC=_SECONDS * 1_000_000)
    try:
        with claims.lock_now(root):
            step("supervisor.lock")
            yield
    finally:
        notify.tell(WATCHDOG_USEC=0)
