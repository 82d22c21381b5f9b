# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmsup balloon GUEST [SIZE]: how much of its memory a running guest has, and making that less or more."""

from __future__ import annotations

import contextlib
import sys
import time

from kvmsup.cli import progress, show
from kvmsup.effects import balloon, glance, observe
from kvmsup.errors import KvmsupError, QmpError
from kvmsup.model.claim import Claim
from kvmsup.plan.balloon import MIB
from kvmsup.records import TYPE_CHECKING
from kvmsup.sizes import mebibytes

if TYPE_CHECKING:
    import argparse
    from typing import Any

_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.25
# A guest that gets nowhere for this long has nothing more to give. Linux tries again five times a second
# (drivers/virtio/virtio_balloon.c, fill_balloon).
_STUCK_SECONDS = 10.0


def run(asked: argparse.Namespace) -> int:
    """Show the guest's balloon, or resize it and wait; 1 when it did not get there."""
    seen = _running(asked.guest)
    if asked.size is not None:
        _check(seen.claim, asked.size)
        start = _resize(seen, asked.size)
        try:
            with _shown(asked, start) as tell:
                _wait(seen, asked.size, tell)
        except KeyboardInterrupt:
            print(f"\n{asked.guest} goes on without being watched", file=sys.stderr)
            raise
    report = observe.balloon("", seen)
    if report is None:
        raise KvmsupError(f"{asked.guest} has ended")
    reached = asked.size is None or report["actual"] == asked.size
    if asked.json:
        show.as_json({"name": asked.guest, **report, "asked": asked.size})
    else:
        print(f"{asked.guest}: {show.balloon(report)}")
        if not reached:
            print(_why(asked.guest, asked.size, report), file=sys.stderr)
    return 0 if reached else 1


def _running(guest: str) -> glance.Seen:
    """The guest, which runs and has a balloon. Raises KvmsupError."""
    seen = glance.running("", guest)
    if not (seen.claim and seen.claim.balloon):
        hint = f"write [memory.balloon] with min into /etc/kvmsup/{guest}.toml; it applies from the next start on"
        raise KvmsupError(f"{guest} was started without a balloon", hint)
    return seen


def _check(claim: Claim | None, size: int) -> None:
    """Raises KvmsupError for a size that the guest's file does not allow."""
    assert claim
    bounds = f"{mebibytes(claim.balloon)} (memory.balloon.min) to {mebibytes(claim.size)} (memory.size)"
    if size % MIB:
        raise KvmsupError(f"{size} bytes are not a multiple of 1M", bounds)
    if not claim.balloon <= size <= claim.size:
        raise KvmsupError(f"{mebibytes(size)} is not a size for {claim.guest}", bounds)
    if claim.balloon_auto:
        hint = "memory.balloon.auto = false makes it yours to set, from the guest's next start on"
        raise KvmsupError(f"the size of {claim.guest} follows the host's memory by itself", hint)


def _resize(seen: glance.Seen, size: int) -> int:
    """Ask for `size`; the size until now. Raises KvmsupError."""
    try:
        with balloon.monitor("", seen.name, seen.pid, "admin", _PATIENCE_SECONDS) as talk:
            before = balloon.actual(talk)
            balloon.resize(talk, size)
            return before
    except QmpError as error:
        raise KvmsupError(f"QEMU of {seen.name} cannot be asked: {error}") from None


def _shown(asked: argparse.Namespace, start: int) -> contextlib.AbstractContextManager[progress.Tell]:
    """Programs are told the end alone, and so is who asks for what there is."""
    if asked.json or start == asked.size:
        return contextlib.nullcontext(lambda _actual: None)
    return progress.on_the_way(asked.guest, start, asked.size)


def _wait(seen: glance.Seen, size: int, tell: progress.Tell) -> None:
    """Until the guest has `size`, or gets nowhere. The monitor is left free between two looks. Raises KvmsupError."""
    last, moved = -1, time.monotonic()
    while True:
        try:
            with balloon.monitor("", seen.name, seen.pid, "admin", _PATIENCE_SECONDS) as talk:
                actual = balloon.actual(talk)
        except QmpError as error:
            raise KvmsupError(f"QEMU of {seen.name} cannot be asked any more: {error}") from None
        if actual != last:
            last, moved = actual, time.monotonic()
        tell(actual)
        if actual == size or time.monotonic() - moved > _STUCK_SECONDS:
            return
        time.sleep(_LOOK_SECONDS)


def _why(guest: str, size: int, report: dict[str, Any]) -> str:
    """What keeps a guest that has got nowhere for a while."""
    if report["available"] is None:
        what = "nothing in the guest answers: it has no virtio balloon driver, or has not booted so far"
    elif size < report["actual"]:
        what = f"the guest has {mebibytes(report['available'])} available and gives no more"
    else:
        what = "the guest does not take it"
    hint = f"it stays asked for; kvmsup balloon {guest} tells how far it is"
    return f"kvmsup: {KvmsupError(f'{guest} has not got to {mebibytes(size)}: {what}', hint)}"
