# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turn kernel samepage merging on while guests ask for it, at the pace that plan/ksm chooses, and put it back."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvmsup.effects import claims, configs, journal, ksm, pressure
from kvmsup.errors import ConfigError, HostError
from kvmsup.model import config
from kvmsup.model.guest import Host
from kvmsup.plan import ksm as policy


class Merging:
    """KSM, by the host's policy and the consent of the guests that hold a claim. Without consent it never wakes up."""

    def __init__(self, root: str, show: Callable[[str], None]) -> None:
        """`show` is called with what to say as the supervisor's status."""
        self.root = root
        self.show = show
        self.host = Host(None, "never")
        self.state = policy.State()
        self.asked: tuple[str, frozenset[str]] = ("never", frozenset())  # by the policy and the guests
        self.left_alone = False  # somebody else has a hand in it: until the next guest comes or goes
        self.ksmd: int | None = None
        self.when: float | None = time.monotonic()
        try:
            ksm.restore(root)  # what one before us may have left
        except HostError as error:
            journal.say(journal.WARNING, str(error), "supervisor-failed")

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
        if not ksm.available(self.root):
            self._miss()
            return
        look = self._look()
        if (asked := (self.host.ksm, look.guests)) != self.asked:
            self.asked = asked
            self._begin_anew()
        if not self.left_alone:
            self.left_alone = self._is_elsewhere(look)
        if not self.left_alone:
            self._follow(look)

    def _miss(self) -> None:
        """Say once that a guest's consent is of no use."""
        asked = (self.host.ksm, policy.consenting(claims.read_all(self.root).values()))
        if asked != self.asked and asked[1] and self.host.ksm != "never":
            names = ", ".join(sorted(asked[1]))
            told = f"this kernel has no KSM: ksm = true of {names} is of no use"
            journal.say(journal.NOTICE, told, "no-ksm", sorted(asked[1]))
        self.asked = asked

    def _look(self) -> policy.Look:
        known = claims.read_all(self.root).values()
        guests = policy.consenting(known)
        self.ksmd = self.ksmd or ksm.thread(self.root)
        return policy.Look(
            at=time.monotonic(),
            guests=guests,
            resident=ksm.resident(self.root, (claim for claim in known if claim.guest in guests)),
            ksm=ksm.read(self.root, self.ksmd),
            memory=pressure.read(self.root),
        )

    def _begin_anew(self) -> None:
        """What somebody else has set meanwhile is what is found from now on."""
        if self.left_alone or ksm.changed(self.root):
            ksm.restore(self.root)
            self.state = policy.State(rest_until=self.state.rest_until)
            self.left_alone = False

    def _is_elsewhere(self, look: policy.Look) -> bool:
        """Whether somebody else drives KSM, which is told once."""
        if not look.guests or self.host.ksm == "never":
            return False
        if not ksm.borrowed(self.root) and ksm.running(self.root):
            told = "KSM is on already, by somebody else"
        elif what := ksm.changed(self.root):
            told = f"KSM: somebody else has set {what}"
        else:
            return False
        told += ": it is left alone until the next guest comes or goes"
        journal.say(journal.NOTICE, told, "ksm-left-alone", sorted(look.guests))
        self.show("KSM left to somebody else")
        return True

    def _follow(self, look: policy.Look) -> None:
        """Take the next step and do as it says."""
        step = policy.step(self.host.ksm, self.state, look)
        if step.state.settings:
            ksm.apply(self.root, step.state.settings)
        elif step.state.phase != self.state.phase:
            self._give_back(look)
        if step.told:
            # Those too that have just gone.
            before = self.state.last.guests if self.state.last else frozenset()
            journal.say(journal.NOTICE, step.told, "ksm", sorted(look.guests | before))
        if step.state.phase != self.state.phase:
            self.show(f"KSM: {step.state.phase}")
        self.state = step.state
        self.when = None if step.again is None else look.at + step.again

    def _give_back(self, look: policy.Look) -> None:
        """As found; guests that go on without KSM get their own pages again where there is memory for the copies."""
        if self.host.ksm == "never" and look.guests and look.ksm.sharing and not ksm.changed(self.root):
            if policy.can_unmerge(look.ksm, look.memory):
                ksm.unmerge(self.root)
            else:
                told = f"KSM is off; {look.ksm.saved >> 20} MiB stay merged, as there is no memory for the copies"
                journal.say(journal.WARNING, told, "ksm", sorted(look.guests))
        ksm.restore(self.root)

    def _read_host(self) -> None:
        """Take the host's file as it is now; while it is wrong, the last good one holds."""
        try:
            self.host = config.read_host(configs.HOST_FILE, configs.read_host(self.root))
        except ConfigError as error:
            journal.say(journal.WARNING, str(error), error.catalog)
