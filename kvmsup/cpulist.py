# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's list format for CPUs and nodes, such as 0-3,8.

The format is described in Documentation/admin-guide/cputopology.rst and kernel-parameters.rst ("cpu lists").
A list that is wrong raises: a typo must never become "no CPUs".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

# Linux's own upper bound, NR_CPUS of the largest distribution kernels; it also bounds what "0-99999999" can cost.
HIGHEST = 8191
# How often a list may name every number: each of ten thousand groups could be all of them.
_MOST_TIMES = 16


def parse(text: str) -> frozenset[int]:
    """The numbers in `text`, such as "0-3,8" or "0-31:2/4" (the first 2 of every 4).

    The kernel prints an empty list as an empty line, so blank text is the empty set.

    Raises ValueError, its text a clause that fits behind the quoted list.
    """
    if not text.strip():
        return frozenset()
    found: set[int] = set()
    left = _MOST_TIMES * (HIGHEST + 1)
    for part in text.strip().split(","):
        group = _group(part.strip())
        left -= len(group)
        if left < 0:
            raise ValueError("names the same numbers over and over")
        found.update(group)
    return frozenset(found)


def _group(part: str) -> Collection[int]:
    span, colon, pattern = part.partition(":")
    first_text, dash, last_text = span.partition("-")
    first = _number(first_text, part)
    last = _number(last_text, part) if dash else first
    if last < first:
        raise ValueError(f"has a range that runs backwards: {part}")
    if not colon:
        return range(first, last + 1)
    used_text, slash, size_text = pattern.partition("/")
    used, size = _number(used_text, part), _number(size_text, part)
    if not slash or not 0 < used <= size:
        raise ValueError(f"has a pattern that is not first-last:used/size: {part}")
    return range(first, last + 1) if used == size else _pattern(first, last, used, size)


def _pattern(first: int, last: int, used: int, size: int) -> list[int]:
    return [number for start in range(first, last + 1, size) for number in range(start, min(start + used, last + 1))]


def _number(text: str, part: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"is not a list such as 0-3,8: {part!r} is neither a number nor a range")
    # int() itself refuses thousands of digits, with words of its own.
    if len(text) > 20 or int(text) > HIGHEST:
        raise ValueError(f"has a number over {HIGHEST}: {text[:20]}")
    return int(text)


def render(numbers: Iterable[int]) -> str:
    """The shortest list of `numbers`, ascending: {0, 1, 2, 8} is "0-2,8", nothing is ""."""
    parts: list[str] = []
    ordered = sorted(set(numbers))
    start = 0
    for index, number in enumerate(ordered):
        if index + 1 < len(ordered) and ordered[index + 1] == number + 1:
            continue
        first = ordered[start]
        parts.append(str(first) if first == number else f"{first}-{number}")
        start = index + 1
    return ",".join(parts)
