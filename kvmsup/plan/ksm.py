# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether kernel samepage merging should run: the host's policy and the guests' consent."""

from __future__ import annotations

from collections.abc import Iterable

from kvmsup.model.claim import Claim


def wanted(policy: str, claims: Iterable[Claim]) -> bool:
    """`policy` always: while any guest that holds a claim consents (memory.ksm = true); never: not at all."""
    return policy == "always" and any(claim.ksm and claim.held for claim in claims)
