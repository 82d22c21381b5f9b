# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known from inside a running guest: what it has said of itself, and what its agent answers now."""

from __future__ import annotations

from kvmsup.effects import agent, ready
from kvmsup.effects.glance import Seen
from kvmsup.errors import QmpError
from kvmsup.model.ready import reached
from kvmsup.records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_PATIENCE_SECONDS = 1.0


def said(root: str, seen: Seen) -> dict[str, Any] | None:
    """Whether the guest is ready, and its own words; None for one that is not asked, or down. Raises HostError."""
    if not seen.pid or not seen.claim or not seen.claim.ready:
        return None
    words = ready.read(root, seen.name)
    return {"reached": reached(words, seen.claim.ready), "wanted": seen.claim.ready, **words._asdict()}


def answered(root: str, seen: Seen) -> dict[str, Any] | None:
    """What the guest's agent says of it, in a second; None for a guest without an agent, or that is down."""
    if not seen.pid or not seen.claim or not seen.claim.agent:
        return None
    try:
        with agent.connected(root, seen.name, seen.pid, _PATIENCE_SECONDS) as talk:
            if agent.frozen(talk):
                return _told("frozen", agent.Identity("", "", ()))
            return _told("answers", agent.identity(talk))
    except QmpError as error:
        return _told(str(error), agent.Identity("", "", ()))


def unasked(_root: str, seen: Seen) -> dict[str, Any] | None:
    """As `answered`, of a guest that is left alone."""
    asks = seen.pid and seen.claim and seen.claim.agent
    return _told("not asked", agent.Identity("", "", ())) if asks else None


def _told(state: str, found: agent.Identity) -> dict[str, Any]:
    return {
        "state": state,
        "hostname": found.hostname or None,
        "system": found.system or None,
        "interfaces": [{**one._asdict(), "addresses": list(one.addresses)} for one in found.interfaces],
    }
