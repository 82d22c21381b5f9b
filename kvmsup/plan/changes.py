# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest runs with against what its file says now: a Guest as keys and values, and how each difference applies.

Keys are the TOML's, "memory.balloon.min", and values are JSON's. The keys of a guest that runs may have been written
by another version of kvmsup, which knew fewer keys or more: those that only one of them knows are no difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from kvmsup import cpulist, sizes
from kvmsup.model import nets
from kvmsup.model.guest import Credential, Guest, Net, Scheduler
from kvmsup.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any

    Value = Any  # of JSON: None, a truth value, a number, a string, or a list or table of such

# "systemctl reload" applies it, or only a restart does.
LIVE, RESTART = "live", "restart"

# How a key's change is applied; the longest pattern that begins the key decides, * stands for any one name. What may
# be live is written out key by key, so that a new key is for a restart until somebody has made it live.
HOW = {
    "description": LIVE,
    "machine": RESTART,
    "cpu": RESTART,
    "cpu.vcpus": LIVE,  # more of them
    "placement.cpus": RESTART,  # the slice is chosen when QEMU is started
    "placement.smt": LIVE,
    "placement.nodes": RESTART,  # memory stays where it is
    "placement.emulator": LIVE,
    "placement.scheduler": LIVE,
    "placement.core-scheduling": RESTART,  # a cookie cannot be given back (kernel/sched/core_sched.c)
    "placement.vcpu": LIVE,
    "placement.isolate": RESTART,  # Delegate= is settled when QEMU is started
    "iothread": RESTART,
    "iothread.*.cpus": LIVE,
    "memory.size": RESTART,
    "memory.hugepages": RESTART,
    "memory.lock": RESTART,
    "memory.ksm": LIVE,
    "memory.balloon": RESTART,  # the device
    "memory.balloon.min": LIVE,
    "memory.balloon.auto": LIVE,
    "numa": RESTART,
    "disk": RESTART,
    "net": RESTART,
    "console": RESTART,
    "display": RESTART,
    "guest": RESTART,
    "credentials": RESTART,
    "cloud-init": RESTART,
}

# Records whose names are not the TOML's.
_CALLED = {
    "placement.dedicated": "placement.cpus",
    "memory.page-size": "memory.hugepages",
    "memory.balloon.least": "memory.balloon.min",
    "cells": "numa",
    "inside": "guest",
    "screen.serial": "console.serial",
    "screen.vnc": "display.vnc",
    "iothreads": "iothread",
    "disks": "disk",
    "nets": "net",
}
# The order of these tables in the file is that of their places on the guest's PCI bus.
_ORDERED = frozenset(("disk", "net"))
_SIZES = frozenset(("size", "page_size", "least", "memory"))


class Change(NamedTuple):
    """One key, or a table that came or went; `how` is LIVE or RESTART, and `why` it is so where that is not plain."""

    key: str
    running: Value
    configured: Value
    how: str
    why: str = ""

    @property
    def told(self) -> str:
        """`cpu.vcpus 2 → 4`."""
        return f"{self.key} {_told(self.running)} → {_told(self.configured)}"


def _told(value: Value) -> str:
    if value is None or value in ("", [], {}):
        return "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        there = ", ".join(f"{key} = {_told(one)}" for key, one in value.items() if one is not None)
        return f"({there})" if there else "(as usual)"
    return str(value)


def flatten(guest: Guest) -> dict[str, Value]:
    """Every key of `guest` with its value. A key of tables by name has a list of the names; no table is None."""
    fields = guest._asdict().items()
    return {key: value for field, one in fields if field != "name" for key, value in _keys("", field, one)}


def _keys(table: str, field: str, value: Any) -> Iterator[tuple[str, Value]]:
    """The keys of one field of a record."""
    name = f"{table}{field.replace('_', '-')}"
    key = _CALLED.get(name, name)
    if isinstance(value, tuple) and value and isinstance(value[0], tuple | frozenset) and not _is_record(value):
        names = [str(getattr(one, "name", number)) for number, one in enumerate(value)]
        yield key, names
        for one, called in zip(value, names, strict=True):
            yield from _inside(f"{key}.{called}", one)
    elif key == "placement.cpus":
        yield key, "dedicated" if value else "shared"
    elif type(value) is int and field in _SIZES:
        yield key, sizes.render(value) if value else None
    else:
        yield from _inside(key, value)


