# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that were not there at setup, which runs early in the host's boot: attach holds them, once it has found them.

Nobody has compared them with other guests' disks, or asked whether the host has mounted them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from kvmsup.effects import backing, claims, journal, ledger
from kvmsup.entry import patience
from kvmsup.model.claim import Claim
from kvmsup.plan import refusals
from kvmsup.plan.plugs import File

# Of kvm@.service's TimeoutStartSec=, once the lock is there.
_SECONDS = 60


def hold(root: str, claim: Claim, late: Mapping[str, File]) -> Claim:
    """`claim` with the disks `late`, by what the TOML calls them; it is written down so. Raises KvmsupError."""
    found = [backing.look_late(root, about, source) for about, source in late.items()]
    whole = claim._replace(disks=(*claim.disks, *found))
    refusals.check_apart(whole.disks)
    with patience.lock(root, _SECONDS, partial(journal.say, journal.NOTICE, catalog="waits")):
        others = ledger.sweep(root, claims.read_all(root), keep=claim.guest)
        refusals.check_disks(claim.guest, found, [one for one in others.values() if one.guest != claim.guest])
        claims.write(root, whole)
    return whole
