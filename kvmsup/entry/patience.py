# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waiting for the claims' lock, for as long as somebody who lives makes pages under it, without being ended for that.

Whoever holds it is under a time-out of its own, and the kernel drops the lock with its holder: so the wait ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FrameType

from kvmsup.effects import claims, notify

# The first wait that is worth a word, and how often systemd is asked for more time, which lasts for a few of those.
_FIRST_SECONDS, _AGAIN_SECONDS = 2.0, 10.0
_MORE_SECONDS = 45


@contextlib.contextmanager
def lock(root: str, seconds: int, told: Callable[[str], None]) -> Iterator[None]:
    """Hold the claims' lock. A wait for it is told, once, and then there are `seconds` for what is to be done.

    For programs that a unit with NotifyAccess=exec starts, in their main thread. Raises HostError.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(claims.lock_now(root))
        except claims.Busy:
            with _asking_for_time(lambda: told(f"waiting for {claims.holder(root)}")):
                held.enter_context(claims.lock(root))
            notify.tell(EXTEND_TIMEOUT_USEC=seconds * 1_000_000)
        yield


@contextlib.contextmanager
def _asking_for_time(first: Callable[[], None]) -> Iterator[None]:
    """Have systemd put off this unit's end again and again (sd_notify(3)); `first` is called the first time."""
    import signal  # whoever finds the lock free has no need of it

    calls = [first]

    def again(_number: int, _frame: FrameType | None) -> None:
        if calls:
            calls.pop()()
        notify.tell(EXTEND_TIMEOUT_USEC=_MORE_SECONDS * 1_000_000)

    before = signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, _FIRST_SECONDS, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