def _inside(key: str, value: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Net):
        yield from ((f"{key}.{kind}", (value.over or True) if kind == value.kind else None) for kind in nets.KINDS)
        yield from ((f"{key}.{field}", getattr(value, field) or None) for field in ("mac", "queues", "boot"))
    elif isinstance(value, Credential):
        yield key, value.path
    elif isinstance(value, Scheduler):
        yield key, f"{value.policy}:{value.priority}"
    elif _is_record(value):
        for field, one in zip(value._fields, value, strict=True):
            if field != "name":
                yield from _keys(f"{key}.", field, one)
    elif isinstance(value, frozenset):
        yield key, cpulist.render(value)
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def _is_record(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def differences(running: Mapping[str, Value], configured: Mapping[str, Value]) -> list[Change]:
    """What differs, in the order of `configured`, then what it has no more."""
    found: dict[str, tuple[Value, Value]] = {}
    for key, value in configured.items():
        if key in running:
            tables = _has_tables(key, configured) or _has_tables(key, running)
            if value != running[key] and (not tables or _reordered(key, running[key], value)):
                found[key] = (running[key], value)
        elif whole := _not_in(running, configured, key):
            found[whole] = (None, _part(configured, whole))
    for key in running:
        if key not in configured and (whole := _not_in(configured, running, key)):
            found[whole] = (_part(running, whole), None)
    return [Change(key, was, now, how(key)) for key, (was, now) in found.items()]


def _reordered(key: str, was: Value, now: Value) -> bool:
    """Whether two tables that were there and are there have changed places."""
    if key not in _ORDERED or not isinstance(was, list):
        return False
    return [name for name in was if name in now] != [name for name in now if name in was]


def _has_tables(key: str, keys: Mapping[str, Value]) -> bool:
    return any(other.startswith(f"{key}.") for other in keys)


def _not_in(keys: Mapping[str, Value], own: Mapping[str, Value], key: str) -> str:
    """The table of `key`, one of `own`, that is not in `keys`; "" where they merely do not know the key."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        above = ".".join(parts[:length])
        if above in keys:
            if keys[above] is None:
                return above
            # A name may have dots of its own.
            names = own.get(above) if isinstance(keys[above], list) else None
            here = (name for name in names or () if _is_of(key, (f"{above}.{name}",)))
            return next((f"{above}.{name}" for name in here if name not in keys[above]), "")
    return ""


def _part(keys: Mapping[str, Value], table: str) -> Value:
    """The value of `table`, or its keys with their values."""
    if table in keys:
        return keys[table]
    return {key.removeprefix(f"{table}."): value for key, value in keys.items() if key.startswith(f"{table}.")}


def how(key: str) -> str:
    """LIVE or RESTART by the key alone; RESTART for one that nobody has decided on."""
    fitting = [pattern for pattern in HOW if _begins(pattern.split("."), key.split("."))]
    return HOW[max(fitting, key=lambda pattern: pattern.count("."))] if fitting else RESTART


def _begins(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) <= len(parts) and all(one in ("*", part) for one, part in zip(pattern, parts, strict=False))


# Where threads go depends on these: when one of them waits for a restart, the pins that fit it do too.
_PINS_DEPEND_ON = ("cpu", "placement", "iothread", "numa", "memory.hugepages")


def decide(changes: list[Change]) -> list[Change]:
    """`changes` with those for a restart that could be live by themselves, but not with what else is changed."""
    waiting = [change.key for change in changes if change.how == RESTART]
    first = next((key for key in waiting if _is_of(key, _PINS_DEPEND_ON)), "")
    return [change if change.how == RESTART else _decide(change, first, waiting) for change in changes]


def _is_of(key: str, tables: tuple[str, ...]) -> bool:
    return any(key == table or key.startswith(f"{table}.") for table in tables)


def _decide(change: Change, first: str, waiting: list[str]) -> Change:
    why = ""
    if change.key == "cpu.vcpus" and isinstance(change.running, int) and change.configured < change.running:
        why = "a vCPU is taken away only by a restart"
    elif first and _is_of(change.key, ("cpu", "placement", "iothread")):
        why = f"with {first}"
    elif change.key.startswith("memory.balloon.") and "memory.size" in waiting:
        why = "with memory.size"
    elif change.key == "memory.ksm" and (lock := {"memory.hugepages", "memory.lock"}.intersection(waiting)):
        why = f"with {min(lock)}"
    return change._replace(how=RESTART, why=why) if why else change


UNSURE = "?"


def unsure(running: Mapping[str, Value], keys: Collection[str]) -> dict[str, Value]:
    """`running` while `keys` are being changed: whoever finds it so has to apply them, whatever they should be."""
    names = {
        table: [*there, *(name for name in new if name not in there)] for table, there, new in _lists(running, keys)
    }
    return {**running, **names, **dict.fromkeys(keys, UNSURE)}


def settled(running: Mapping[str, Value], now: Mapping[str, Value], keys: Collection[str]) -> dict[str, Value]:
    """`running` once `keys` are as in `now`."""
    names = {table: there for table, there, _ in _lists(now, keys)}
    kept = {key: value for key, value in running.items() if not _is_of(key, tuple(keys))}
    return kept | names | {key: value for key, value in now.items() if _is_of(key, tuple(keys))}


def _lists(values: Mapping[str, Value], keys: Collection[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """The tables by name that some of `keys` are in: what each is called, the names it has, and those of `keys`."""
    for table in {key.rpartition(".")[0] for key in keys}:
        if isinstance(values.get(table), list):
            yield table, values[table], [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == table]
