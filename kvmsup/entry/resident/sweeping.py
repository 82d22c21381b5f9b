# SPDX-License-Identifier: LGPL-2.1-or-later
"""Give back what nobody's release will: of guests whose setup was killed, or whose restart was called off half-way.

A restart keeps the claim between its stop and its start. Where that start is called off, the setup unit is down
already and runs no release any more.
"""

from __future__ import annotations

import time

from kvmsup.effects import claims, ledger
from kvmsup.entry.resident.lock import lock_now

# A setup unit that has just gone down may be releasing.
_CALM_SECONDS = 1.0
# A host too busy for an answer is asked again.
_PATIENCE_SECONDS = 10.0


class Sweeping:
    """Looks for stale claims when it is made, and a moment after each job of a setup unit."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.when: float | None = time.monotonic()

    def job_finished(self, unit: str) -> None:
        if unit.startswith("kvm-setup@"):
            self.when = time.monotonic() + _CALM_SECONDS

    def shaken(self, _what: str, /) -> None:
        """Nothing that happens to the host makes a claim stale."""

    def due(self) -> float | None:
        return self.when

    def act(self) -> None:
        """Whoever holds the lock meanwhile has swept, or will; but the job may come after that. Raises KvmsupError."""
        self.when = time.monotonic() + _PATIENCE_SECONDS  # once more if anything fails from here on
        try:
            with lock_now(self.root):
                ledger.sweep(self.root, claims.read_all(self.root))
            self.when = None
        except claims.Busy:
            self.when = time.monotonic() + _CALM_SECONDS
