# SPDX-License-Identifier: LGPL-2.1-or-later
"""Masks of CPUs that keep off isolated ones while there are any, and are as they were found afterwards; pure."""

from __future__ import annotations

from collections.abc import Mapping

from kvmsup.records import NamedTuple

Cpus = frozenset[int]
# The mask that interrupts are born with, and those of interrupts.
DEFAULT, IRQ = "default", "irq/"
# Those of the kernel's own threads: THREAD where partitions move them, WORKER where nobody else does.
THREAD, WORKER = "thread/", "worker/"


class Borrowed(NamedTuple):
    """A mask as it was `found`, and what of `ours` may stand there: before a change is done, both."""

    found: Cpus
    ours: tuple[Cpus, ...]


class Step(NamedTuple):
    """The record as it should be written down first, and then the masks to write."""

    record: dict[str, Borrowed]
    write: dict[str, Cpus]


def step(now: Mapping[str, Cpus], record: Mapping[str, Borrowed], isolated: Cpus, others: Cpus, every: Cpus) -> Step:
    """What makes the masks of `now` keep off `isolated`; one that would be empty becomes `others`.

    A mask that is neither ours nor as it was found is somebody else's since, and is what is found from then on.
    """
    threads = {key: cpus for key, cpus in now.items() if key.startswith(THREAD)}
    kept, write = _threads(threads, record, isolated, every)
    now = {key: cpus for key, cpus in now.items() if key not in threads}
    born = _away(_found(DEFAULT, now[DEFAULT], record), isolated, others) if DEFAULT in now else None
    for key, cpus in now.items():
        found = _found(key, cpus, record)
        wanted = _away(found, isolated, others)
        if wanted != cpus:
            write[key] = wanted
        if wanted != found or (isolated and key.startswith(IRQ) and cpus == born):
            # What was like our default all along is told from what will be born with it.
            kept[key] = Borrowed(found, tuple(dict.fromkeys((cpus, wanted) if cpus != found else (wanted,))))
    return Step(kept, write)


def _threads(now: Mapping[str, Cpus], record: Mapping[str, Borrowed], isolated: Cpus, every: Cpus) -> Step:
    """Partitions move the kernel's threads, and leave each of them on `every` CPU when they go.

    So those that were not are known from before the first partition, and are put back after the last.
    """
    if not isolated:
        ours = {key: record[key] for key in now if key in record}
        return Step({}, {key: one.found for key, one in ours.items() if now[key] in one.ours})
    if record:
        return Step({key: record[key] for key in now if key in record}, {})
    return Step({key: Borrowed(cpus, (every,)) for key, cpus in now.items() if cpus != every}, {})


def _found(key: str, cpus: Cpus, record: Mapping[str, Borrowed]) -> Cpus:
    """What was there before us, of a mask that is `cpus` now."""
    if key in record:
        return record[key].found if cpus in record[key].ours else cpus
    default = record.get(DEFAULT)
    if default and key.startswith(IRQ) and cpus in default.ours:
        return default.found  # born since
    return cpus


def _away(cpus: Cpus, isolated: Cpus, others: Cpus) -> Cpus:
    if not cpus & isolated:
        return cpus
    return cpus - isolated or others
