# SPDX-License-Identifier: LGPL-2.1-or-later
"""Claims and what they stand for together: who still holds, who is leaving, and giving everything back.

Callers hold the claims' lock.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping

from kvmsup import sizes
from kvmsup.effects import claims, fence, files, hugepages, journal, ready, running, systemctl
from kvmsup.errors import HostError, KvmsupError
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
    if "stop" in (setup.job, guest.job) or "deactivating" in (setup.active, guest.active):
        return LEAVING
    return LEAVING if guest.idle else HOLDING


def sweep(root: str, known: Mapping[str, Claim], keep: str = "") -> dict[str, Claim]:
    """Give back what stale claims hold and remove them; returns the claims that stand. `keep` is none while held.

    One that cannot be given back stands, which is said as its guest's: it keeps nobody else from starting. Raises
    HostError where systemd does not answer.
    """
    for directory in ("claims", "running", "isolated"):
        files.sweep_parts(f"{root}{claims.RUN}/{directory}")
    for name in ("masks.found", "fences.found"):
        files.sweep_parts(f"{root}{claims.RUN}", name)
    left = undo(root, known)
    doubtful = [
        guest
        for guest, claim in left.items()
        if guest != keep and claim.held and not systemctl.probably_active(root, f"kvm-setup@{guest}.service")
    ]
    standing = standings(doubtful) if doubtful else {}
    left = _without(root, left, [guest for guest in doubtful if standing[guest] == STALE])
    _put_back(root, left.values())
    return left


def undo(root: str, known: Mapping[str, Claim]) -> dict[str, Claim]:
    """Give back what claims have that are not held; returns those that stand.

    Under the lock such a claim is one whose setup, or release, ended in the middle. Whoever changes a pool undoes it
    first: what it had added there can be told only until then.
    """
    return _without(root, known, [guest for guest, claim in known.items() if not claim.held])


def _without(root: str, known: Mapping[str, Claim], over: Iterable[str]) -> dict[str, Claim]:
    """`known` without those of the guests `over`, whose claims are given back, as far as they can be."""
    left = dict(known)
    for guest in over:
        claim = left.pop(guest)
        try:
            told = release(root, claim, list(left.values()))
        except KvmsupError as error:
            _tell(root, guest, journal.ERROR, str(error), "release-failed")
            left[guest] = claims.read(root, guest) or claim
            continue
        for shortfall in told:
            _tell(root, guest, journal.WARNING, shortfall, "pages-left")
    return left


@functools.cache
def _tell(root: str, guest: str, priority: int, text: str, catalog: str) -> None:
    """Once: who waits for others tries again and again."""
    journal.tell(root, guest, priority, text, catalog)


def _put_back(root: str, standing: Iterable[Claim]) -> None:
    """What a release that was killed, or could not, has left of isolated guests while there is none."""
    if os.path.exists(f"{root}{claims.RUN}/masks.found") and not any(claim.isolate for claim in standing):
        from kvmsup.effects import masks  # for hosts that had isolated guests alone

        try:
            masks.settle(root, [])
        except KvmsupError as error:  # the next one tries again
            journal.say(journal.ERROR, str(error), "release-failed")


def release(root: str, claim: Claim, others: list[Claim]) -> list[str]:
    """Give back all that `claim` holds, then remove it; returns what could not be given back, as sentences.

    It can end in the middle and be done again. Raises HostError.
    """
    # A node that is gone has taken its pool along, and what was added there.
    there = {node: count for node, count in claim.grown.items() if hugepages.has(root, node, claim.page_size)}
    claim = claim._replace(grown=there)
    if claim.held and claim.grown:
        # From here on the claim says how large the pools will be: pages that went back must not go a second time.
        totals = {node: hugepages.pool(root, node, claim.page_size).total for node in claim.grown}
        before = {node: totals[node] - count for node, count in claim.grown.items()}
        claim = claim._replace(held=False, before=before)
        claims.rewrite(root, claim)
    step("release.pages")
    left = hugepages.give_back(root, claim, others)
    try:
        _let_go(root, claim, others)
    except KvmsupError as error:
        # Others' pools may change before it is done again, and its pages are back as far as they come.
        claims.rewrite(root, claim._replace(pages={}, grown={}, absorbed={}, before={}, held=False))
        raise HostError("; ".join((error.what, *_missing(claim, left))), error.hint, error.catalog) from None
    return _missing(claim, left)


def _missing(claim: Claim, left: Mapping[int, int]) -> list[str]:
    size = sizes.render(claim.page_size)
    return [
        f"{count} hugepages of {size} on node {node} that were added for {claim.guest} are still in use or gone"
        for node, count in sorted(left.items())
    ]


def _let_go(root: str, claim: Claim, others: list[Claim]) -> None:
    """Give back all but pages, and remove the claim. Raises HostError."""
    step("release.fence")
    fence.settle(root, others)
    step("release.interrupts")
    if claim.isolate:
        from kvmsup.effects import intrusions, masks, partition  # for guests that are isolated alone

        partition.ended(root, claim)
        partition.settle(root, others)
        masks.settle(root, others)
        intrusions.forget(root, claim.guest)
    # Last, so that whoever finds the claim does all of this again.
    step("release.claim")
    ready.forget(root, claim.guest)
    running.remove(root, claim.guest)
    claims.remove(root, claim.guest)
