# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large each guest with an automatic balloon should be, by the host's memory and the guests' own; pure.

The host is short when its MemAvailable (Documentation/filesystems/proc.rst) is under a low mark, or when its tasks
wait for memory (Documentation/accounting/psi.rst) and it is not far above. Then guests give what lacks to the high
mark, in proportion to what they can spare. Between the marks nothing happens. Above the high mark they get back in
proportion to what they gave.

What a deflated guest gets costs the host nothing until it is written to. So what inflated guests have and do not
occupy counts as used, else the host would promise the same memory again at each turn, and be short when it is called
in.

A guest may lie about itself. It then keeps or gets back its own memory, whoever else is short; no more, as what it
has been asked for and what it occupies are the host's own figures, and one that gives nothing is not asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvmsup.model.pressure import HostMemory
from kvmsup.records import NamedTuple
from kvmsup.sizes import mebibytes

MIB = 1 << 20
# At five percent an administrator would look; the kernel's own watermarks are far below (vm.watermark_scale_factor).
_LOW_DIVISOR, _LOW_LEAST = 20, 256 * MIB
_WAITING_PERCENT = 10.0
# A guest keeps this of its present memory available, and is helped at half of it.
_RESERVE_DIVISOR, _RESERVE_LEAST = 5, 64 * MIB
# Of its full size, in one turn: what a guest gives must not all be there at once, as its statistics come later.
_STEP_DIVISOR = 10
# Less is not worth a guest's trouble.
_LEAST_CHANGE = 8 * MIB
# Reads of its own programs by a guest that is not tight stay below (pages between two looks).
_MANY_FAULTS = 200


class GuestMemory(NamedTuple):
    """One guest, in bytes. `actual` is the size that it was asked for last, `free` what of that it does not occupy.

    `available` is what it says that it will have when it is there; None without statistics from after that last
    time: it is then never made smaller. `pending` of its memory it has been asked for and has not given so far;
    `unsure` it has given, maybe since the statistics. `swapped` and `faults` are what it swapped out, in bytes, and
    its major page faults, both since the last look.
    """

    name: str
    size: int
    least: int
    actual: int
    available: int | None
    free: int
    swapped: int
    faults: int
    pending: int = 0
    unsure: int = 0

    @property
    def taken(self) -> int:
        """What it was asked to give."""
        return self.size - self.actual

    @property
    def reserve(self) -> int:
        """What it keeps available."""
        return max(self.actual // _RESERVE_DIVISOR, _RESERVE_LEAST)

    @property
    def spare(self) -> int:
        """What it can give: nothing more while it still has what it was asked for."""
        if self.available is None or self.pending:
            return 0
        return max(0, min(self.actual - self.least, self.available - self.unsure - self.reserve))

    @property
    def step(self) -> int:
        """The most that it gives or gets in one turn."""
        return max(self.size // _STEP_DIVISOR, _LEAST_CHANGE)


class Change(NamedTuple):
    """The size that a guest should have from now on, in bytes, and why."""

    guest: str
    size: int
    why: str


class Marks(NamedTuple):
    """Of the host's available memory, in bytes."""

    low: int
    middle: int
    high: int


def marks(host: HostMemory) -> Marks:
    """Hugepages are nobody's to take, and so no part of the whole."""
    low = max((host.total - host.hugepages) // _LOW_DIVISOR, _LOW_LEAST)
    return Marks(low, low * 3 // 2, low * 2)


def short(host: HostMemory) -> str:
    """Why the host needs memory back; "" while it does not."""
    mark = marks(host)
    if host.available < mark.low:
        return f"the host has {mebibytes(host.available)} available, under its mark of {mebibytes(mark.low)}"
    if host.stall and host.stall.some > _WAITING_PERCENT and host.available < mark.middle:
        waited = f"for {host.stall.some:.0f} % of the last 10 s the host's tasks waited for memory"
        return f"{waited}, with {mebibytes(host.available)} available"
    return ""


def tight(guest: GuestMemory) -> str:
    """Why the guest needs memory back; "" while it does not."""
    if guest.available is None:
        return ""
    if guest.swapped:
        return f"the guest has swapped out {mebibytes(max(guest.swapped, MIB))}"
    if guest.available < guest.reserve // 2:
        return f"the guest has only {mebibytes(guest.available)} available"
    # By themselves major faults say nothing: any program that starts is read from disk.
    if guest.available < guest.reserve and guest.faults > _MANY_FAULTS:
        return f"the guest has {mebibytes(guest.available)} available and reads pages back from disk"
    return ""


def turn(host: HostMemory, guests: Sequence[GuestMemory]) -> list[Change]:
    """What to change now. A guest that is tight comes first, however short the host is: it must not have to swap."""
    helped = [_grown(one, one.step, tight(one)) for one in guests if one.taken and tight(one)]
    others = [one for one in guests if not tight(one)]
    promised = sum(change.size for change in helped) - sum(one.actual for one in guests if one.taken and tight(one))
    if why := short(host):
        return helped + list(_taken(others, marks(host).high - host.available + promised, why))
    inflated = [one for one in others if one.taken]
    spare = host.available - marks(host).high - promised - sum(one.free for one in inflated)
    return helped + list(_given(inflated, spare, f"the host has {mebibytes(host.available)} available"))


def _taken(guests: Sequence[GuestMemory], need: int, why: str) -> Iterable[Change]:
    """Where the shares of many are too small, those that can spare most give the least that is worth it."""
    whole, left = sum(one.spare for one in guests), need
    for one in sorted(guests, key=lambda one: (-one.spare, one.name)):
        if left <= 0:
            return
        share = max(need * one.spare // whole if whole else 0, _LEAST_CHANGE + one.actual % MIB)
        size = -(-(one.actual - min(share, one.spare, one.step)) // MIB) * MIB
        if one.actual - size >= _LEAST_CHANGE:
            left -= one.actual - size
            yield Change(one.name, size, f"{why}; the guest has {mebibytes(one.available or 0)} available")


def _given(guests: Sequence[GuestMemory], spare: int, why: str) -> Iterable[Change]:
    """As above, those that gave most first; what is too little for anybody stays with the host."""
    whole, left = sum(one.taken for one in guests), spare
    for one in sorted(guests, key=lambda one: (-one.taken, one.name)):
        share = max(spare * one.taken // whole, _LEAST_CHANGE + -one.actual % MIB)
        change = _grown(one, min(share, one.step, left), why)
        if change.size - one.actual >= _LEAST_CHANGE or one.actual < change.size == one.size:
            left -= change.size - one.actual
            yield change


def _grown(guest: GuestMemory, share: int, why: str) -> Change:
    return Change(guest.name, min(guest.size, (guest.actual + share) // MIB * MIB), why)
