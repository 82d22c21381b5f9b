# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fault cases: each named step, what happens to it there, and what else happens at that very moment; pure."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import NamedTuple

from kvmsup.steps import STEPS

# What happens to whoever takes the step. Beside something else it is held by SIGSTOP until that has happened.
ERROR = "error"  # it raises
KILL = "kill"  # as by kill -9
STOP = "stop"  # it hangs, as by SIGSTOP, until systemd loses patience
PAUSE = "pause"  # it is held for a moment, and goes on

ALONE = "alone"
RELOAD = "daemon-reload"
NEIGHBOUR = "neighbour"  # another guest starts
KILL_QEMU = "kill-qemu"
STOP_QEMU = "stop-qemu"  # SIGSTOP, for good
KILL_SUPERVISOR = "kill-supervisor"
BESIDE = (RELOAD, NEIGHBOUR, KILL_QEMU, STOP_QEMU, KILL_SUPERVISOR)

PARTS = tuple(dict.fromkeys(step.partition(".")[0] for step in STEPS))
# There is a QEMU, whose threads can be hit.
_WITH_QEMU = ("attach", "apply", "stop")


class Case(NamedTuple):
    """One fault at one step."""

    step: str
    how: str
    beside: str

    @property
    def part(self) -> str:
        return self.step.partition(".")[0]

    @property
    def name(self) -> str:
        return f"{self.step} {self.how} {self.beside}"

    @property
    def held(self) -> bool:
        """Whether whoever takes the step is seen to stand still there."""
        return self.how in (STOP, PAUSE) or self.beside != ALONE


def of_step(step: str) -> list[Case]:
    """Every case at `step`."""
    found = [Case(step, how, ALONE) for how in (ERROR, KILL, STOP)]
    beside = [one for one in BESIDE if step.startswith(_WITH_QEMU) or one not in (KILL_QEMU, STOP_QEMU)]
    return found + [Case(step, how, one) for one in beside for how in (KILL, STOP, PAUSE)]


def drawn(seed: int) -> list[Case]:
    """All cases in an order that `seed` decides: in rounds, so that a run cut short has seen every step."""
    draw = random.Random(seed)
    piles = [of_step(step) for step in STEPS]
    draw.shuffle(piles)
    for pile in piles:
        draw.shuffle(pile)
    longest = max(map(len, piles))
    return [pile[turn] for turn in range(longest) for pile in piles if turn < len(pile)]


def share(cases: list[Case], part: int, parts: int) -> list[Case]:
    """What the `part`-th of `parts` runs side by side has of `cases`; counted from 1."""
    return cases[part - 1 :: parts]


def remaining(cases: list[Case], done: Collection[str], count: int | None) -> list[Case]:
    """The first `count` of `cases` that are not among `done` by name; all of those without a count."""
    return [case for case in cases if case.name not in done][:count]
