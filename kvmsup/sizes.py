# SPDX-License-Identifier: LGPL-2.1-or-later
"""Amounts of memory as text: K, M, G and T to the base 1024, as systemd reads them."""

from __future__ import annotations

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MOST = 1 << 52  # what x86 can address (Intel SDM, MAXPHYADDR)

# systemd's own units (src/basic/parse-util.c, parse_size); those over T are for other things than guests.
_SCALE = UNITS | {"P": 1 << 50, "E": 1 << 60, "B": 1, "": 1}
_PART = r"\+?([0-9]{1,20})(?:\.([0-9]{0,20}))?[ \t]*([KMGTPEB]?)[ \t]*"

# Right but for the unit, such as "8GiB" or "4g".
_ALMOST = r"[ \t]*\+?[0-9]+(?:\.[0-9]*)?[ \t]*[KMGTPEkmgtpe]?i?([KMGTPEkmgtpeBb])[ \t]*"


def parse(text: str) -> int:
    """Bytes in `text`, which is what systemd takes for a size: "512M", "1.5G", "1G 512M", plain bytes; base 1024.

    Raises ValueError, its text a clause that fits behind the quoted size.
    """
    import re  # who only renders has no need of it

    rest = text.strip(" \t")
    size, last = 0, 0
    while rest:
        part = re.match(_PART, rest, re.ASCII)
        if not part:
            raise ValueError(_wrong(text))
        whole, fraction, unit = part.groups(default="")
        factor = _SCALE[unit]
        if last and factor >= last:
            raise ValueError("has its parts not in the order of their units, the largest first")
        size += int(whole) * factor + int(fraction or 0) * factor // 10 ** len(fraction)
        last, rest = factor, rest[part.end() :]
    if not last:
        raise ValueError(_wrong(text))
    if size > MOST:
        raise ValueError(f"is more than any host can have, which is {render(MOST)}")
    return size


def _wrong(text: str) -> str:
    import re

    if re.match(r"[ \t]*\+?\.[0-9]", text):
        return "has no digit before its dot"
    if almost := re.fullmatch(_ALMOST, text, re.ASCII):
        if almost[1] in "Bb":
            return "has a unit that reads as bytes to the base 1000 here and 1024 there"
        return "has its unit in lower case"
    return "is no number followed by K, M, G or T"


def render(size: int) -> str:
    """`size` bytes in the largest unit that divides it: 3145728 is "3M", 0 is "0"."""
    for unit, factor in reversed(UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def mebibytes(size: int) -> str:
    """`size` bytes without what is less than 1M, as `render` has it."""
    return render(size >> 20 << 20)
