# SPDX-License-Identifier: LGPL-2.1-or-later
"""What guests were promised against what the host has, and what happens if all of them want it at once; pure.

Hugepages are there before a guest runs, so what they promise is kept. The rest is promised over and over.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvmsup import sizes
from kvmsup.model.ksm import Figures
from kvmsup.model.pressure import HostMemory
from kvmsup.records import NamedTuple


class Promise(NamedTuple):
    """One running guest, in bytes. `used` is what its QEMU holds of ordinary memory, `swapped` what was swapped out.

    `balloonable` is how much of what it uses its balloon could get back, `locked` how much of its memory is never
    swapped out. `merged` is what of it KSM has made one with other memory; None where the kernel does not tell.
    """

    guest: str
    size: int
    hugepages: int
    used: int
    swapped: int
    balloonable: int
    locked: int
    merged: int | None


class Books(NamedTuple):
    """All running guests together, in bytes; `shared` is what KSM saves of their memory.

    `short` is what would be missing if every guest wanted all it was promised, and `to_swap` how much of that could be
    swapped out; `spare` is what would be left over if nothing were missing.
    """

    promised: int
    used: int
    balloonable: int
    shared: int
    swapped: int
    short: int
    to_swap: int
    spare: int


def shared(promises: Sequence[Promise], ksm: Figures) -> int:
    """How many bytes KSM saves of the guests' memory, as `ksm` tells of the whole host.

    Others may merge memory too. Of what is merged the guests keep the same share as all do, and where a guest's part
    is not known it may be all that it uses.
    """
    merged = sum(one.used if one.merged is None else min(one.merged, one.used) for one in promises)
    return min(ksm.saved, merged * ksm.sharing // max(1, ksm.shared + ksm.sharing))


def books(promises: Sequence[Promise], ksm: Figures, host: HostMemory) -> Books:
    """The books of `promises` on `host`, where KSM has merged what `ksm` says.

    What is merged counts for each guest that has it, and would be needed for each when they write to it. What QEMU
    needs besides its guest's memory is left out: it is little, and in use already.
    """
    ordinary = sum(one.size - one.hugepages for one in promises)
    used = sum(min(one.used, one.size - one.hugepages) for one in promises)
    # What is swapped out now would come back, and leave its place in the swap to others.
    saved = shared(promises, ksm)
    wanted = ordinary - max(0, used - saved)
    missing = wanted - host.available
    swappable = sum(one.size - one.hugepages - one.locked for one in promises)
    room = min(host.swap_free + sum(one.swapped for one in promises), swappable)
    return Books(
        promised=sum(one.size for one in promises),
        used=used + sum(one.hugepages for one in promises),
        balloonable=sum(one.balloonable for one in promises),
        shared=saved,
        swapped=sum(one.swapped for one in promises),
        short=max(0, missing),
        to_swap=min(max(0, missing), room),
        spare=max(0, -missing),
    )


def told(found: Books) -> str:
    """What happens if every guest wants all that it was promised, as a clause."""
    if not found.short:
        return f"if all guests want all of theirs: {_about(found.spare)} to spare"
    if found.to_swap == found.short:
        return f"if all guests want all of theirs: {_about(found.short)} is swapped out"
    missing = _about(found.short - found.to_swap)
    swapped = f"{_about(found.to_swap)} is swapped out, " if found.to_swap else ""
    return f"if all guests want all of theirs: {swapped}{missing} is missing, and the kernel kills the largest guests"


def _about(size: int) -> str:
    """Rounded to what a person reads at a glance."""
    unit = "G" if size >= sizes.UNITS["G"] else "M"
    value = size / sizes.UNITS[unit]
    return f"{value:.1f}{unit}" if unit == "G" and value < 10 else f"{value:.0f}{unit}"


def glance(found: Books) -> str:
    """The books in a line."""
    parts = [f"memory: {_about(found.promised)} promised", f"{_about(found.used)} used"]
    parts += [f"{_about(found.balloonable)} balloonable"] if found.balloonable else []
    parts += [f"{_about(found.shared)} shared by KSM"] if found.shared else []
    parts += [f"{_about(found.swapped)} swapped"] if found.swapped else []
    return " · ".join([*parts, told(found)])
