# SPDX-License-Identifier: LGPL-2.1-or-later
"""Amounts of memory as text: K, M, G and T to the base 1024, as systemd reads them."""

from __future__ import annotations

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse(text: str) -> int:
    """Bytes in `text`: digits, then one of K, M, G, T, to the base 1024.

    Raises ValueError, its text a clause that fits behind the quoted size.
    """
    number, unit = text[:-1], text[-1:]
    if unit in UNITS and number.isascii() and number.isdigit() and len(number) < 16:
        return int(number) * UNITS[unit]
    if text.isascii() and text.isdigit():
        raise ValueError("has no unit")
    if text[-1:].upper() == "B" or text[-2:].lower() == "ib":
        raise ValueError("has a unit that reads as bytes to the base 1000 here and 1024 there")
    if text[-1:].upper() in UNITS and text[:-1].isdigit():
        raise ValueError("has its unit in lower case")
    raise ValueError("is not a whole number followed by K, M, G or T")


def render(size: int) -> str:
    """`size` bytes in the largest unit that divides it: 3145728 is "3M", 0 is "0"."""
    for unit, factor in reversed(UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
