# SPDX-License-Identifier: LGPL-2.1-or-later
"""Amounts of memory as text: K, M, G and T to the base 1024, as systemd reads them."""

from __future__ import annotations

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MOST = 1 << 52  # what x86 can address (Intel SDM, MAXPHYADDR)


def parse(text: str) -> int:
    """Bytes in `text`: digits, then one of K, M, G, T, to the base 1024.

    Raises ValueError, its text a clause that fits behind the quoted size.
    """
    number, unit = text[:-1], text[-1:]
    digits = number.isascii() and number.isdigit()
    if digits and unit in UNITS:
        if len(number) > 15 or int(number) * UNITS[unit] > MOST:
            raise ValueError(f"is more than any host can have, which is {render(MOST)}")
        return int(number) * UNITS[unit]
    if text.isascii() and text.isdigit():
        raise ValueError("has no unit")
    if unit.upper() == "B":
        raise ValueError("has a unit that reads as bytes to the base 1000 here and 1024 there")
    if digits and unit.upper() in UNITS:
        raise ValueError("has its unit in lower case")
    raise ValueError("is not a whole number followed by K, M, G or T")


def render(size: int) -> str:
    """`size` bytes in the largest unit that divides it: 3145728 is "3M", 0 is "0"."""
    for unit, factor in reversed(UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
