# SPDX-License-Identifier: LGPL-2.1-or-later
"""How libvirt writes numbers, amounts of memory and lists of CPUs; pure."""

from __future__ import annotations

from kvmsup import cpulist, sizes
from kvmsup.plan.libvirt_xml import Node

# src/util/virutil.c, virScaleInteger: a letter, or with iB, is base 1024; with B it is base 1000.
_LETTERS = "kmgtpe"
# As for all lists of a guest's file together (model/table.py).
_MOST_CPUS = 1 << 19


def whole(text: str, low: int, high: int) -> int | None:
    """The number in `text`, None where it is none or not from `low` to `high`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        return None
    return int(text) if low <= int(text) <= high else None


def amount(node: Node) -> int | None:
    """Bytes, from 1 to what x86 can address; None for anything else. Without a unit they are KiB."""
    count, factor = whole(node.text(), 1, sizes.MOST), _factor(node.attribute("unit"))
    return count * factor if count and factor and count * factor <= sizes.MOST else None


def amount_attribute(node: Node, name: str) -> int | None:
    """As `amount`, of an attribute beside the unit."""
    count, factor = whole(node.attribute(name), 1, sizes.MOST), _factor(node.attribute("unit"))
    return count * factor if count and factor and count * factor <= sizes.MOST else None


def _factor(unit: str) -> int:
    """Bytes of one; 0 for a unit that there is not."""
    unit = unit.lower() or "kib"
    if unit in ("b", "byte", "bytes"):
        return 1
    power = _LETTERS.find(unit[0]) + 1
    base = {"": 1024, "ib": 1024, "b": 1000}.get(unit[1:], 0)
    return int(base**power) if power else 0


class Lists:
    """Reads one domain's lists of CPUs and nodes, which name only so many together: its XML has room for far more."""

    def __init__(self) -> None:
        self._left = _MOST_CPUS

    def why(self, otherwise: str) -> str:
        """The reason why something with a list is lost: that all have named too many, and none is read any more."""
        return otherwise if self._left >= 0 else f"the lists of the domain name over {_MOST_CPUS} CPUs together"

    def have_room(self, count: int) -> bool:
        """Whether `count` more may be named; then they are."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def cpus(self, text: str) -> frozenset[int] | None:
        """Those of libvirt's list, such as 1-4,^3,6; None where it is none or empty, or all have named too many."""
        parts = text.split(",")
        if not text or self._left < 0 or len(parts) > cpulist.HIGHEST:
            return None
        try:
            within = cpulist.parse(",".join(part for part in parts if "^" not in part))
            without = cpulist.parse(",".join(part.strip().removeprefix("^") for part in parts if "^" in part))
        except ValueError:
            self._left -= cpulist.HIGHEST + 1  # nobody knows how many it had named until then
            return None
        self._left -= max(len(within), len(without))
        return (within - without or None) if self._left >= 0 else None


def rounded(size: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-size // unit) * unit
