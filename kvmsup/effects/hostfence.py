# SPDX-License-Identifier: LGPL-2.1-or-later
"""The fence around isolated CPUs where the kernel has no partition inside a unit: all that systemd runs keeps off.

AllowedCPUs= of everything at the top of systemd's tree but the guests. What was found is written down before it is
changed, and is put back unit by unit, where our value still stands. Callers hold the claims' lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from kvmsup import cpulist
from kvmsup.effects import allowed, files, systemctl
from kvmsup.effects.claims import RUN
from kvmsup.records import NamedTuple

_GUESTS = "kvm.slice"
_NONE = "-"


class _Fenced(NamedTuple):
    """`found` is the property as it was, empty where it was not set; `kept`: set until the next boot, by somebody.

    `ours` may stand there: until a change is done, the value before it, too.
    """

    found: frozenset[int]
    kept: bool
    ours: tuple[frozenset[int], ...]


def _record(root: str) -> str:
    return f"{root}{RUN}/fences.found"


def settle(root: str, every: frozenset[int], isolated: frozenset[int]) -> None:
    """Keep the host off `isolated`, of all its CPUs, or let it come back. Raises HostError."""
    record = _read(root)
    if isolated:
        _keep_off(root, record, every, isolated)
    elif record or os.path.exists(_record(root)):
        _let_in(root, record, every)


def _keep_off(root: str, record: Mapping[str, _Fenced], every: frozenset[int], isolated: frozenset[int]) -> None:
    shown = systemctl.show(_top(root), ("AllowedCPUs",))
    now = {unit: allowed.parse(one["AllowedCPUs"]) for unit, one in shown.items()}
    found, write = {}, {}
    for unit, cpus in now.items():
        one = record.get(unit)
        if one is None or cpus not in one.ours:  # new, or somebody else's since
            one = _Fenced(cpus, allowed.kept(root, unit) is not None, ())
        wanted = (one.found or every) - isolated or every - isolated
        found[unit] = one._replace(ours=(*one.ours[-1:], wanted) if cpus in one.ours else (wanted,))
        if cpus != wanted:
            write[unit] = wanted
    _keep(root, found)
    for unit, cpus in write.items():
        systemctl.set_property(unit, f"AllowedCPUs={cpulist.render(cpus)}")
    _keep(root, {unit: one._replace(ours=one.ours[-1:]) for unit, one in found.items()})


def _let_in(root: str, record: Mapping[str, _Fenced], every: frozenset[int]) -> None:
    for unit, one in record.items():
        before = one.found or every
        value = allowed.kept(root, unit)
        if value in one.ours:
            # Clearing the property would leave the old mask in place, so what was found, or all, goes first.
            systemctl.set_property(unit, f"AllowedCPUs={cpulist.render(before)}")
        if not one.kept and value in (*one.ours, before):
            allowed.forget(root, unit)
    files.remove(_record(root))


def _top(root: str) -> list[str]:
    names = sorted(os.listdir(f"{root}/sys/fs/cgroup"))
    return [name for name in names if name.endswith((".slice", ".scope", ".service")) and name != _GUESTS]


def _read(root: str) -> dict[str, _Fenced]:
    """A line that makes no sense is left out: nobody else writes it."""
    read = {}
    for line in files.words(_record(root)):
        with contextlib.suppress(ValueError):
            unit, found, kept, *ours = line
            if ours:
                before = cpulist.parse("" if found == _NONE else found)
                read[unit] = _Fenced(before, kept == "kept", tuple(map(cpulist.parse, ours)))
    return read


def _keep(root: str, record: Mapping[str, _Fenced]) -> None:
    lines = (
        (unit, cpulist.render(one.found) or _NONE, "kept" if one.kept else _NONE, *map(cpulist.render, one.ours))
        for unit, one in record.items()
    )
    files.rewrite(_record(root), "".join(f"{' '.join(words)}\n" for words in lines))
