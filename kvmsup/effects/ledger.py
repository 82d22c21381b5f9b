# SPDX-License-Identifier: LGPL-2.1-or-later
"""Claims and what they stand for together: who still holds, who is leaving, and giving everything back.

Callers hold the claims' lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmsup import sizes
from kvmsup.effects import claims, fence, hugepages, sysfs, systemctl
from kvmsup.model.claim import Claim
from kvmsup.steps import step

HOLDING, LEAVING, STALE = "holding", "leaving", "stale"


def standings(guests: Iterable[str]) -> dict[str, str]:
    """HOLDING, LEAVING or STALE for the claim of each of `guests`.

    A claim is stale exactly when its setup unit is down and has no job. It is on its way out while its guest is being
    stopped, or is down while the setup unit waits to be stopped as unneeded. Raises HostError.
    """
    names = sorted(guests)
    both = [unit for name in names for unit in (f"kvm-setup@{name}.service", f"kvm@{name}.service")]
    found = systemctl.units(both)
    return {name: _standing(found[f"kvm-setup@{name}.service"], found[f"kvm@{name}.service"]) for name in names}


def _standing(setup: systemctl.Unit, guest: systemctl.Unit) -> str:
    if setup.idle:
        return STALE
    if "start" in setup.job or "start" in guest.job:  # start and restart
        return HOLDING
    return LEAVING if guest.idle or guest.active == "deactivating" or setup.active == "deactivating" else HOLDING


def sweep(root: str, known: Mapping[str, Claim], keep: str = "") -> dict[str, Claim]:
    """Give back what stale claims hold and remove them; returns the claims that stand. `keep` is left alone.

    Raises HostError.
    """
    doubtful = [
        guest for guest in known if guest != keep and not systemctl.probably_active(root, f"kvm-setup@{guest}.service")
    ]
    if not doubtful:
        return dict(known)
    standing = standings(doubtful)
    left = dict(known)
    for guest in doubtful:
        if standing[guest] == STALE:
            claim = left.pop(guest)
            release(root, claim, list(left.values()))
    return left


def release(root: str, claim: Claim, others: list[Claim]) -> list[str]:
    """Give back all that `claim` holds, then remove it; returns what could not be given back, as sentences.

    Raises HostError.
    """
    step("release.pages")
    left = hugepages.give_back(root, claim, others)
    step("release.fence")
    fence.settle(root, sysfs.online(root), others)
    # Last, so that whoever finds the claim does all of this again.
    step("release.claim")
    claims.remove(root, claim.guest)
    size = sizes.render(claim.page_size)
    return [
        f"{count} hugepages of {size} on node {node} that were added for {claim.guest} are still in use or gone"
        for node, count in sorted(left.items())
    ]
