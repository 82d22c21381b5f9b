# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make guests with an automatic balloon smaller while the host is short of memory, and larger again afterwards.

How large a guest is, is read from its QEMU each time. While the host is well and every balloon is empty no guest is
asked anything; without such a guest nobody wakes up at all.
"""

from __future__ import annotations

import time

from kvmsup.effects import balloon, claims, journal, pressure, systemctl
from kvmsup.effects.alarm import Alarm
from kvmsup.effects.balloon import Statistics
from kvmsup.errors import QmpError
from kvmsup.model.claim import Claim
from kvmsup.plan import balloon as policy
from kvmsup.plan.balloon import Change, GuestMemory

TURN_SECONDS = 5.0
# Statistics are polled often enough for each turn to see what the last one did.
_POLL_SECONDS = 2
_FIRST_SECONDS = 1.0
_FRESH_SECONDS = 3.0 * _POLL_SECONDS
_PATIENCE_SECONDS = 2.0
# A QEMU that does not answer holds up everybody else's turn.
_AGAIN_SECONDS = 30.0


class _Guest:
    """What the last turn left of one guest; all of it may be forgotten."""

    def __init__(self, claim: Claim, pid: int) -> None:
        self.claim = claim
        self.pid = pid
        self.busy = True  # whether its balloon may have something in it, or its statistics are polled
        self.asked: int | None = None  # the size that it was asked for last
        self.told: Statistics | None = None
        self.again = 0.0  # not to be asked before


class Ballooning:
    """The host's memory, looked at while guests with an automatic balloon run."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.alarm = Alarm(root)
        self.guests: dict[str, _Guest] = {}
        self.stale = True  # whether guests may have come or gone
        self.when: float | None = time.monotonic()

    def job_finished(self, unit: str) -> None:
        if unit.startswith(("kvm-setup@", "kvm@")):
            self.shaken(unit)

    def shaken(self, _what: str, /) -> None:
        self.stale = True
        self.when = time.monotonic()

    def alarmed(self) -> None:
        """The host's tasks wait for memory: look now."""
        if self.guests:
            self.when = time.monotonic()

    def due(self) -> float | None:
        return self.when

    def act(self) -> None:
        """One turn of the policy. Raises KvmsupError."""
        self.when = time.monotonic() + TURN_SECONDS
        if self.stale:
            self._find_guests()
        if not self.guests:
            self.when = None
            self.alarm.disarm()
            return
        self.alarm.arm()
        host = pressure.read(self.root)
        needed = bool(policy.short(host))
        asked = [one for one in self.guests.values() if needed or one.busy]
        seen = [memory for one in asked if (memory := self._ask(one, needed))]
        for change in policy.turn(host, seen):
            self._change(self.guests[change.guest], change)

    def _find_guests(self) -> None:
        """Running guests with an automatic balloon; those that are known already stay as they are."""
        held = [claim for claim in claims.read_all(self.root).values() if claim.balloon_auto and claim.held]
        shown = systemctl.show([f"kvm@{claim.guest}.service" for claim in held], ("ActiveState", "MainPID"))
        found = {}
        for claim in held:
            unit = shown.get(f"kvm@{claim.guest}.service", {})
            known, pid = self.guests.get(claim.guest), int(unit.get("MainPID") or 0)
            if pid and unit["ActiveState"] == "active":
                found[claim.guest] = one = known if known and known.pid == pid else _Guest(claim, pid)
                one.claim = claim  # a reload may have changed its bounds
        self.guests, self.stale = found, False

    def _ask(self, one: _Guest, needed: bool) -> GuestMemory | None:
        """What the policy has to know of one guest; None while QEMU does not answer."""
        if one.again > time.monotonic():
            return None
        try:
            with balloon.monitor(self.root, one.claim.guest, one.pid, "supervisor", _PATIENCE_SECONDS) as talk:
                actual = balloon.actual(talk)
                one.busy = needed or actual < one.claim.size
                found = balloon.statistics(talk)
                if balloon.poll(talk, _POLL_SECONDS if one.busy else 0) and needed:
                    self.when = time.monotonic() + _FIRST_SECONDS
                if one.asked is None and actual < one.claim.size:
                    # Whoever asked for less before this supervisor was there may have asked for too much.
                    balloon.resize(talk, actual)
                    one.asked = actual
        except QmpError as error:
            self._no_answer(one, str(error))
            return None
        one.again = 0.0
        return self._memory(one, actual, found)

    def _memory(self, one: _Guest, actual: int, found: Statistics | None) -> GuestMemory:
        """What it has been asked for and not yet given counts as gone."""
        claim, before = one.claim, one.told
        pending = max(0, actual - one.asked) if one.asked else 0
        fresh = found if found and found.age <= _FRESH_SECONDS else None
        one.told = fresh
        return GuestMemory(
            name=claim.guest,
            size=claim.size,
            least=claim.balloon,
            actual=actual - pending,
            available=max(0, fresh.available - pending) if fresh else None,
            free=max(0, fresh.free - pending) if fresh else 0,
            swapped=max(0, fresh.swapped_out - before.swapped_out) if fresh and before else 0,
            faults=max(0, fresh.major_faults - before.major_faults) if fresh and before else 0,
        )

    def _change(self, one: _Guest, change: Change) -> None:
        name = one.claim.guest
        try:
            with balloon.monitor(self.root, name, one.pid, "supervisor", _PATIENCE_SECONDS) as talk:
                was = balloon.actual(talk) if one.asked is None else one.asked
                balloon.resize(talk, change.size)
        except QmpError as error:
            self._no_answer(one, str(error))
            return
        one.asked = change.size
        direction = "smaller" if change.size < was else "larger"
        told = f"balloon: {policy.told(was)} → {policy.told(change.size)}, {direction}: {change.why}"
        journal.tell(self.root, name, journal.NOTICE, told)

    def _no_answer(self, one: _Guest, why: str) -> None:
        """Told once: it is the guest's next end, or the administrator, that changes it."""
        if not one.again:
            told = f"the balloon of {one.claim.guest} is left as it is while QEMU does not answer: {why}"
            journal.tell(self.root, one.claim.guest, journal.WARNING, told)
        one.again = time.monotonic() + _AGAIN_SECONDS
        one.asked = one.told = None
        one.busy = True
