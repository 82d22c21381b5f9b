# SPDX-License-Identifier: LGPL-2.1-or-later
"""All guests at a glance, from one answer of systemd's, the claims and the control groups.

Apart from kvmsup.effects.glance, because a person waits for `kvmsup list`, and systemd takes milliseconds to show all
properties of one unit.
"""

from __future__ import annotations

import os

from kvmsup.effects import cgroup, claims, configs, enabled, files, systemctl
from kvmsup.model import guest
from kvmsup.model.claim import Claim
from kvmsup.plan.paths import BINARY
from kvmsup.records import NamedTuple


class Brief(NamedTuple):
    """One guest among all of them; `claim` is None while it is down, `pid` 0 while QEMU does not run.

    The description of a guest that systemd has not loaded is "": nothing is under way with it.
    """

    name: str
    active: str
    sub: str
    result: str
    pid: int
    description: str
    enabled: bool
    claim: Claim | None


# A guest that runs, and one that is down, of which the result is taken for good (a condition of a drop-in may have
# kept it from starting). What else there is systemd is asked about.
_RUNS, _DOWN = ("active", "running"), ("inactive", "dead")
# As the kernel cuts off the name of QEMU's program (TASK_COMM_LEN).
_COMM = os.path.basename(BINARY)[:15]


def guests(root: str, question: systemctl.Question | None = None) -> list[Brief]:
    """Every guest that has a file or a claim. Raises KvmsupError.

    systemd is asked once for all of them, unless it has been: then that is its answer. Meanwhile the rest is read.
    """
    question = question or systemctl.ask_for_guests()
    try:
        held, configured, on = claims.read_all(root), configs.names(root), enabled.guests(root)
    except BaseException:  # Ctrl-C, too
        question.dismiss()
        raise
    units = systemctl.loaded(question.answer())
    found = [_brief(root, name, units, held.get(name), name in on) for name in sorted({*configured, *held})]
    return _completed(found)


def _brief(root: str, name: str, units: dict[str, systemctl.Loaded], claim: Claim | None, is_enabled: bool) -> Brief:
    unit = units.get(f"kvm@{name}.service") or systemctl.Loaded(*_DOWN, "")
    pid = _qemu(root, claim) if claim and unit[:2] == _RUNS else 0
    return Brief(name, unit.active, unit.sub, "success", pid, unit.description, is_enabled, claim)


def _qemu(root: str, claim: Claim) -> int:
    """The pid of a running guest's QEMU; 0 where it is not all that is in its unit, as beside a reload.

    The guest may have ended since systemd said that it runs, and then its unit has another program.
    """
    found = cgroup.processes(root, claim)
    if len(found) != 1:
        return 0
    try:
        name = files.read(f"{root}/proc/{found[0]}/comm")
    except OSError:
        return 0
    return found[0] if name == _COMM else 0


def _completed(found: list[Brief]) -> list[Brief]:
    """`found` with what only systemd can tell of those that are neither down nor simply run."""
    unclear = {one.name for one in found if not (one.pid or (one.active, one.sub) == _DOWN)}
    shown = systemctl.show(guest.units(sorted(unclear)), ("ActiveState", "SubState", "Result", "MainPID"))
    return [_as_shown(one, shown.get(f"kvm@{one.name}.service")) if one.name in unclear else one for one in found]


def _as_shown(one: Brief, told: dict[str, str] | None) -> Brief:
    if not told:
        return one
    active, sub, result = (told[key] for key in ("ActiveState", "SubState", "Result"))
    return one._replace(active=active, sub=sub, result=result, pid=int(told["MainPID"] or 0))
