# SPDX-License-Identifier: LGPL-2.1-or-later
"""What becomes of the guest in each fault case, decided from design.md, section 3; pure."""

from __future__ import annotations

from enum import Enum

from tests.soak.cases import ALONE, KILL_QEMU, NEIGHBOUR, PAUSE, STOP_QEMU, Case


class End(Enum):
    """How things stand when all jobs are over."""

    RUNS = "the start succeeds, and every thread is where it should be"
    REFUSED = "the start fails, and nothing is left"
    STOPPED = "the guest is down, and nothing is left"
    UNRELEASED = "the guest is down; what it holds is given back by the next setup"
    GOES_ON = "the reload fails; the same QEMU goes on, and the next reload applies everything"
    APPLIED = "the reload succeeds"


# From here on attach asks QEMU nothing.
_ATTACHED = ("attach.look-again",)
_APPLIED = ("apply.hold",)
# At these whoever sets up, or releases, has no claims' lock yet.
_WITHOUT_LOCK = (
    *("setup.configuration", "setup.host", "setup.lock"),
    *("apply.configuration", "apply.lock"),
    "release.lock",
)


def end(case: Case) -> End:
    """How `case` ends."""
    goes_on = case.how == PAUSE
    if case.part == "stop":
        return End.STOPPED
    if case.part == "release":
        return End.STOPPED if goes_on else End.UNRELEASED
    if case.part == "apply":
        return _of_reload(case, goes_on)
    if case.beside == KILL_QEMU or (case.beside == STOP_QEMU and case.step not in _ATTACHED):
        return End.REFUSED
    return End.RUNS if goes_on else End.REFUSED


def _of_reload(case: Case, goes_on: bool) -> End:
    if case.beside == KILL_QEMU:
        return End.STOPPED
    if case.beside == STOP_QEMU and case.step not in _APPLIED:
        return End.GOES_ON
    return End.APPLIED if goes_on else End.GOES_ON


def has_lock(case: Case) -> bool:
    """Whether whoever takes the step has the claims' lock, so that a neighbour's setup waits for it."""
    return case.part in ("setup", "apply", "release") and case.step not in _WITHOUT_LOCK


def neighbour_waits(case: Case) -> bool:
    """Whether the neighbour comes up only when the case is over."""
    return case.beside == NEIGHBOUR and has_lock(case)


def said_by_error(case: Case) -> str:
    """What the journal has of an injected error; "" where there is none to be had."""
    if case.how == "error" and case.beside == ALONE:
        return f"a fault was injected at the step {case.step} (KVMSUP_FAULT)"
    return ""
