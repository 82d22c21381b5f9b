# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turn kernel samepage merging on while guests ask for it, and put it back as it was found."""

from __future__ import annotations

import time

from kvmsup.effects import claims, configs, journal, ksm, systemd
from kvmsup.errors import ConfigError
from kvmsup.model import config
from kvmsup.model.guest import Host
from kvmsup.plan import ksm as policy


class Merging:
    """KSM, by the host's policy and the consent of the guests that hold a claim."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.host = Host(None, "never")
        self.merging = False
        self.when: float | None = time.monotonic()

    def job_finished(self, unit: str) -> None:
        """Claims come and go with the jobs of guests' units."""
        if unit.startswith(("kvm-setup@", "kvm@")):
            self.when = time.monotonic()

    def shaken(self, _what: str, /) -> None:
        self.when = time.monotonic()

    def due(self) -> float | None:
        return self.when

    def act(self) -> None:
        """Bring KSM to what the present guests ask for. Raises KvmsupError."""
        self.when = None
        self._read_host()
        known = claims.read_all(self.root).values()
        wanted = policy.wanted(self.host.ksm, known)
        if wanted != self.merging and ksm.available(self.root):
            consenting = ", ".join(claim.guest for claim in known if claim.ksm)
            if wanted:
                ksm.start(self.root)
                journal.say(journal.NOTICE, f"KSM is on for {consenting}")
            else:
                ksm.restore(self.root)
                journal.say(journal.NOTICE, "KSM is as it was found: no guest asks for it")
            self.merging = wanted
            systemd.notify(status=f"KSM on for {consenting}" if wanted else "KSM not in use")

    def _read_host(self) -> None:
        """Take the host's file as it is now; while it is wrong, the last good one holds."""
        try:
            self.host = config.read_host(configs.HOST_FILE, configs.read_host(self.root))
        except ConfigError as error:
            journal.say(journal.WARNING, str(error))
