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
# In the record once threads have been looked at before there was a partition.
LOOKED = f"{THREAD}looked"


class Borrowed(NamedTuple):
    """A mask as it was `found`, and what of `ours` may stand there: until a change is done, both."""

    found: Cpus
    ours: tuple[Cpus, ...]


class Step(NamedTuple):
    """The record to write down first, then the masks to write, and the record once that is done."""

    before: dict[str, Borrowed]
    write: dict[str, Cpus]
    after: dict[str, Borrowed]

    def done(self, failed: frozenset[str], record: Mapping[str, Borrowed]) -> dict[str, Borrowed]:
        """The record when the masks of `failed` could not be written, which had been `record` before.

        What was never ours is the kernel's own; what was is still to be put back.
        """
        return {
            **{key: one for key, one in self.after.items() if key not in failed},
            **{key: record[key] for key in failed if key in record},
        }


def step(now: Mapping[str, Cpus], record: Mapping[str, Borrowed], isolated: Cpus, others: Cpus, every: Cpus) -> Step:
    """What makes the masks of `now` keep off `isolated`; one that would be empty becomes `others`.

    `every` are all CPUs that there could be. A mask that is neither ours nor as it was found is somebody else's since,
    and is what is found from then on.
    """
    threads = {key: cpus for key, cpus in now.items() if key.startswith(THREAD)}
    found = _threads(threads, record, isolated, every)
    now = {key: cpus for key, cpus in now.items() if key not in threads}
    born = _away(_found(DEFAULT, now[DEFAULT], record), isolated, others) if DEFAULT in now else None
    for key, cpus in now.items():
        was = _found(key, cpus, record)
        wanted = _away(was, isolated, others)
        if wanted != cpus:
            found.write[key] = wanted
        # What was like our default all along is told from what will be born with it.
        if wanted != was or (isolated and key.startswith(IRQ) and cpus == born):
            found.after[key] = Borrowed(was, (wanted,))
        if key in found.write or key in found.after:
            found.before[key] = Borrowed(was, tuple(dict.fromkeys((cpus, wanted) if cpus != was else (wanted,))))
    return found


def _threads(now: Mapping[str, Cpus], record: Mapping[str, Borrowed], isolated: Cpus, every: Cpus) -> Step:
    """Partitions move the kernel's threads, and leave each of them on `every` CPU when they go.

    So those that were not are known from before the first partition, and are put back after the last.
    """
    if LOOKED in record:
        kept = {key: record[key] for key in record if key == LOOKED or key in now}
    else:
        kept = {key: Borrowed(cpus, (every,)) for key, cpus in now.items() if cpus != every}
        kept[LOOKED] = Borrowed(every, (every,))
    if isolated:
        return Step(dict(kept), {}, dict(kept))
    ours = {key: one for key, one in kept.items() if key in record and now.get(key) in one.ours}
    return Step(dict(ours), {key: one.found for key, one in ours.items()}, {})


def _found(key: str, cpus: Cpus, record: Mapping[str, Borrowed]) -> Cpus:
    """What was there before us, of a mask that is `cpus` now."""
    if key in record and cpus in record[key].ours:
        return record[key].found
    default = record.get(DEFAULT)
    if default and key.startswith(IRQ) and cpus in default.ours:
        # Born since, perhaps with the number of one that is gone.
        return default.found
    return cpus


def _away(cpus: Cpus, isolated: Cpus, others: Cpus) -> Cpus:
    if not cpus & isolated:
        return cpus
    return cpus - isolated or others
