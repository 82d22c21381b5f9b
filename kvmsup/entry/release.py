# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm-setup@NAME, stop: give back what setup took. The one release there is."""

from __future__ import annotations

import os
from functools import partial

from kvmsup.effects import claims, journal, ledger, systemctl
from kvmsup.entry import patience
from kvmsup.errors import KvmsupError
from kvmsup.steps import step

# TimeoutStopSec= of kvm-setup@.service.
_SECONDS = 60


def main(name: str, root: str = "") -> int:
    """Release the claim of the guest called `name`; 0, or 1 with the reason in the journal."""
    try:
        for shortfall in run(name, root):
            journal.tell(root, name, journal.WARNING, shortfall, "pages-left")
    except KvmsupError as error:
        journal.tell(root, name, journal.ERROR, str(error), "release-failed")
        return 1
    return 0


def run(name: str, root: str) -> list[str]:
    """Give everything back, unless the unit is about to start again; returns what could not be given back.

    Raises KvmsupError.
    """
    step("release.lock")
    with patience.lock(root, _SECONDS, partial(journal.tell, root, name, journal.NOTICE, catalog="waits")):
        known = claims.read_all(root)
        mine = known.pop(name, None)
        if mine is None:
            return []
        if mine.held and _restarting(name):
            # A restart keeps the claim: no other guest may slip in between, and the pages stay in one piece.
            return []
        return ledger.release(root, mine, list(ledger.undo(root, known).values()))


def _restarting(name: str) -> bool:
    """Whether this is the stop of a restart. A start that has just failed has its job still, but not this result."""
    unit = f"kvm-setup@{name}.service"
    stopped = os.environ.get("SERVICE_RESULT") == "success"  # systemd.exec(5)
    return stopped and systemctl.jobs().get(unit) in ("start", "restart")
