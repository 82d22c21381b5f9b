# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm-ready@NAME, start: wait until the guest itself has said that it is ready.

What it says meanwhile is this unit's own status. As long as it says something new the unit's time-out is put off; a
guest that is silent for most of it fails the unit, with the last that it said.
"""

from __future__ import annotations

import os
import time

from kvmsup.effects import claims, journal, notify, ready, systemctl
from kvmsup.errors import HostError, KvmsupError, Refusal
from kvmsup.model.ready import Said, news, reached

_GLANCE_SECONDS = 0.2
# TimeoutStartSec= as kvm-ready@.service has it, for when systemd cannot be asked.
_USUAL_TIMEOUT_SECONDS = 180.0
# What is kept of it to say why, before systemd ends this program.
_LAST_WORD_SECONDS = 10.0
# Things that count as new once: a guest that makes them up has its time-out for as many.
_MOST_NEWS = 1000


def main(name: str, root: str = "") -> int:
    """Wait for the guest called `name`; 0, or 1 with the reason on standard error."""
    try:
        run(name, root, _timeout(name))
    except KvmsupError as error:
        journal.say(journal.ERROR, str(error), "not-ready")
        return 1
    return 0


def _timeout(name: str) -> float:
    try:
        return systemctl.start_timeout(f"kvm-ready@{name}.service")
    except HostError:
        return _USUAL_TIMEOUT_SECONDS


def run(name: str, root: str, timeout: float) -> None:
    """Wait until `name` is ready, with `timeout` seconds for anything new. Raises KvmsupError."""
    wanted = _wanted(name, root)
    patience = max(timeout - _LAST_WORD_SECONDS, timeout / 2)
    before: Said | None = None
    seen: set[str] = set()
    deadline = time.monotonic() + patience
    while not reached(said := ready.read(root, name), wanted):
        if said != before:
            before = said
            notify.tell(STATUS=said.status or f"waiting for {name}")
            if not news(said) <= seen and len(seen) < _MOST_NEWS:
                seen |= news(said)
                deadline = time.monotonic() + patience
                notify.tell(EXTEND_TIMEOUT_USEC=int(timeout * 1e6))
        if time.monotonic() > deadline:
            raise _silent(name, said, wanted, patience)
        if not os.path.exists(claims.path(root, name)):
            raise HostError(f"{name} ended before it said that it is ready")
        time.sleep(_GLANCE_SECONDS)
    notify.tell(STATUS=said.status or f"{name} is ready")


def _wanted(name: str, root: str) -> str:
    claim = claims.read(root, name)
    if not claim:
        raise HostError(f"{name} does not run", f"systemctl start kvm@{name}")
    if not claim.ready:
        what = f"{name} is not told to say when it is ready: its file has no guest.ready"
        raise HostError(what, f"add ready = true below [guest] and restart it: systemctl restart kvm@{name}")
    return claim.ready


def _silent(name: str, said: Said, wanted: str, patience: float) -> Refusal:
    for_what = "is ready" if wanted == "yes" else f"has reached {wanted}"
    what = f"{name} has not said that it {for_what}, and nothing new for {patience:.0f} s"
    if said == Said():
        hint = "its systemd must be 254 or newer, or something else in it must say so: kvmsup.guest(5), guest.ready"
        return Refusal(f"{name} has not said a word within {patience:.0f} s", hint)
    if said.status:
        what += f"; the last was: {said.status}"
    return Refusal(what, f"journalctl -u kvm@{name} has its console")
