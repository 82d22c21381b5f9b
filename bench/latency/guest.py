# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest: a boot sector that looks at the clock again and again, and tells on its serial port what it missed.

Each line is 33 numbers of 32 bits in hexadecimal: how many gaps between two looks had their highest bit at 0, 1, … 31,
in ticks of the time stamp counter, and the longest one.
"""

from __future__ import annotations

from typing import NamedTuple

# Looks in a line: with the lab's emulated CPUs some seconds.
_ROUNDS = 20_000_000
_BUCKETS = 32
_CODE = (
    "fa 31c0 8ed8 8ec0 8ed0 bc007c"  # cli; segments 0; a stack below the sector
    "bf0080 b94400 31c0 fc f3ab"  # again: the counters at 0x8000 are 0
    "66bd{rounds} 0f31 6689c6"  # mov ebp, rounds; rdtsc; mov esi, eax
    "0f31 6689c3 6629f0 6689de"  # look: rdtsc; mov ebx, eax; sub eax, esi; mov esi, ebx
    "6639068080 7304 66a38080"  # the longest so far, at 0x8080
    "660fbdd8 7408 c1e302 66ff870080"  # bsr ebx, eax: one more of that length
    "664d 75d8"  # dec ebp; jnz look
    "bf0080 b92100"  # the counters, and the longest
    "668b05 83c704 bd0800"  # tell: mov eax, [di]; add di, 4; eight digits
    "66c1c004 6650 240f 3c0a 7202 0427 0430 e81300 6658 4d 75e8"
    "b020 e80900 e2d8 b00a e80200 eb8d"  # a space; the next one; a line end; again
    "baf803 ee c3"  # mov dx, 0x3f8; out dx, al; ret
)


def image() -> bytes:
    """The disk that it boots from."""
    code = bytes.fromhex(_CODE.format(rounds=_ROUNDS.to_bytes(4, "little").hex()))
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0")


class Line(NamedTuple):
    """Gaps by the bit of their length in ticks, and the longest."""

    gaps: tuple[int, ...]
    longest: int


def lines(text: str) -> list[Line]:
    """Those in what the guest has printed, but for the first: the firmware was at work until then."""
    found = []
    for words in map(str.split, text.splitlines()):
        if len(words) == _BUCKETS + 1 and all(len(word) == 8 for word in words):
            numbers = [int(word, 16) for word in words]
            found.append(Line(tuple(numbers[:_BUCKETS]), numbers[_BUCKETS]))
    return found[1:]


def lost(line: Line, ticks: float) -> float:
    """The share of the line's time that went in gaps of about `ticks` or more: a gap counts as 1.5 times its bit."""
    sums = [count * 1.5 * (1 << bit) for bit, count in enumerate(line.gaps)]
    return sum(one for bit, one in enumerate(sums) if 1 << bit >= ticks) / sum(sums)


def over(line: Line, ticks: float) -> int:
    """Gaps of about `ticks` or more."""
    return sum(count for bit, count in enumerate(line.gaps) if 1 << bit >= ticks)
