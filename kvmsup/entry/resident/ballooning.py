# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make guests with an automatic balloon smaller while the host is short of memory, and larger again afterwards.

How large a guest is, is read from its QEMU each time. While the host is well and every balloon is empty no guest is
asked anything; without such a guest nobody wakes up at all.

What happens to guests or to the host's memory only renews the list of guests, or brings a turn forward. After a turn
that has changed something there is none for a while: what a guest has given must show in its statistics first.
"""

from __future__ import annotations

import math
import time

from kvmsup.effects import balloon, claims, journal, pressure, proc, systemctl
from kvmsup.effects.alarm import Alarm
from kvmsup.effects.balloon import Statistics
from kvmsup.errors import QmpError
from kvmsup.model.claim import Claim
from kvmsup.plan import balloon as policy
from kvmsup.plan.balloon import Change, GuestMemory
from kvmsup.sizes import mebibytes

TURN_SECONDS = 5.0
_FIRST_SECONDS = 1.0
_FRESH_SECONDS = 3.0 * balloon.POLL_SECONDS
_PATIENCE_SECONDS = 2.0
# A start, or an end, is several jobs.
_LIST_SECONDS = 1.0
# A QEMU that does not answer holds up everybody else's turn.
_AGAIN_SECONDS = 30.0


class _Guest:
    """What the last turn left of one guest; all of it may be forgotten. Times are on time.monotonic()."""

    def __init__(self, claim: Claim, pid: int) -> None:
        self.claim = claim
        self.pid = pid
        self.again = 0.0  # not to be asked before
        self.forget()

    def forget(self) -> None:
        """Nothing is known of it, as at first sight."""
        self.busy = True  # whether its balloon may have something in it, or its statistics are polled
        self.asked: int | None = None  # the size that it was asked for last
        self.giving = 0  # of its memory, since it was asked, as far as its statistics do not show it
        self.changed: int | None = None  # Statistics.last when it was asked
        self.arrived: int | None = None  # Statistics.last when it was seen to be there
        self.last: int | None = None  # Statistics.last at the last look
        self.looked = self.since = -math.inf  # the last look; and the last before the statistics came
        self.told: Statistics | None = None

    def hear(self, found: Statistics | None, looked: float, started: bool) -> Statistics | None:
        """Its statistics, where they are new enough to be used, at a look at `looked`.

        That they are other ones than at the look before is what tells: the host's clock may have been set since, and
        what came before they were polled (`started` now) may be of any time.
        """
        last = found.last if found else 0
        if started or self.last is None:
            self.since = -math.inf
        elif last != self.last:
            self.since = self.looked
        self.last, self.looked = last, looked
        return found if last != self.changed and looked - self.since <= _FRESH_SECONDS else None

    def arrive(self, pending: int) -> None:
        """QEMU has whole seconds: what came in the same one as the look that saw it there may be from before."""
        if pending:
            self.arrived = None
        elif self.arrived is None:
            self.arrived = self.last
        elif self.arrived != self.last:
            self.giving = 0


class Ballooning:
    """The host's memory, looked at while guests with an automatic balloon run."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.alarm = Alarm(root)
        self.guests: dict[str, _Guest] = {}
        self.listing = time.monotonic()  # when to see which guests there are; never: they are known
        self.when = math.inf  # the next turn
        self.rested = 0.0  # no turn before

    def job_finished(self, unit: str) -> None:
        if unit.startswith(("kvm-setup@", "kvm@")):
            self.shaken(unit)

    def shaken(self, _what: str, /) -> None:
        self.listing = min(self.listing, time.monotonic() + _LIST_SECONDS)

    def alarmed(self) -> None:
        """The host's tasks wait for memory: look as soon as the last turn allows."""
        if self.guests:
            self.when = min(self.when, max(time.monotonic(), self.rested))

    def due(self) -> float | None:
        when = min(self.when, self.listing)
        return None if when == math.inf else when

    def act(self) -> None:
        """A new list of guests where that is due, and one turn of the policy where that is. Raises KvmsupError."""
        now = time.monotonic()
        turn = self.when <= now
        if turn:
            self.when = now + TURN_SECONDS
        if self.listing < math.inf:
            self.listing = now + TURN_SECONDS  # again, should systemd not answer
            self._find_guests()
            self.listing = math.inf
        if not self.guests:
            self.when = math.inf
            self.alarm.disarm()
            return
        self.alarm.arm()
        if turn or self.when == math.inf:
            self.when = now + TURN_SECONDS
            self._turn(now)

    def _turn(self, now: float) -> None:
        host = pressure.read(self.root)
        needed = bool(policy.short(host))
        asked = [one for one in self.guests.values() if needed or one.busy]
        seen = [memory for one in asked if (memory := self._ask(one, needed))]
        changes = policy.turn(host, seen)
        for change in changes:
            self._change(self.guests[change.guest], change)
        if changes:
            self.when = self.rested = now + TURN_SECONDS

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
        self.guests = found

    def _ask(self, one: _Guest, needed: bool) -> GuestMemory | None:
        """What the policy has to know of one guest; None while QEMU does not answer."""
        now, claim = time.monotonic(), one.claim
        if one.again > now:
            return None
        try:
            with balloon.monitor(self.root, claim.guest, one.pid, "supervisor", _PATIENCE_SECONDS) as talk:
                actual = min(max(0, balloon.actual(talk)), claim.size)
                if one.asked is None:
                    # Whoever asked before this supervisor was there may have asked for less, and for too little.
                    asked = max(actual, claim.balloon)
                    balloon.resize(talk, asked)
                    one.asked = asked
                one.busy = needed or min(actual, one.asked) < claim.size
                found = balloon.statistics(talk)
                started = balloon.poll(talk, balloon.POLL_SECONDS if one.busy else 0)
        except QmpError as error:
            self._no_answer(one, str(error))
            return None
        if started and needed:
            self.when = now + _FIRST_SECONDS
        one.again = 0.0
        return self._memory(one, one.asked, actual, one.hear(found, now, started))

    def _memory(self, one: _Guest, asked: int, actual: int, found: Statistics | None) -> GuestMemory:
        """What it was asked for and has not given so far counts as gone. Nobody has more than all of a guest."""
        claim, before = one.claim, one.told
        pending = max(0, actual - asked)
        one.arrive(pending)
        one.told = found
        held = proc.of_process(self.root, one.pid)
        return GuestMemory(
            name=claim.guest,
            size=claim.size,
            least=claim.balloon,
            actual=asked,
            available=max(0, min(found.available, actual) - pending) if found else None,
            free=max(0, asked - held.get("RssAnon", 0) - held.get("RssShmem", 0)),
            swapped=min(claim.size, max(0, found.swapped_out - before.swapped_out)) if found and before else 0,
            faults=max(0, found.major_faults - before.major_faults) if found and before else 0,
            pending=pending,
            unsure=one.giving,
        )

    def _change(self, one: _Guest, change: Change) -> None:
        name, was = one.claim.guest, one.asked or one.claim.size
        try:
            with balloon.monitor(self.root, name, one.pid, "supervisor", _PATIENCE_SECONDS) as talk:
                actual = min(balloon.actual(talk), one.claim.size)
                balloon.resize(talk, change.size)
                found = balloon.statistics(talk)
        except QmpError as error:
            self._no_answer(one, str(error))
            return
        one.changed, one.arrived = found.last if found else 0, None
        one.asked, one.giving = change.size, max(0, actual - change.size)
        direction = "smaller" if change.size < was else "larger"
        told = f"balloon: {mebibytes(was)} → {mebibytes(change.size)}, {direction}: {change.why}"
        journal.tell(self.root, name, journal.NOTICE, told, "balloon")

    def _no_answer(self, one: _Guest, why: str) -> None:
        """Told once: it is the guest's next end, or the administrator, that changes it."""
        if not one.again:
            told = f"the balloon of {one.claim.guest} is left as it is while QEMU does not answer: {why}"
            journal.tell(self.root, one.claim.guest, journal.WARNING, told, "balloon-silent")
        one.again = time.monotonic() + _AGAIN_SECONDS
        one.forget()
